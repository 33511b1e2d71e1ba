"""From tensors to a `keras.Model`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from reusekit.graph import Tensor, keras_internals
from reusekit.surgery.names import Names


def assemble(
    inputs: Any, outputs: Any, name: str, calls: int, trainable: bool | None = None
) -> keras.Model:
    """Return a functional model, however deep.

    Args:
        inputs: Keras tensors in the structure the model is to be called on.
        outputs: Keras tensors in the structure it is to return.
        name: Its name.
        calls: About how many calls it has.
        trainable: The model's own flag; those of its layers stay as they are.

    Returns:
        The model. Its weights are those of the layers it is made of.
    """
    with _room_for(calls):
        return keras.Model(inputs, outputs, name=name, trainable=trainable)


@contextmanager
def _room_for(calls: int) -> Iterator[None]:
    """Raise the recursion limit: Keras sorts a graph with a frame for each call on a path."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 2 * calls + 1000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def placeholder(
    tensor: Tensor, names: Names, shape: tuple[int | None, ...] | None = None
) -> keras.KerasTensor:
    """Return a model input that stands for a tensor of another model, named by its address.

    Args:
        tensor: The tensor.
        names: The names taken in the model being built.
        shape: Another shape than the tensor's, batch included.
    """
    return keras.Input(
        batch_shape=tensor.shape if shape is None else shape,
        dtype=tensor.dtype,
        sparse=tensor.source.sparse,
        ragged=tensor.source.ragged,
        optional=keras_internals.is_optional(tensor.source),
        name=names.unique(tensor.address),
    )


def singleton(values: list) -> Any:
    """Return the value itself where there is one, else the list."""
    return values[0] if len(values) == 1 else values
