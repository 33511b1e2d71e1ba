"""Silencing layers that drop values or add noise in training, and bringing them back.

`trainable=False` does not reach them, `fit` overrides a recorded `training=False` (in Keras 3.15),
and a layer with dropout inside cannot be taken out of a model. But each is told how much to drop.
"""

import re

import keras

from reusekit.graph import keras_internals

# What a rate is multiplied by to silence it. Not by zero: a Dropout that is made with a rate of
# zero has no random generator, so that copies and saved models would have other state than the
# model. float32 and narrower dtypes round the product to zero, hence nothing is dropped; and a
# power of two loses no digit, hence the rate comes back exactly, even from a saved model.
_FACTOR = 2.0**-900
_SILENCED_BELOW = 2.0**-450

# The attributes that say how much, in Keras, KerasHub and as people write them: `rate`, `stddev`,
# `dropout`, `recurrent_dropout`, `drop_path_rate`, `_dropout` ...
_RATE = re.compile(r"_?(rate|stddev|\w*drop(out|_?path)?(_rate|_prob|_probability)?)")


def silence(layer: keras.Layer) -> None:
    """Makes a layer act in training as in inference; those inside it are not touched.

    Example:
        >>> layer = keras.layers.Dropout(0.1)
        >>> silence(layer)
        >>> bool(keras.ops.all(layer(keras.ops.ones((9, 9)), training=True) == 1.0))
        True
        >>> unsilence(layer)
        >>> layer.rate
        0.1
    """
    for name, rate in _rates(layer).items():
        if rate > _SILENCED_BELOW:
            setattr(layer, name, rate * _FACTOR)


def unsilence(layer: keras.Layer) -> None:
    """Gives a layer its rates back, if it was silenced."""
    for name, rate in _rates(layer).items():
        if 0 < rate < _SILENCED_BELOW:
            setattr(layer, name, rate / _FACTOR)


def is_silenced(layer: keras.Layer) -> bool:
    """Whether a layer would drop or disturb something in training and now does not."""
    return any(0 < rate < _SILENCED_BELOW for rate in _rates(layer).values())


def is_random(layer: keras.Layer) -> bool:
    """Whether a layer draws random numbers and has no rate by which it could be silenced.

    Example:
        >>> is_random(keras.layers.RandomFlip()), is_random(keras.layers.LSTMCell(2, dropout=0.0))
        (True, False)
    """
    return keras_internals.has_generator(layer) and not _rates(layer)


def drops(layer: keras.Layer) -> bool:
    """Whether a layer would drop values or add noise in training if it were not silenced."""
    return any(rate > 0 for rate in _rates(layer).values())


def _rates(layer: keras.Layer) -> dict[str, float]:
    """The attributes by which a layer is told how much to drop or disturb, which may be 0."""
    if not keras_internals.takes(layer, "training"):
        return {}
    return {
        name: value
        for name, value in vars(layer).items()
        if type(value) in (int, float) and value >= 0 and _RATE.fullmatch(name)
    }
