"""The part of a model before a cut with its augmentation at work, all else in inference mode."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np

from reusekit.features.key import tensor_digests
from reusekit.features.randomness import random_before
from reusekit.graph import Call, Graph, ancestors, keras_internals
from reusekit.graph.padding_mask import AUTO
from reusekit.surgery import rates
from reusekit.surgery.copies import Copier
from reusekit.surgery.extraction import taps


def augmented(
    graph: Graph, wanted: Any, pooling: str | None, mask: Any = AUTO
) -> tuple[keras.Model, Callable[..., None]]:
    """Extract as `extract` does, with augmentation active in inference mode.

    Layers that vary the data in training (see `random_before`) are called in training mode, in
    `predict` as well; everything else is in inference mode, inside `fit` as well. The layers that
    draw random numbers are copies, so that the model's generators stay as they are. One that holds
    an augmenting layer beside others is called in training mode as a whole; those others are frozen
    and silenced as by `freeze`.

    Args:
        graph: A model that was read.
        wanted: Tensors of it, in the structure of the output.
        pooling: As for `extract`.
        mask: As for `extract`.

    Returns:
        The model, and a function that makes its random numbers follow from some integers, none of
        them negative: whatever the layers are called and whatever else is wanted. It cannot reach
        layers that hold no generator (`Randomness.unseeded`).
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
    model = taps(graph, wanted, pooling, in_mode, mask)
    return model, partial(_reseed, _sources(graph, copies))


def _sources(
    graph: Graph, copies: Mapping[Call, keras.Layer]
) -> list[tuple[tuple[int, ...], keras.random.SeedGenerator]]:
    """Return each random generator with numbers that identify it in every process."""
    digests = tensor_digests(graph, [call.outputs[0] for call in copies])
    met: Counter[str] = Counter()  # two calls may do the same to the same tensor
    found: list[tuple[tuple[int, ...], Any]] = []
    for call, copy in copies.items():
        digest = digests[call.outputs[0]]
        for number, generator in enumerate(keras_internals.generators(copy)):
            found.append(((int(digest, 16), met[digest], number), generator))
        met[digest] += 1
    return found


def _reseed(
    sources: Iterable[tuple[tuple[int, ...], keras.random.SeedGenerator]], *entropy: int
) -> None:
    for numbers, generator in sources:
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
