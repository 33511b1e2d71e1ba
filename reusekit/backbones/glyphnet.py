"""Glyphnet: a small residual network that ships inside the package and knows letters, not digits.

It makes transfer learning possible with no download: `scripts/pretrain_glyphnet.py` trained it to
tell printed letters apart, and it was never shown a digit. Eight layers named `*_out` part it
cleanly, so that there is a real choice of how deep to cut.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import keras
from keras import layers

from reusekit.backbones.backbone import Backbone
from reusekit.backbones.files import load_own_weights, own_weights
from reusekit.backbones.preprocessing import channels_last
from reusekit.errors import BackboneError
from reusekit.surgery.prefix import take_over

SOURCE = "reusekit/glyphnet"
INPUT_SHAPE = (32, 32, 1)
WEIGHTS = Path(__file__).with_name("glyphnet.weights.h5")


class Block(NamedTuple):
    """The shape of one residual block: channels out, channels within, spatial stride."""

    width: int
    inner: int
    stride: int


STEM_WIDTH = 16
# Widths are multiples of 16, which oneDNN's convolutions run about half as fast again as, say, 40.
# The later blocks narrow inside: most weights sit there, and the file must stay under 1 MB.
BLOCKS = (
    Block(16, 16, 2),
    Block(32, 16, 1),
    Block(48, 32, 2),
    Block(48, 32, 1),
    Block(64, 48, 2),
    Block(64, 32, 1),
    Block(64, 32, 1),
)
CUTS = ("stem_out", *(f"block{n}_out" for n in range(1, len(BLOCKS) + 1)))
"""The layers where the network parts cleanly, shallow to deep; the last is its output."""


def load_glyphnet(
    weights: str | os.PathLike | None = "default", input_shape: Sequence[int | None] | None = None
) -> Backbone:
    """Return the network with its preprocessing in front, as every backbone comes.

    Args:
        weights: As for `build`; "default" is "letters".
        input_shape: None or (32, 32, 1): the one size that it was trained on.

    Returns:
        The backbone; its model takes grey pixels in [0, 255], shape (batch, 32, 32, 1).

    Raises:
        BackboneError: Another input shape, or weights that `build` refuses.

    Example:
        >>> load_glyphnet(weights=None).model.output_shape
        (None, 4, 4, 64)
    """
    if input_shape is not None and tuple(input_shape) != INPUT_SHAPE:
        raise BackboneError(
            f"Expected input_shape={INPUT_SHAPE}, or None, for {SOURCE}. Received: "
            f"{tuple(input_shape)}. Leave images as they are: they are resized and made grey where "
            "the data is loaded."
        )
    weights = "letters" if weights == "default" else weights
    model = take_over(build(weights), preprocessing())
    return Backbone(model, preprocessing(), SOURCE, None if weights is None else str(weights))


def preprocessing() -> keras.Model:
    """Make the preprocessing from raw pixels to the network's input.

    Returns:
        A model of stock layers from grey pixels in [0, 255], white strokes on black, to float32
        in [0, 1], both of shape (batch, 32, 32, 1). Black stays zero, as the padding of the
        convolutions is, so that a stroke looks the same at the edge of the image.

    Example:
        >>> import numpy as np
        >>> white = np.full((1, 32, 32, 1), 255, "uint8")
        >>> float(keras.ops.max(preprocessing()(white)))
        1.0
    """
    return keras.Sequential(
        [keras.Input(INPUT_SHAPE), layers.Rescaling(1 / 255, name="unit_range")],
        name="glyphnet_preprocessing",
    )


@channels_last()
def build(weights: str | os.PathLike | None = "letters") -> keras.Model:
    """Return the network without its preprocessing and without a classifier.

    Args:
        weights: "letters" for the weights that ship with the package, a path to a `.weights.h5`
            file that `scripts/pretrain_glyphnet.py` wrote, or None for a fresh initialisation.

    Returns:
        A functional model of stock layers from float32 in [0, 1] of shape (batch, 32, 32, 1) to
        float32 feature maps of shape (batch, 4, 4, 64). Each name in `CUTS` is a layer that
        parts it cleanly, shallow to deep.

    Raises:
        BackboneError: The weights are unknown, absent, or of another network.

    Example:
        >>> model = build(weights=None)
        >>> model.output_shape
        (None, 4, 4, 64)
        >>> model.get_layer("block3_out").output.shape
        (None, 8, 8, 48)
    """
    # Read what the caller asked for before anything is built.
    path = None if weights is None else own_weights(weights, {"letters": WEIGHTS})
    inputs = keras.Input(INPUT_SHAPE, name="pixels")
    x = _conv_norm(inputs, STEM_WIDTH, kernel=3, stride=1, name="stem")
    x = layers.ReLU(name="stem_out")(x)
    for number, block in enumerate(BLOCKS, start=1):
        x = _residual(x, block, name=f"block{number}")
    model = keras.Model(inputs, x, name="glyphnet")
    if path is not None:
        load_own_weights(model, path)
    return model


def _residual(x, block: Block, name: str):
    """Add two convolutions to a shortcut, projected where the shape changes."""
    y = _conv_norm(x, block.inner, kernel=3, stride=block.stride, name=f"{name}_1")
    y = layers.ReLU(name=f"{name}_relu")(y)
    projected = block.stride > 1 or x.shape[-1] != block.width
    # A block that changes no shape starts as the identity: training is steady from the first step.
    y = _conv_norm(y, block.width, 3, 1, f"{name}_2", gamma="ones" if projected else "zeros")
    if block.stride > 1:
        x = layers.AveragePooling2D(block.stride, name=f"{name}_pool")(x)
    if projected:
        x = _conv_norm(x, block.width, kernel=1, stride=1, name=f"{name}_shortcut")
    x = layers.Add(name=f"{name}_add")([x, y])
    return layers.ReLU(name=f"{name}_out")(x)


def _conv_norm(x, width: int, kernel: int, stride: int, name: str, gamma: str = "ones"):
    x = layers.Conv2D(
        width, kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    # Keras's default momentum of 0.99 needs hundreds of steps to settle; few-shot runs have fewer.
    return layers.BatchNormalization(momentum=0.95, gamma_initializer=gamma, name=f"{name}_norm")(x)
