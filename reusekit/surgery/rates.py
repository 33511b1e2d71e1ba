"""The rates by which layers drop values or add noise in training: set to 0, and brought back."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import keras

from reusekit.graph import keras_internals

# The arguments by which KerasHub's layers are told how much to drop, as it documents them.
_HUB_RATES = frozenset(
    {
        "activation_dropout",
        "attention_dropout",
        "attention_dropout_rate",
        "attn_drop",
        "drop_path",
        "drop_path_rate",
        "drop_prob",
        "drop_rate",
        "dropout",
        "dropout_p",
        "dropout_rate",
        "feedforward_dropout_rate",
        "hidden_dropout_rate",
        "max_drop_path_rate",
        "proj_drop",
        "rate",
    }
)

# From each silenced layer to the rates that it had.
_silenced: WeakKeyDictionary[keras.Layer, dict[str, float]] = WeakKeyDictionary()


def is_stock(layer: keras.Layer) -> bool:
    """Return whether a layer's code is Keras's or KerasHub's, and not the user's."""
    ours = isinstance(layer, keras.layers.Lambda)
    return not ours and type(layer).__module__.partition(".")[0] in ("keras", "keras_hub")


def rates(layer: keras.Layer) -> dict[str, float]:
    """Return the attributes by which a layer is told how much to drop, with their values.

    Known are Keras's layers (dropout, noise, recurrent cells, attention, stochastic depth) and
    those of KerasHub, by their documented arguments; of a user's own layer nothing is known, unless
    its class derives from one of these.

    Example:
        >>> rates(keras.layers.GaussianNoise(0.5)), rates(keras.layers.RandomFlip())
        ({'stddev': 0.5}, {})
    """
    kind: type = type(layer)
    names = keras_internals.rate_attributes(layer) or _hub_rates(kind)
    found: dict[str, Any] = {name: getattr(layer, name, None) for name in names}
    return {
        name: value for name, value in found.items() if type(value) in (int, float) and value >= 0
    }


@cache
def _hub_rates(kind: type) -> tuple[str, ...]:
    if kind.__module__.partition(".")[0] != "keras_hub":
        return ()
    return tuple(name for name in inspect.signature(kind).parameters if name in _HUB_RATES)


def silence(layer: keras.Layer) -> None:
    """Set the rates of a layer, not of those inside it, to 0, and remember what they were.

    Example:
        >>> layer = keras.layers.Dropout(0.1)
        >>> silence(layer)
        >>> layer.rate, silenced(layer)
        (0.0, {'rate': 0.1})
        >>> restore(layer)
        >>> layer.rate, silenced(layer)
        (0.1, {})
    """
    for name, rate in rates(layer).items():
        if rate > 0:
            _silenced.setdefault(layer, {})[name] = rate
            setattr(layer, name, 0.0)


def restore(layer: keras.Layer) -> None:
    """Give a layer back the rates that `silence` took, where nobody has set others since."""
    for name, rate in _silenced.pop(layer, {}).items():
        if getattr(layer, name) == 0:
            set_rate(layer, name, rate)


def set_rate(layer: keras.Layer, name: str, rate: float) -> None:
    """Set one rate of a layer, which may have been made with a rate of 0."""
    if rate > 0 and keras_internals.rate_attributes(layer):
        keras_internals.give_generator(layer)
    setattr(layer, name, rate)


def silenced(layer: keras.Layer) -> dict[str, float]:
    """Return the rates that a silenced layer had; none of another one."""
    return {
        name: rate
        for name, rate in _silenced.get(layer, {}).items()
        if getattr(layer, name, None) == 0
    }


def hand_on(layer: Any, copy: Any) -> None:
    """Remember for a copy of a layer the rates that the layer had before it was silenced."""
    if layer in _silenced:
        _silenced[copy] = dict(_silenced[layer])


def drops(layer: keras.Layer) -> bool:
    """Return whether a layer itself drops values or adds noise in training, by its rates."""
    return any(rate > 0 for rate in rates(layer).values())


@contextmanager
def as_made(layers: Iterable[keras.Layer]) -> Iterator[list[bool]]:
    """Give silenced layers their rates for a while, so that copies are made as they were made.

    A Dropout made with a rate of 0 has no random generator, hence other state than the original.

    Yields:
        Whether each of the layers is silenced.
    """
    layers = list(layers)
    found = [bool(silenced(layer)) for layer in layers]
    for layer, was in zip(layers, found, strict=True):
        if was:
            restore(layer)
    try:
        yield found
    finally:
        for layer, was in zip(layers, found, strict=True):
            if was:
                silence(layer)


@contextmanager
def at_zero(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Set the rates of layers to 0 for a while."""
    loud = [layer for layer in layers if drops(layer)]
    for layer in loud:
        silence(layer)
    try:
        yield
    finally:
        for layer in loud:
            restore(layer)
