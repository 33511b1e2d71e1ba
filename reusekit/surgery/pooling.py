"""Pooling that passes over what a mask leaves out, of stock operations."""

from collections.abc import Callable

import keras
import ml_dtypes
from keras import ops

from reusekit.graph import keras_internals

Name = Callable[[str], str]
"""From what an operation does, or nothing for the last one, to its name in the model."""


def masked_pool(
    features: keras.KerasTensor, mask: keras.KerasTensor, pooling: str, name: Name
) -> keras.KerasTensor:
    """Pool the positions that a mask keeps; an example of which it keeps none gives zeros.

    Args:
        features: Shape (batch, length, ..., channels).
        mask: Shape (batch, length), or further axes of the features; 0 and False are passed over.
        pooling: "avg", "max", or "token": the first position that is kept.
        name: Names the operations.

    Returns:
        Shape (batch, channels), in the features' dtype; sums are made in float32 or better.
    """

    def step(what: str, made: keras.KerasTensor) -> keras.KerasTensor:
        return keras_internals.named(made, name(what))

    inner = tuple(range(len(mask.shape), len(features.shape) - 1))
    if inner:
        reduce = ops.max if pooling == "max" else ops.mean
        features = step("inner", reduce(features, axis=inner))
    features, mask = _positions(features, mask, name)
    keep = kept(mask, name)
    keep_all = step("kept_channels", ops.expand_dims(keep, -1))
    if pooling == "max":
        lowest = float(ml_dtypes.finfo(features.dtype).min)
        highest = step("highest", ops.max(ops.where(keep_all, features, lowest), axis=1))
        _name_of_where(highest, name)
        return zero_where_empty(highest, keep, name)
    if pooling == "token":
        number = step("number", ops.cumsum(step("counted", ops.cast(keep, "int32")), axis=1))
        first = step("first_one", ops.equal(number, 1))
        first = step("first_kept", ops.logical_and(first, keep))
        chosen = step("first_channels", ops.expand_dims(first, -1))
        return step("", ops.sum(step("chosen", ops.where(chosen, features, 0)), axis=1))
    dtype = features.dtype
    exact = keras.backend.result_type(dtype, "float32")
    if exact != dtype:
        features = step("exact", ops.cast(features, exact))
    total = step("total", ops.sum(step("chosen", ops.where(keep_all, features, 0)), axis=1))
    count = step("count", ops.sum(step("ones", ops.cast(keep, exact)), axis=1, keepdims=True))
    mean = ops.divide(total, step("at_least_one", ops.maximum(count, 1)))
    return step("", mean) if exact == dtype else step("", ops.cast(step("mean", mean), dtype))


def kept(mask: keras.KerasTensor, name: Name) -> keras.KerasTensor:
    """Return a mask as booleans."""
    if mask.dtype == "bool":
        return mask
    return keras_internals.named(ops.cast(mask, "bool"), name("kept"))


def zero_where_empty(
    pooled: keras.KerasTensor, keep: keras.KerasTensor, name: Name
) -> keras.KerasTensor:
    """Set pooled features to zero for examples of which no position is kept."""
    some = keras_internals.named(ops.any(keep, axis=1, keepdims=True), name("any"))
    return keras_internals.named(ops.where(some, pooled, 0), name(""))


def _positions(
    features: keras.KerasTensor, mask: keras.KerasTensor, name: Name
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return features and mask with one axis of positions."""
    if len(mask.shape) == 2:
        return features, mask
    positions = keras.layers.Reshape((-1, features.shape[-1]), name=name("positions"))
    return positions(features), keras.layers.Reshape((-1,), name=name("mask"), dtype=mask.dtype)(
        mask
    )


def masked_positions(
    features: keras.KerasTensor, mask: keras.KerasTensor, name: Name
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return features as (batch, positions, channels), and the positions kept."""
    keep = kept(mask, name)
    while len(keep.shape) < len(features.shape) - 1:
        axis = len(keep.shape)
        wide = keras_internals.named(ops.expand_dims(keep, -1), name(f"axis_{axis}"))
        others = tuple(range(axis + 1, len(features.shape)))
        longer = keras_internals.named(ops.max(features, axis=others), name(f"slice_{axis}"))
        like = keras_internals.named(ops.ones_like(longer, dtype="bool"), name(f"ones_{axis}"))
        keep = keras_internals.named(ops.logical_and(wide, like), name(f"kept_{axis}"))
    return _positions(features, keep, name)


def _name_of_where(tensor: keras.KerasTensor, name: Name) -> None:
    (inner,) = keras_internals.producer(tensor).inputs
    keras_internals.named(inner, name("chosen"))
