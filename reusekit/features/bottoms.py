"""Models from the inputs to what crosses a cut: as they are, augmenting, or in bfloat16."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reusekit.features.frontiers import Frontier
from reusekit.features.key import Extraction, tensor_digests
from reusekit.features.lengths import Lengths, Run, frontier_lengths
from reusekit.features.randomness import is_augmenting, random_before
from reusekit.graph import Graph, ancestors, keras_internals, read
from reusekit.graph.padding_mask import AUTO
from reusekit.surgery import extract, rates
from reusekit.surgery.clones import twin_of
from reusekit.surgery.copies import Copier
from reusekit.surgery.extraction import taps

Reseed = Callable[..., None]
"""Sets the random numbers of a model so that they follow from some integers, none negative."""


@dataclass(frozen=True, eq=False)
class Bottom:
    """A bottom that computes what is stored of some frontiers of a model, one batch a call.

    `view` is the number of an augmented view; None where nothing is varied.
    """

    graph: Graph
    frontiers: tuple[Frontier, ...]
    extraction: Extraction
    view: int | None = None

    @cached_property
    def lengths(self) -> Lengths | None:
        """The lengths of texts, where these may be shorter than they are filled up to."""
        return frontier_lengths(self.frontiers) if self.view is None else None

    @cached_property
    def _tapped(self) -> tuple[Run, Reseed]:
        running = in_compute_dtype(self.graph, self.extraction.compute_dtype)
        return tapped(running, self.frontiers, self.view is not None)

    def __call__(self, given: Any) -> Any:
        """Return what is stored of each frontier, given the number of a batch and its inputs.

        Of texts by their length it is given a `Window`, and returns the same of that.
        """
        run, reseed = self._tapped
        size, dtype = self.extraction.batch_size, self.extraction.dtype
        if self.lengths is not None:
            window = self.lengths.run(run, given, size)
            return replace(window, held=_as_stored(window.held, dtype))
        number, inputs = given
        if self.view is not None:
            reseed(self.view, self.extraction.seed, size, number)
        return _as_stored(run(inputs), dtype)


def _as_stored(made: Sequence[dict[str, Any]], dtype: str | None) -> list[dict[str, np.ndarray]]:
    def converted(values: Any) -> np.ndarray:
        values = keras.ops.convert_to_numpy(values)
        if dtype is None or not keras.backend.is_float_dtype(values.dtype.name):
            return values
        with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused
            return values.astype(dtype)

    return [{name: converted(values) for name, values in one.items()} for one in made]


def tapped(graph: Graph, frontiers: Sequence[Frontier], augment: bool) -> tuple[Run, Reseed]:
    """Return a function from a batch of inputs to what is stored of each frontier, in one run.

    With `augment`, the layers that vary the data do so; the second function reseeds them. The last
    one is kept with the graph: plan and examples run what was traced once.
    """
    asked = [(one.names, one.pooling, one.pooled_under) for one in frontiers]
    known, made = graph.kept.get(tapped, (None, None))
    if augment or known != asked:
        any_length = not augment and frontier_lengths(frontiers) is not None
        made = _tapped(graph, frontiers, augment, any_length)
        if not augment:
            graph.kept[tapped] = asked, made
    return made


def _tapped(
    graph: Graph, frontiers: Sequence[Frontier], augment: bool, any_length: bool
) -> tuple[Run, Reseed]:
    hows = [(one.pooling, one.pooled_under if one.pooling else None) for one in frontiers]
    graph = read(graph, keep_masks=any(mask is not None for _, mask in hows))
    # Found by the whole model, a mask is given to the part of it that is tapped.
    masks = {mask for _, mask in hows if mask not in (None, AUTO)}
    names = {*(name for one in frontiers for name in one.names), *masks}
    tensors = {name: graph.names[name] for name in sorted(names)}
    whole, reseed = (
        augmented(graph, tensors, None) if augment else (extract(graph, tensors), _nothing)
    )
    outputs: dict[str, dict[str, Any]] = {}
    for pooling, mask in dict.fromkeys(hows):
        alike = [one for one, how in zip(frontiers, hows, strict=True) if how == (pooling, mask)]
        wanted = {name: whole.output[name] for one in alike for name in one.names}
        under = whole.output[mask] if mask in masks else mask
        outputs[f"{pooling} {mask}"] = extract(whole, wanted, pooling, under).output
    model = keras.Model(whole.input, outputs, name=whole.name)
    predict = _traced_once(model, any_length)

    def run(inputs: Any) -> list[dict[str, Any]]:
        made = predict(inputs)
        return [
            {name: made[f"{how[0]} {how[1]}"][name] for name in one.names}
            for one, how in zip(frontiers, hows, strict=True)
        ]

    return run, reseed


def _traced_once(model: keras.Model, any_length: bool) -> Callable[[Any], Any]:
    """Return a model as a function that is traced for the first batch, with its size left open.

    `predict_on_batch` is traced twice: for the first size, and again for that of the last batch.
    """
    open_axes = (None, None) if any_length else (None,)
    traced: dict[str, Callable] = {}

    def predict(inputs: Any) -> Any:
        specs = keras.tree.map_structure(
            lambda p: tf.TensorSpec((*open_axes, *p.shape[len(open_axes) :]), p.dtype), inputs
        )
        if repr(specs) not in traced:  # the first batch, or one of other examples
            traced.clear()
            run = tf.function(partial(model, training=False), input_signature=[specs])
            traced[repr(specs)] = run
        return traced[repr(specs)](inputs)

    return predict


def _nothing(*_: int) -> None:
    pass


def computing(target: Frontier, augment: bool) -> tuple[keras.Model, Reseed]:
    """Return the model from the inputs to what crosses, in order, and what reseeds it."""
    if augment:
        return augmented(target.graph, list(target.crossing), target.pooling, target.pooled_under)
    addresses = [tensor.address for tensor in target.crossing]
    return extract(target.graph, addresses, target.pooling, target.pooled_under), _nothing


def in_compute_dtype(model: keras.Model | Graph, compute_dtype: str | None) -> Graph:
    """Return a copy of a model that computes in another precision, its weights kept in float32.

    Every layer whose policy is float32 gets Keras's mixed policy, but for augmentation: bfloat16
    cannot tell the positions of neighbouring pixels apart. Its outputs have the dtype that they
    were computed in; the dtypes that Keras noted when the model was built stay as they were, and so
    do addresses. None gives the model itself.
    """
    if compute_dtype is None:
        return read(model)
    copy = twin_of(read(model).model, "copy")
    for layer in keras_internals.all_layers(copy):
        if layer.dtype_policy.name == "float32" and not is_augmenting(layer):
            layer.dtype_policy = f"mixed_{compute_dtype}"
    return read(copy)


def augmented(
    graph: Graph, wanted: Any, pooling: str | None, mask: Any = AUTO
) -> tuple[keras.Model, Reseed]:
    """Extract as `extract` does, with augmentation active in inference mode.

    Layers that vary the data in training (see `random_before`) are called in training mode, in
    `predict` as well; everything else is in inference mode, inside `fit` as well. The layers that
    draw random numbers are copies, so that the model's generators stay as they are. One that holds
    an augmenting layer beside others is called in training mode as a whole; those others are frozen
    and silenced as by `freeze`. The second function reseeds them, whatever they are called and
    whatever else is wanted, but for layers that hold no generator (`Randomness.unseeded`).
    """
    if isinstance(mask, str) and mask != AUTO:
        mask = graph.names[mask]
    tensors = keras.tree.flatten(wanted)
    found = random_before(graph, tensors)
    names = {*found.augmenting, *found.always}
    calls = [call for call in ancestors(graph, tensors) if call.address in names]
    # A copy for each call, not layer: which of its calls are made must not matter to the others.
    copies = {call: Copier().copy(call.operation) for call in calls}
    in_mode = {c: _InMode(copy, c.address in found.augmenting) for c, copy in copies.items()}
    digests = tensor_digests(graph, [call.outputs[0] for call in calls])
    met: Counter[str] = Counter()  # two calls may do the same to the same tensor
    generators = []  # each generator with numbers that identify it in every process
    for call, copy in copies.items():
        digest = digests[call.outputs[0]]
        for number, generator in enumerate(keras_internals.generators(copy)):
            generators.append(((int(digest, 16), met[digest], number), generator))
        met[digest] += 1
    return taps(graph, wanted, pooling, in_mode, mask), partial(_reseed, generators)


def _reseed(generators: Sequence[tuple[tuple[int, ...], Any]], *entropy: int) -> None:
    for numbers, generator in generators:
        state = np.random.SeedSequence([*entropy, *numbers]).generate_state(2)
        # Some backends keep the state as int32.
        generator.state.assign((state % 2**31).astype("int32"))


class _InMode(keras.Layer):
    """Calls a layer in training or in inference mode, whatever mode it is called in."""

    def __init__(self, layer: keras.Layer, training: bool) -> None:
        super().__init__(name=layer.name, dtype=layer.dtype_policy, autocast=False)
        self.layer = layer
        self._mode = {"training": training} if keras_internals.takes(layer, "training") else {}
        layer.trainable = False
        for part in keras_internals.all_layers(layer):
            rates.silence(part)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **{**kwargs, **self._mode})
