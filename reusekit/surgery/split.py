"""Cutting a model in two."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras

from reusekit.arguments import checked
from reusekit.errors import ReusekitError, SurgeryError, WideCutError, reason
from reusekit.graph import Cut, Graph, Tensor, cut, cut_points, read, resolve
from reusekit.graph.addresses import At
from reusekit.graph.padding_mask import remember_source
from reusekit.surgery.assembling import assemble, placeholder, singleton
from reusekit.surgery.calling import Step
from reusekit.surgery.certificate import Certificate, certify
from reusekit.surgery.rebuild import Rebuild, plan
from reusekit.surgery.snapshot import Snapshot
from reusekit.surgery.stages import Stage, stages


@dataclass(frozen=True, eq=False)
class Split:
    """The two parts of a model: `top(bottom(x))` equals `model(x)`.

    Attributes:
        bottom: From the model's inputs to the frontier. It has the model's own input structure; its
            output is one tensor where one crosses, else a list in the order of `frontier`.
        top: From the frontier to the model's outputs, in the model's own output structure.
        frontier: The addresses of the tensors between them: first those that were asked for.
        free: Those of the frontier that are model inputs or computed from inputs without a weight.
        source: The model that was cut.
    """

    bottom: keras.Model
    top: keras.Model
    frontier: tuple[str, ...]
    free: tuple[str, ...]
    source: keras.Model
    _graph: Graph = field(repr=False)
    _before: Snapshot = field(repr=False)
    _cut: Cut = field(repr=False)

    def __iter__(self):
        """Unpack as `bottom, top = split(...)`."""
        return iter((self.bottom, self.top))

    @cached_property
    def shared(self) -> tuple[str, ...]:
        """The paths of weights that both parts use, such as those of tied layers."""
        below, above = (
            {
                id(variable): variable
                for call in self._graph.calls
                if self._cut.top[call.index] is top
                for variable in call.variables
            }
            for top in (False, True)
        )
        return tuple(variable.path for key, variable in above.items() if key in below)

    @checked(SurgeryError)
    def verify(self, x: Any = None, expected: Any = None) -> Certificate:
        """Run the model and its parts on the same inputs.

        Args:
            x: Inputs in the model's structure; None makes random ones of the right dtypes and
                ranges, always the same.
            expected: What the model gives for `x`, to save running it; None runs it.

        Returns:
            The certificate.

        Raises:
            CertificateError: The outputs differ, or weights or flags were lost or changed.

        Example:
            >>> inputs = keras.Input((4,), name="x")
            >>> hidden = keras.layers.Dense(3, name="hidden")(inputs)
            >>> outputs = keras.layers.Dense(1, name="head")(hidden)
            >>> model = keras.Model(inputs, outputs, name="m")
            >>> split(model, "hidden").verify().parameters_conserved
            True
        """
        try:
            return certify(self._graph, [self.bottom, self.top], self._before, x, expected)
        except ReusekitError:
            raise
        except Exception as error:
            if x is None and expected is None:
                raise
            raise SurgeryError(
                f"Expected x, and expected, as {self.source.name!r} takes and gives them, of "
                f"shapes {self.source.input_shape} and {self.source.output_shape}. Received what "
                f"cannot be compared: {reason(error)}"
            ) from error


@checked(SurgeryError)
def split(model: keras.Model | Graph, at: At, strict: bool = False) -> Split:
    """Cut a model in two at any of its tensors.

    The top is everything that depends on `at`; the frontier is `at` and every other tensor, made by
    what does not depend on it, that the top reads or the model puts out: skip connections, masks,
    other inputs. Nested models are cut inside where the address says so, and stay whole elsewhere.

    Both parts share the model's weights: training one trains the model. They are made of the
    model's own layers and stock Keras layers, and survive saving where reusekit is not installed,
    as far as each layer comes back from its own configuration (not all of KerasHub's do). They are
    plain functional models, also where the model is of a class of its own, such as a KerasHub
    backbone: what such a class adds stays with the model.

    The model is not changed, except that Keras keeps, on each layer of the top (and of a nested
    model that is cut inside), a record of each call for as long as the layer lives, a little more
    than a kilobyte each, also when the top is gone: a split of MobileNetV2 in the middle leaves
    115 KB. Split once and keep the result, or split a clone, which takes its records with it. A
    refused split leaves no record.

    Args:
        model: A model with a functional graph, or one that was read already.
        at: An address, a `CutPoint`, a Keras tensor, or a list of these.
        strict: Whether to refuse a cut at which anything crosses beside `at` and free tensors.

    Returns:
        The two parts.

    Raises:
        AddressError: `at` names no tensor of the model, or several.
        CutOrderError: One of several tensors asked for depends on another.
        WideCutError: `strict`, and more would cross; the message names what, and the nearest clean
            cuts.
        NoGraphError: The model has no functional graph.

    Example:
        >>> inputs = keras.Input((4,), name="x")
        >>> hidden = keras.layers.Dense(3, name="hidden")(inputs)
        >>> model = keras.Model(inputs, keras.layers.Dense(1, name="head")(hidden), name="m")
        >>> bottom, top = split(model, "hidden")
        >>> bottom.output_shape, top.input_shape, top.count_params()
        ((None, 3), (None, 3), 4)
    """
    graph = read(model)
    before = Snapshot.of(graph.model)
    place = cut(graph, resolve(graph, at))
    if strict and place.width > len(place.at):
        raise WideCutError(_too_wide(graph, place.at, place.frontier, place.free))
    bottom, top = build_stages(graph, stages(graph, [place]), ("bottom", "top"))
    return Split(
        bottom=bottom,
        top=top,
        frontier=tuple(tensor.address for tensor in place.frontier),
        free=tuple(tensor.address for tensor in place.frontier if tensor in place.free),
        source=graph.model,
        _graph=graph,
        _before=before,
        _cut=place,
    )


def build_stages(graph: Graph, parts: list[Stage], suffixes: tuple[str, ...]) -> list[keras.Model]:
    """Return one model for each stage. All are planned before the first is built."""
    plans = [plan(graph, part.calls, part.fed, part.passed) for part in parts]
    models = []
    for number, (part, steps, suffix) in enumerate(zip(parts, plans, suffixes, strict=True)):
        if number == 0:
            values = _from_inputs(graph, steps)
            inputs = keras.tree.map_structure(graph.surface.get, graph.input_structure)
        else:
            inputs, engine = _from_placeholders(graph, steps, part.fed)
            values = engine.values
        if number == len(parts) - 1:
            outputs = engine.outputs(graph)
        else:
            outputs = singleton([values[tensor] for tensor in part.passed])
        name = f"{graph.model.name}_{suffix}"
        models.append(assemble(inputs, outputs, name, len(graph.calls)))
        remember_source(models[-1], graph)
    return models


def _from_inputs(graph: Graph, steps: list[Step]) -> Mapping[Tensor, keras.KerasTensor]:
    """Return the tensors that the first stage makes from the model's own inputs."""
    if not graph.masks and graph.own_steps.issuperset(steps):
        # The model's own calls on its own tensors: all of it is there already.
        return graph.surface
    engine = Rebuild({tensor: tensor.source for tensor in graph.inputs})
    engine.run(graph, steps)
    return engine.values


def _from_placeholders(
    graph: Graph, steps: list[Step], fed: tuple[Tensor, ...]
) -> tuple[Any, Rebuild]:
    """Return the inputs of a later stage, and what it makes of them."""
    engine = Rebuild()
    engine.reserve(graph, steps)
    # First, since a placeholder gives way to a layer of its name.
    engine.claim(steps)
    inputs = [placeholder(tensor, engine.names) for tensor in fed]
    engine.values.update(zip(fed, inputs, strict=True))
    engine.run(graph, steps)
    return singleton(inputs), engine


def _too_wide(
    graph: Graph,
    at: tuple[Tensor, ...],
    frontier: tuple[Tensor, ...],
    free: frozenset[Tensor],
) -> str:
    missing = [t.address for t in frontier if t not in free and t not in at]
    asked = ", ".join(repr(tensor.address) for tensor in at)
    place = graph.maker[at[0]].index
    before, after = None, None
    for point in cut_points(graph):
        index = graph.maker[graph.names[point.at]].index
        if index < place:
            before = point.at
        elif index > place and after is None:
            after = point.at
    near = [
        f"{address!r} {where}"
        for address, where in ((before, "before it"), (after, "after it"))
        if address is not None
    ]
    return (
        f"Expected a clean cut of model {graph.model.name!r}, received {asked}, where "
        f"{', '.join(map(repr, missing))} would cross as well. "
        f"Nearest clean cuts: {' and '.join(near) if near else 'none'}."
    )
