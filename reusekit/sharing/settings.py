"""The settings that tell apart two layers that may become one."""

import keras


def differences(a: keras.Layer, b: keras.Layer, besides: tuple[str, ...] = ("name",)) -> list[str]:
    """Return the settings in which two layers of one class differ.

    Args:
        a: A layer.
        b: Another.
        besides: Settings that may differ.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(4, name="b", use_bias=False)
        >>> differences(a, b)
        ['units', 'use_bias']
    """
    one, other = a.get_config(), b.get_config()
    return [key for key in one if key not in besides and one[key] != other.get(key)]
