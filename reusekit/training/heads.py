"""Heads: what is trained on top of a bottom, built of stock Keras layers."""

from collections.abc import Sequence

import keras
import numpy as np

from reusekit.errors import HeadError


def classifier(
    input_shape: Sequence[int | None],
    classes: int,
    *,
    units: int = 0,
    dropout: float = 0.0,
    standardize: np.ndarray | None = None,
    name: str = "head",
) -> keras.Model:
    """A classification head: pooling where needed, a hidden layer if wanted, probabilities.

    Args:
        input_shape: Shape of one example's features: (channels,), or (height, width, channels),
            which are averaged over height and width first.
        classes: How many classes to tell apart.
        units: Width of the hidden ReLU layer; 0 leaves it out.
        dropout: Share of the features dropped before the last layer while training.
        standardize: Features (examples, channels) whose mean and variance the head learns to
            remove, so that one learning rate suits cuts of any scale. None leaves them as they are.
        name: The name of the model; its layers' names begin with it.

    Returns:
        A model from features to probabilities, float32, shape (batch, classes).

    Raises:
        HeadError: A shape that is neither vector nor map, no class, or a negative width.

    Example:
        >>> head = classifier((4, 4, 8), classes=3, units=16)
        >>> head.output_shape
        (None, 3)
        >>> [layer.name for layer in head.layers]
        ['head_input', 'head_pooling', 'head_hidden', 'head_probabilities']
    """
    if len(input_shape) not in (1, 3) or classes < 1 or units < 0:
        raise HeadError(
            "A classifier takes input_shape=(channels,) or (height, width, channels), without the "
            f"batch axis, classes of at least 1 and units of at least 0. Received: input_shape="
            f"{tuple(input_shape)}, classes={classes}, units={units}."
        )
    inputs = keras.Input(tuple(input_shape), name=f"{name}_input")
    x = inputs
    if len(input_shape) == 3:
        x = keras.layers.GlobalAveragePooling2D(name=f"{name}_pooling")(x)
    if standardize is not None:
        normalization = keras.layers.Normalization(name=f"{name}_normalization")
        normalization.adapt(standardize)
        x = normalization(x)
    if units:
        x = keras.layers.Dense(units, activation="relu", name=f"{name}_hidden")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name=f"{name}_dropout")(x)
    # Probabilities are float32 under any precision policy, so that the loss is exact.
    x = keras.layers.Dense(
        classes, activation="softmax", dtype="float32", name=f"{name}_probabilities"
    )(x)
    return keras.Model(inputs, x, name=name)
