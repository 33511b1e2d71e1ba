"""Pooling of features of any rank to one vector."""

from collections.abc import Callable
from typing import Any, Literal

import keras
from keras import layers, ops

from reusekit.errors import HeadError
from reusekit.graph import keras_internals
from reusekit.surgery.extraction import masked_pool, masked_positions, zero_where_empty

Pooling = Literal["avg", "max", "token", "attention", "flatten", "concatenated"]

_AVERAGE = {
    1: layers.GlobalAveragePooling1D,
    2: layers.GlobalAveragePooling2D,
    3: layers.GlobalAveragePooling3D,
}
_MAX = {1: layers.GlobalMaxPooling1D, 2: layers.GlobalMaxPooling2D, 3: layers.GlobalMaxPooling3D}
_CHANNELS = "channels_last"  # as the shapes below say, whatever the user's keras.json does
_ATTENTION_WIDTH = (
    64  # of the projections in which positions are compared; fewer where channels are
)


def pool(features: keras.KerasTensor, pooling: Pooling, name: str) -> keras.KerasTensor:
    """Make one vector for each example.

    Args:
        features: Shape (batch, channels), which is taken as it is; or (batch, length, channels),
            (batch, height, width, channels), (batch, depth, height, width, channels).
        pooling: "avg" or "max" over all positions; "concatenated": the two of them;
            "attention": an average whose weights are learned; "flatten": every position's channels
            side by side; "token": the first position of a sequence.
        name: The beginning of the names of the layers.

    Returns:
        Shape (batch, channels), for "concatenated" twice and for "flatten" many times as wide.

    Raises:
        HeadError: Another rank, or an axis of unknown length that would have to be known.
    """
    spatial = len(features.shape) - 2
    if not 0 <= spatial <= 3:
        raise _refused("features of shape (channels,) with up to three axes before", features)
    if pooling == "token" and spatial != 1:
        raise _refused("a sequence, (length, channels), to take the first token of", features)
    if features.shape[-1] is None:
        raise _refused("a known number of channels", features)
    if spatial == 0:
        return features
    if pooling == "flatten" and None in features.shape[1:]:
        raise _refused("known axes, to flatten them", features)
    mask = keras_internals.mask_of(features)
    if mask is not None:
        return _pool_kept(features, mask, pooling, name)
    if pooling == "flatten":
        return layers.Flatten(data_format=_CHANNELS, name=f"{name}_pooling")(features)
    if pooling == "token":
        return keras_internals.take(features, 0, axis=1, name=f"{name}_pooling")
    if pooling == "attention":
        return _attend(features, name)
    if pooling == "concatenated":
        return layers.Concatenate(name=f"{name}_pooling")(
            [
                _AVERAGE[spatial](data_format=_CHANNELS, name=f"{name}_average")(features),
                _MAX[spatial](data_format=_CHANNELS, name=f"{name}_max")(features),
            ]
        )
    kinds = _AVERAGE if pooling == "avg" else _MAX
    return kinds[spatial](data_format=_CHANNELS, name=f"{name}_pooling")(features)


def _pool_kept(
    features: keras.KerasTensor, mask: keras.KerasTensor, pooling: Pooling, name: str
) -> keras.KerasTensor:
    """Make one vector of the positions that a mask keeps."""

    def naming(prefix: str) -> Callable[[str], str]:
        return lambda what: f"{prefix}_{what}" if what else prefix

    last = naming(f"{name}_pooling")
    if pooling == "concatenated":
        parts = [("avg", naming(f"{name}_average")), ("max", naming(f"{name}_max"))]
        pooled = [masked_pool(features, mask, kind, named) for kind, named in parts]
        return layers.Concatenate(name=f"{name}_pooling")(pooled)
    if pooling == "attention":
        return _attend_kept(features, mask, name, last)
    if pooling == "flatten":
        positions, keep = masked_positions(features, mask, last)
        keep = keras_internals.named(ops.expand_dims(keep, -1), last("kept_channels"))
        chosen = keras_internals.named(ops.where(keep, positions, 0), last("chosen"))
        return layers.Flatten(data_format=_CHANNELS, name=f"{name}_pooling")(chosen)
    return masked_pool(features, mask, pooling, last)


def _attend_kept(
    features: keras.KerasTensor, mask: keras.KerasTensor, name: str, named: Callable[[str], str]
) -> keras.KerasTensor:
    features, keep = masked_positions(features, mask, named)
    mean = masked_pool(features, keep, "avg", lambda what: f"{name}_mean_{what or 'vector'}")
    mean = layers.Reshape((1, features.shape[-1]), name=f"{name}_mean")(mean)
    # Where nothing is kept, attention would compare infinities: there it is to everything.
    nothing = ops.logical_not(
        keras_internals.named(ops.any(keep, axis=1, keepdims=True), named("some"))
    )
    nothing = keras_internals.named(nothing, named("nothing"))
    attended = keras_internals.named(ops.logical_or(keep, nothing), named("attended"))
    pooled = _compare(features, mean, name, f"{name}_pooled", mask=[None, attended])
    return zero_where_empty(pooled, keep, named)


def _attend(features: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Average over positions, weighted by a learned comparison with the mean.

    Beside being short, Keras's own attention passes over the masked positions of a sequence. The
    query's kernel starts at zero, so that training starts from the plain average.
    """
    channels = features.shape[-1]
    if len(features.shape) > 3:
        features = layers.Reshape((-1, channels), name=f"{name}_positions")(features)
    mean = layers.GlobalAveragePooling1D(data_format=_CHANNELS, keepdims=True, name=f"{name}_mean")(
        features
    )
    return _compare(features, mean, name, f"{name}_pooling")


def _compare(
    features: keras.KerasTensor, mean: keras.KerasTensor, name: str, last: str, **mask: Any
) -> keras.KerasTensor:
    """Attend from the mean to the positions of the features."""
    channels = features.shape[-1]
    width = min(channels, _ATTENTION_WIDTH)
    query = layers.Dense(width, kernel_initializer="zeros", name=f"{name}_query")(mean)
    key = layers.Dense(width, use_bias=False, name=f"{name}_key")(features)
    attended = layers.Attention(name=f"{name}_attention")([query, features, key], **mask)
    return layers.Reshape((channels,), name=last)(attended)


def _refused(expected: str, features: keras.KerasTensor) -> HeadError:
    return HeadError(
        f"Expected {expected}. Received: shape {tuple(features.shape[1:])}, without the batch axis."
    )
