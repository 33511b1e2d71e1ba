"""The model that is examined, as checks look at it."""

from collections.abc import Iterable
from typing import Any

import keras

from reusekit.data import DataSplit
from reusekit.errors import NoGraphError
from reusekit.graph import Call, Graph, keras_internals, read


class Patient:
    """A model under examination.

    Attributes:
        model: The model.
        name: Its name or path.
        data: Examples as they are fed to it, if there are any.
        complaints: What Keras complained of while it read the file; None for a model that is none.
        graph: The model as a graph; None for a subclassed model.
        graphs: The graph, or those of the functional models that a subclassed one holds, by what
            stands in front of their addresses.
    """

    def __init__(
        self,
        model: keras.Model,
        name: str,
        data: DataSplit | None = None,
        complaints: list[str] | None = None,
    ):
        self.model, self.name, self.data, self.complaints = model, name, data, complaints
        self.graph: Graph | None = None
        try:
            self.graph = read(model)
            self.graphs = {"": self.graph}
        except NoGraphError:
            parts = keras_internals.direct_layers(model)
            held = [part for part in parts if keras_internals.runs_its_graph(part)]
            self.graphs = {f"{part.name}/": read(part) for part in held}

    @property
    def whole(self) -> Graph:
        """The graph, for checks that are made only where there is one."""
        assert self.graph is not None
        return self.graph

    @property
    def calls(self) -> list[Call]:
        """The calls of the graph, without inputs."""
        return [] if self.graph is None else calls_of(self.graph)

    def optimizer(self) -> Any:
        """Return the optimizer that the model was compiled with, without the scaling of losses."""
        optimizer = getattr(self.model, "optimizer", None)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return optimizer.inner_optimizer
        return optimizer


def calls_of(graph: Graph) -> list[Call]:
    """Return the calls of a graph, without inputs."""
    return [call for call in graph.calls if not call.is_input]


def once(calls: Iterable[Call]) -> list[Call]:
    """Return the first call of each operation."""
    found: dict[int, Call] = {}
    for call in calls:
        found.setdefault(id(call.operation), call)
    return list(found.values())
