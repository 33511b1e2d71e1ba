"""The treatment of each stored example on its way into a model."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from reusekit.errors import DataError

Resize = Literal["stretch", "crop", "pad"]


_GREY_LEVELS = {tf.uint8: 255, tf.uint16: 65535}


def treatment(
    spec: tf.TensorSpec, image_size: Sequence[int] | None, channels: int | None, resize: Resize
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the function that turns a stored input into what a model is fed.

    Args:
        spec: Shape and dtype of a stored input. Images have three axes.
        image_size: (height, width) to resize images to, with antialiasing; None leaves them.
        channels: 1 or 3, converting between grey and colour; None leaves grey and colour as they
            are. What is transparent is laid on white, so no alpha channel is left.
        resize: What to do where the aspect ratio differs.

    Returns:
        A function for `tf.data.Dataset.map`. Images come out as float32 in [0, 255], whether 8 or
        16 bits are stored; inputs that are no images come out as they are.

    Raises:
        DataError: Resizing or converting something that is no image, or an image whose range or
            channels are unknown.
    """
    if spec.shape.rank != 3:
        if image_size or channels:
            raise DataError(
                "image_size and channels are for images of shape (height, width, channels). "
                f"Received inputs of shape {tuple(spec.shape)}."
            )
        return lambda example: example
    if spec.dtype not in _GREY_LEVELS or spec.shape[-1] not in (1, 3, 4):
        raise DataError(
            "Expected images of 8 or 16 bits with 1 (grey), 3 (colour) or 4 (with alpha) channels. "
            f"Received: {spec.dtype.name} images of shape {tuple(spec.shape)}."
        )
    if channels not in (None, 1, 3):
        raise DataError(f"Expected channels to be 1 (grey) or 3 (colour). Received: {channels}.")
    levels, transparent = _GREY_LEVELS[spec.dtype], spec.shape[-1] == 4
    opaque = spec.shape[-1] - transparent
    converters: dict[tuple[int, int | None], Any] = {
        (1, 3): tf.image.grayscale_to_rgb,
        (3, 1): tf.image.rgb_to_grayscale,
    }
    convert = converters.get((opaque, channels), tf.identity)
    resizing = tf.identity
    if image_size:
        resizing = keras.layers.Resizing(
            *image_size,
            antialias=True,  # else fine detail turns into noise where images shrink
            crop_to_aspect_ratio=resize == "crop",
            pad_to_aspect_ratio=resize == "pad",
            data_format="channels_last",  # whatever the user's Keras prefers
            dtype="float32",  # whatever precision models use
        )

    def treat(image: tf.Tensor) -> tf.Tensor:
        image = tf.cast(image, tf.float32)
        if levels != 255:
            image *= 255 / levels
        if transparent:
            alpha = image[..., opaque:] / 255
            image = image[..., :opaque] * alpha + 255 * (1 - alpha)
        return resizing(convert(image))

    return treat
