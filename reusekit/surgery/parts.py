"""The parts of a model that is cut once or several times."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import keras

from reusekit.arguments import checked
from reusekit.errors import (
    AddressError,
    CutOrderError,
    ReusekitError,
    SurgeryError,
    WideCutError,
    reason,
)
from reusekit.graph import Call, Cut, Graph, Tensor, cut, cut_points, read, resolve
from reusekit.graph.addresses import At
from reusekit.graph.padding_mask import remember_whole
from reusekit.surgery.certificate import Certificate, Snapshot, certify
from reusekit.surgery.engine import Rebuild, assemble, singleton
from reusekit.surgery.steps import steps_between


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
            expected: The model's outputs for `x`, to save running it; None runs it.

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
                f"shapes {self.source.input_shape} and {self.source.output_shape}. Received: what "
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
    made = cut(graph, resolve(graph, at))
    if strict and made.width > len(made.at):
        raise WideCutError(_too_wide(graph, made.at, made.frontier, made.free))
    bottom, top = _built(graph, [made], ("bottom", "top"))
    return Split(
        bottom=bottom,
        top=top,
        frontier=tuple(tensor.address for tensor in made.frontier),
        free=tuple(tensor.address for tensor in made.frontier if tensor in made.free),
        source=graph.model,
        _graph=graph,
        _before=before,
        _cut=made,
    )


@checked(SurgeryError)
def segment(model: keras.Model | Graph, at: At) -> list[keras.Model]:
    """Cut a model several times into a chain that gives its outputs.

    Tensors that an early segment makes and a late one reads are handed through by those between.
    All share the model's weights and are plain functional models, as in `split`.

    Args:
        model: A model with a functional graph, or one that was read already.
        at: Cuts from shallow to deep, each whatever `split` takes.

    Returns:
        One model more than there are cuts. Feeding the inputs through them in order gives what the
        model gives.

    Raises:
        AddressError: There are no cuts, or one names no tensor of the model.
        CutOrderError: The cuts are not in order, or one does not depend on the one before it.
        NoGraphError: The model has no functional graph.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dense(3, name="a")(x)
        >>> y = keras.layers.Dense(2, name="b")(y)
        >>> model = keras.Model(x, keras.layers.Dense(1, name="c")(y), name="m")
        >>> [(part.name, part.output_shape) for part in segment(model, ["a", "b"])]
        [('m_0', (None, 3)), ('m_1', (None, 2)), ('m_2', (None, 1))]
    """
    graph = read(model)
    if isinstance(at, str) or not isinstance(at, Sequence) or not at:
        raise AddressError(f"Expected a list of at least one cut. Received: {at!r}.")
    cuts = [cut(graph, resolve(graph, one)) for one in at]
    return _built(graph, cuts, map(str, range(len(cuts) + 1)))


@dataclass(frozen=True, eq=False)
class _Stage:
    """A part of a graph between two cuts.

    Attributes:
        fed: The tensors it is fed: the model's inputs for the first stage.
        calls: The calls it makes, in order.
        passed: The tensors it hands on to the next: the model's outputs for the last stage.
    """

    fed: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    passed: tuple[Tensor, ...]


def _stages(graph: Graph, cuts: Sequence[Cut]) -> list[_Stage]:
    """Return the stages of a graph that is cut several times, shallow to deep.

    A tensor that an early stage makes and a late one reads is passed on by all stages between.

    Args:
        graph: The graph.
        cuts: Cuts of it; each must lie before the next.

    Returns:
        One stage more than there are cuts.

    Raises:
        CutOrderError: A cut does not lie before the next one.
    """
    for earlier, later in pairwise(cuts):
        if any(top and not above for above, top in zip(earlier.top, later.top, strict=True)) or (
            set(later.at) & set(earlier.at)
        ):
            raise CutOrderError(
                f"Expected cuts from shallow to deep, each depending on the one before. Received: "
                f"{[t.address for t in earlier.at]} before {[t.address for t in later.at]}."
            )
    # A call belongs to the stage with the number of the cuts that it depends on.
    stage = [sum(tops) for tops in zip(*(one.top for one in cuts), strict=True)]
    last_read = dict.fromkeys(graph.outputs, len(cuts))
    for call in graph.calls:
        for tensor in call.reads:
            last_read[tensor] = max(last_read.get(tensor, 0), stage[call.index])
    borders = [graph.inputs]
    for number, one in enumerate(cuts, start=1):
        crossing = [
            tensor
            for call in graph.calls
            if stage[call.index] < number
            for tensor in call.outputs
            if last_read.get(tensor, 0) >= number
        ]
        borders.append(tuple(dict.fromkeys((*one.at, *crossing))))
    borders.append(graph.outputs)
    return [
        _Stage(
            borders[number],
            tuple(call for call in graph.calls if stage[call.index] == number),
            borders[number + 1],
        )
        for number in range(len(cuts) + 1)
    ]


def _built(graph: Graph, cuts: Sequence[Cut], suffixes: Iterable[str]) -> list[keras.Model]:
    """Return one model for each stage. Steps are found for all before the first is built."""
    found = _stages(graph, cuts)
    steps = [steps_between(graph, stage.calls, stage.fed, stage.passed) for stage in found]
    models: list[keras.Model] = []
    for stage, own, suffix in zip(found, steps, suffixes, strict=True):
        engine = Rebuild()
        values: Mapping[Tensor, keras.KerasTensor] = engine.values
        if models:
            engine.reserve(graph, own)
            # First, since a placeholder gives way to a layer of its name.
            engine.claim(own)
            inputs = singleton(engine.add_inputs(stage.fed))
            engine.run(graph, own)
        else:
            inputs = keras.tree.map_structure(graph.surface.get, graph.input_structure)
            engine.values.update((tensor, tensor.keras_tensor) for tensor in graph.inputs)
            if not graph.masks and graph.own_steps.issuperset(own):
                # The model's own calls on its own tensors: all of it is there already.
                values = graph.surface
            else:
                engine.run(graph, own)
        if stage is found[-1]:
            outputs = engine.outputs(graph)
        else:
            outputs = singleton([values[tensor] for tensor in stage.passed])
        models.append(assemble(inputs, outputs, f"{graph.model.name}_{suffix}", len(graph.calls)))
        remember_whole(models[-1], graph)
    return models


def _too_wide(
    graph: Graph,
    at: tuple[Tensor, ...],
    frontier: tuple[Tensor, ...],
    free: frozenset[Tensor],
) -> str:
    missing = [t.address for t in frontier if t not in free and t not in at]
    asked = ", ".join(repr(tensor.address) for tensor in at)
    here = graph.maker[at[0]].index
    before, after = None, None
    for point in cut_points(graph):
        index = graph.maker[graph.names[point.at]].index
        if index < here:
            before = point.at
        elif index > here and after is None:
            after = point.at
    near = [
        f"{address!r} {where}"
        for address, where in ((before, "before it"), (after, "after it"))
        if address is not None
    ]
    return (
        f"Expected a clean cut of model {graph.model.name!r}. Received: {asked}, where "
        f"{', '.join(map(repr, missing))} would cross as well. "
        f"Nearest clean cuts: {' and '.join(near) if near else 'none'}."
    )
