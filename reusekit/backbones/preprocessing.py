"""The preprocessing of `keras.applications`, as stock layers that a model can carry."""

from collections.abc import Callable, Sequence

import keras
import numpy as np

from reusekit.errors import BackboneError


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
    channels = input_shape[-1]
    probes = np.concatenate([np.zeros((1, channels)), np.eye(channels) * 255.0]).astype("float32")
    mapped = np.asarray(preprocess(probes[:, None, None, :].copy()), "float64")[:, 0, 0, :]
    offset, matrix = mapped[0], (mapped[1:] - mapped[0]) / 255.0

    reverse = not _is_diagonal(matrix)
    if reverse:
        matrix = matrix[::-1]
    if not _is_diagonal(matrix):
        raise BackboneError("This preprocessing mixes channels; expected one affine map for each.")

    scale = _scalar_or_list(np.diag(matrix))
    offset = _scalar_or_list(offset)
    if scale == 1.0 and offset == 0.0 and not reverse:
        return None
    pixels = keras.Input(tuple(input_shape), name="pixels")
    x = keras.ops.flip(pixels, axis=-1) if reverse else pixels
    x = keras.layers.Rescaling(scale, offset, name="preprocessing")(x)
    return keras.Model(pixels, x, name="preprocessing")


def _is_diagonal(matrix: np.ndarray) -> bool:
    return np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-7)


def _scalar_or_list(values: np.ndarray) -> float | list[float]:
    """One number where all channels have the same, which keeps the saved configuration readable."""
    values = np.round(values, 9)
    if np.ptp(values) < 1e-8:
        return float(values[0])
    return values.tolist()
