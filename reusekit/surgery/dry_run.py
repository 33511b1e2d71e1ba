"""The result of a call, found without leaving a trace on the layer."""

from typing import Any

import keras

from reusekit.graph import keras_internals
from reusekit.surgery.copying import Copier


def outputs_of(operation: Any, args: tuple, kwargs: dict) -> list[keras.KerasTensor]:
    """Return the outputs that a call would have, flat; nothing is recorded, built or changed.

    Args:
        operation: A layer or operation, built or not.
        args: Positional arguments, with Keras tensors made for the purpose.
        kwargs: Keyword arguments, likewise.

    Returns:
        Keras tensors with the shapes and dtypes that would come out.

    Raises:
        ValueError: The layer cannot take these shapes. (Or whatever else the layer raises.)

    Example:
        >>> layer = keras.layers.Dense(3, name="d")
        >>> [out.shape for out in outputs_of(layer, (keras.KerasTensor((None, 4)),), {})]
        [(None, 3)]
        >>> layer.built
        False
    """
    if isinstance(operation, keras.Layer) and not operation.built:
        stand_in = Copier().copy(operation)
        with keras_internals.without_initialising():
            return keras.tree.flatten(stand_in(*args, **kwargs))
    if args and isinstance(operation, keras.Layer):
        keras_internals.check_first_argument(operation, args[0])
    return keras.tree.flatten(keras_internals.traced_outputs(operation, args, kwargs))
