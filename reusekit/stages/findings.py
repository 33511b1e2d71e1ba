"""Findings of an examination, and the mends that repair what was found."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras

from reusekit.backbones.preprocessing import scaling
from reusekit.graph import keras_internals, read
from reusekit.graph.addresses import without_call_number
from reusekit.sharing import tie
from reusekit.surgery import prepend, rates, remove

Mend = Callable[[keras.Model], keras.Model]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a model.

    Attributes:
        address: The address of the layer, or "" for the model.
        what: What is wrong, and what follows from it.
        remedy: What to do.
        reported: A public report of it.
        mend: Makes a model without it; None where nobody but the user can tell how.
        check: The check that found it.
    """

    address: str
    what: str
    remedy: str
    reported: str = ""
    mend: Mend | None = field(default=None, repr=False, compare=False)
    check: str = ""


def scaled(model: keras.Model, name: str) -> keras.Model:
    """Return a model that brings its inputs to a range first, by the name of the range."""
    made = scaling(name, tuple(model.inputs[0].shape[1:]))
    return model if made is None else prepend(model, made)


def _layer_at(model: keras.Model, address: str) -> keras.Layer:
    calls = (call for call in read(model).calls if without_call_number(call.address) == address)
    return next(calls).operation


def without(address: str) -> Mend:
    """Return a mend that takes out the layer at an address."""
    return lambda model: remove(model, address)


def tied(a: str, b: str, transform: Any) -> Mend:
    """Return a mend that ties two weights again."""
    return lambda model: tie(model, a, b, transform)


def frozen_at(address: str) -> Mend:
    """Return a mend that freezes the layer at an address."""

    def mend(model: keras.Model) -> keras.Model:
        _layer_at(model, address).trainable = False
        return model

    return mend


def silent_at(address: str) -> Mend:
    """Return a mend that sets the rates of the layer at an address to 0."""

    def mend(model: keras.Model) -> keras.Model:
        for part in keras_internals.all_layers(_layer_at(model, address)):
            rates.silence(part)
        return model

    return mend
