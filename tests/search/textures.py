"""Small images of three textures, and a small backbone that tells them apart."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from reusekit.data import DataSplit, Task


def small_backbone(seed: int = 1) -> keras.Model:
    """A stem and three residual blocks with batch normalization; every `out` is a clean cut.

    Its weights are random: what they make of the textures differs enough.
    """
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Rescaling(1 / 255, name="rescaling")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    for block in range(3):
        y = layers.Conv2D(8, 3, padding="same", use_bias=False, name=f"conv{block}")(x)
        y = layers.BatchNormalization(name=f"bn{block}")(y)
        y = layers.ReLU(name=f"relu{block}")(y)
        x = layers.Add(name=f"out{block}")([x, y])
    return keras.Model(inputs, x, name="small")


def textures(name: str, size: int, seed: int) -> DataSplit:
    """Noisy images of horizontal stripes, vertical stripes or squares."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(size) % 3
    rows, columns = np.indices((8, 8)) // 2 % 2
    patterns = np.stack([rows, columns, (rows + columns) % 2])
    images = 120 * patterns[labels] + numbers.uniform(0, 135, (size, 8, 8))
    images = images[..., None].astype("float32")
    examples = tf.data.Dataset.from_tensor_slices((images, labels))
    classes = Task("classification", ("horizontal", "vertical", "squares"))
    return DataSplit("textures:1.0.0", name, examples, size, classes, f"{name} {seed}")
