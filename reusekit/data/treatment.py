"""What is done to each stored example on its way into a model."""

from collections.abc import Callable, Sequence
from typing import Literal

import keras
import tensorflow as tf

from reusekit.errors import DataError

Resize = Literal["stretch", "crop", "pad"]


def treatment(
    spec: tf.TensorSpec, image_size: Sequence[int] | None, channels: int | None, resize: Resize
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """The function that turns a stored (input, label) pair into what a model is fed.

    Args:
        spec: Shape and dtype of a stored input. Images have three axes.
        image_size: (height, width) to resize images to, with antialiasing; None leaves them.
        channels: 1 or 3, converting between grey and colour; None leaves them.
        resize: What to do where the aspect ratio differs.

    Returns:
        A function for `tf.data.Dataset.map`. Images come out as float32 in [0, 255]; inputs that
        are no images come out as they are.

    Raises:
        DataError: Resizing or converting something that is no image, or an image that is not
            stored as 8-bit grey or colour.
    """
    if spec.shape.rank != 3:
        if image_size or channels:
            raise DataError(
                "image_size and channels are for images of shape (height, width, channels). "
                f"Received inputs of shape {tuple(spec.shape)}."
            )
        return lambda example, label: (example, label)
    if spec.dtype != tf.uint8 or spec.shape[-1] not in (1, 3):
        raise DataError(
            f"Expected 8-bit images in grey or colour. Received {spec.dtype.name} images with "
            f"{spec.shape[-1]} channels."
        )
    if channels not in (None, 1, 3):
        raise DataError(f"Expected channels to be 1 (grey) or 3 (colour). Received: {channels}.")
    convert = {
        (1, 3): tf.image.grayscale_to_rgb,
        (3, 1): tf.image.rgb_to_grayscale,
    }.get((spec.shape[-1], channels), tf.identity)
    resizing = tf.identity
    if image_size:
        resizing = keras.layers.Resizing(
            *image_size,
            antialias=True,  # else fine detail turns into noise where images shrink
            crop_to_aspect_ratio=resize == "crop",
            pad_to_aspect_ratio=resize == "pad",
            dtype="float32",  # whatever precision models use
        )

    def treat(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return resizing(convert(tf.cast(image, tf.float32))), label

    return treat
