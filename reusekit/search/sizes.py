"""The costs of a trial's whole model: parameters, FLOPs, bytes."""

import math
from dataclasses import dataclass

import keras
import numpy as np

from reusekit.graph import Graph, ancestors, read
from reusekit.graph.flops import count_flops
from reusekit.search.spec import TrialSpec
from reusekit.search.trial_data import TrialData
from reusekit.sharing import count_params


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model.

    Attributes:
        parameters: Its parameters, each shared weight once.
        flops: FLOPs of one example, two for each multiply-add.
        bytes: Bytes of its weights.
    """

    parameters: int = 0
    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Sizes") -> "Sizes":
        return self._with(other, 1)

    def __sub__(self, other: "Sizes") -> "Sizes":
        return self._with(other, -1)

    def _with(self, other: "Sizes", sign: int) -> "Sizes":
        return Sizes(
            self.parameters + sign * other.parameters,
            self.flops + sign * other.flops,
            self.bytes + sign * other.bytes,
        )


class SizeCounter:
    """Counts the whole models of trials; what they have in common is counted once.

    Args:
        data: Knows the backbone; features without one count as nothing.
    """

    def __init__(self, data: TrialData) -> None:
        self._data = data
        self._flops = None if data.model is None else count_flops(data.graph).per_call
        self._bottoms: dict[str, Sizes] = {}
        self._trunks: dict[int, Sizes] = {}

    def bottom(self, cut: str) -> Sizes:
        """Return the sizes of everything that the tensor at a cut depends on."""
        if self._flops is None:
            return Sizes()
        if cut not in self._bottoms:
            graph = self._data.graph
            calls = ancestors(graph, [graph.names[cut]])
            variables = {id(v): v for call in calls for v in call.variables}.values()
            self._bottoms[cut] = Sizes(
                sum(math.prod(v.shape) for v in variables),
                sum(self._flops[call.index] for call in calls),
                sum(map(bytes_of, variables)),
            )
        return self._bottoms[cut]

    def whole(self, spec: TrialSpec, model: keras.Model) -> Sizes:
        """Return the whole model of a trial, whose own part is `model`.

        The pooling between the two, one addition for each number at the cut, is not counted.
        """
        return self.bottom(spec.cut) + self._of(model) - self._trunk(spec)

    def _trunk(self, spec: TrialSpec) -> Sizes:
        trunk = self._data.trunk(spec)
        if trunk is None:
            return Sizes()
        if id(trunk) not in self._trunks:
            self._trunks[id(trunk)] = self._of(trunk)
        return self._trunks[id(trunk)]

    def _of(self, model: keras.Model) -> Sizes:
        graph: Graph = read(model)
        return Sizes(
            count_params(model).total,
            sum(count_flops(graph).per_call),
            sum(map(bytes_of, {id(v): v for v in model.weights}.values())),
        )


def bytes_of(variable: keras.Variable) -> int:
    """Return the bytes of a weight in memory."""
    return math.prod(variable.shape) * np.dtype(variable.dtype).itemsize
