"""The preprocessing of a pretrained model, as stock layers that it can carry."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np

from reusekit.errors import BackboneError, nearest
from reusekit.graph import read
from reusekit.surgery import extract

RANGES = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (1 / 127.5, -1.0)}
"""Ranges that pixels can be brought to, as a factor and what is added then."""
IMAGENET = ("caffe", "torch")
"""Ways of `keras.applications` to centre pixels on the means of ImageNet."""


@contextmanager
def channels_last() -> Iterator[None]:
    """Build layers with the channels last, whatever the user's `keras.json` prefers.

    What this package builds and loads says so in its configuration, and images come this way.
    """
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_image_data_format(before)


def scaling(scale: str | Sequence[float], input_shape: Sequence[int | None]) -> keras.Model | None:
    """Build what brings pixels of [0, 255] to the range that a model was trained on.

    Args:
        scale: One of `RANGES` or `IMAGENET`, or two numbers: a factor, and what is added then.
        input_shape: Shape of one image, (height, width, channels).

    Returns:
        A model of stock layers, or None where pixels stay as they are.

    Raises:
        BackboneError: An unknown scale, or one of `IMAGENET` for other images than colour.

    Example:
        >>> scaling("-1..1", (2, 2, 1)).layers[-1].get_config()["offset"]
        -1.0
    """
    if scale in IMAGENET:
        if input_shape[-1] != 3:
            raise BackboneError(
                f"Expected images of 3 channels with scale {scale!r}, which centres those of "
                f"colours. Received: {input_shape[-1]}."
            )
        preprocess = keras.applications.imagenet_utils.preprocess_input
        return as_layers(partial(preprocess, mode=scale, data_format="channels_last"), input_shape)
    known = [*RANGES, *IMAGENET]
    numbers = not isinstance(scale, str) and len(scale) == 2
    if scale not in RANGES if isinstance(scale, str) else not numbers:
        raise BackboneError(
            f"Expected scale to be one of {', '.join(known)}, or two numbers: a factor, and what "
            f"is added then. Received: {scale!r}. {nearest(str(scale), known)}"
        )
    factor, offset = RANGES[scale] if isinstance(scale, str) else scale
    if (factor, offset) == (1.0, 0.0):
        return None
    pixels = keras.Input(tuple(input_shape), name="pixels")
    scaled = keras.layers.Rescaling(factor, offset, name="preprocessing")(pixels)
    return keras.Model(pixels, scaled, name="preprocessing")


def as_layers(
    preprocess: Callable[[np.ndarray], np.ndarray], input_shape: Sequence[int | None]
) -> keras.Model | None:
    """Rebuild an affine `preprocess_input` function as a model of stock layers.

    Every `preprocess_input` of Keras maps a pixel's channels by one affine map, perhaps after
    reversing them (RGB to BGR). The map is read off by applying the function to the black pixel
    and to the unit pixel of each channel, so it is right for whatever Keras is installed.

    Args:
        preprocess: Takes a float array (batch, height, width, channels), returns one of that shape.
        input_shape: Shape of one image, (height, width, channels).

    Returns:
        A model from raw pixels to preprocessed ones, or None where the function changes nothing.

    Raises:
        BackboneError: The function is not an affine map of each channel.

    Example:
        >>> model = as_layers(lambda x: x[..., ::-1] - 100.0, (1, 1, 3))
        >>> model(np.array([[[[1.0, 2.0, 3.0]]]])).numpy().tolist()
        [[[[-97.0, -98.0, -99.0]]]]
        >>> as_layers(lambda x: x, (32, 32, 3)) is None
        True
    """
    channels: Any = input_shape[-1]
    probes = np.concatenate([np.zeros((1, channels)), np.eye(channels) * 255.0]).astype("float32")
    mapped = np.asarray(preprocess(probes[:, None, None, :].copy()), "float64")[:, 0, 0, :]
    offset, matrix = mapped[0], (mapped[1:] - mapped[0]) / 255.0

    reverse = not _is_diagonal(matrix)
    if reverse:
        matrix = matrix[::-1]
    if not _is_diagonal(matrix):
        raise BackboneError(
            "Expected preprocessing that is one affine map for each channel. Received: one that "
            "mixes channels."
        )

    scale = _scalar_or_list(np.diag(matrix))
    offset = _scalar_or_list(offset)
    if scale == 1.0 and offset == 0.0 and not reverse:
        return None
    pixels = keras.Input(tuple(input_shape), name="pixels")
    x = keras.ops.flip(pixels, axis=-1) if reverse else pixels
    x = keras.layers.Rescaling(scale, offset, name="preprocessing")(x)
    return keras.Model(pixels, x, name="preprocessing")


def range_ratio(model: keras.Model, images: np.ndarray) -> float | None:
    """Compare how images vary in front of a model's first normalisation with what it remembers.

    Args:
        model: A functional model of one input.
        images: A batch as it would be fed.

    Returns:
        How many times as much they vary as they did in its training (the median of the channels):
        near 1 where images are fed in the range that it was trained on. None where no
        BatchNormalization or adapted Normalization lies in the model, or it was not trained.
    """
    normalisations = (keras.layers.BatchNormalization, keras.layers.Normalization)
    calls = [c for c in read(model).calls if isinstance(c.operation, normalisations)]
    if not calls or sum(call.operation is calls[0].operation for call in calls) > 1:
        return None
    layer = calls[0].operation
    batch_norm = isinstance(layer, keras.layers.BatchNormalization)
    remembered = layer.moving_variance if batch_norm else getattr(layer, "variance", None)
    if remembered is None:
        return None
    remembered = np.ravel(keras.ops.convert_to_numpy(remembered))
    seen = extract(model, calls[0].inputs[0].address).predict_on_batch(images)
    if np.all(remembered == 1.0) or seen.shape[-1] != remembered.size:
        return None
    varies = np.asarray(seen, "float64").reshape(-1, seen.shape[-1]).std(axis=0)
    known = remembered > 0
    return float(np.median(varies[known] / np.sqrt(remembered[known]))) if known.any() else None


def _is_diagonal(matrix: np.ndarray) -> bool:
    return np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-7)


def _scalar_or_list(values: np.ndarray) -> float | list[float]:
    """Return a single number where all channels agree, for readable configurations."""
    values = np.round(values, 9)
    if np.ptp(values) < 1e-8:
        return float(values[0])
    return values.tolist()
