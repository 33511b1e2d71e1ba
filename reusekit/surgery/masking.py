"""Putting a mask onto a tensor, and taking it off."""

import keras

from reusekit.graph import keras_internals
from reusekit.surgery.names import Names


def with_mask(
    tensor: keras.KerasTensor, mask: keras.KerasTensor, names: Names, address: str
) -> keras.KerasTensor:
    """Return a tensor that carries a mask when the model runs.

    Some layers read their mask off the tensor they are called on and take no argument for it. The
    one thing in Keras that puts a mask onto a tensor it is given is a nested model called with
    `mask=`; so this is a nested model that does nothing else, made of stock layers.

    Args:
        tensor: The tensor.
        mask: Its mask, of dtype bool.
        names: The names taken in the model being built.
        address: What the tensor is called in the source, to name the nested model by.

    Returns:
        A tensor equal to the first, with the mask attached.
    """
    inputs = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name="input")
    same = keras.layers.Identity(dtype=tensor.dtype, name="identity")(inputs)
    carrier = keras.Model(inputs, same, name=names.unique(f"{address}_mask"))
    # Without this, Keras warns that the mask is lost; it is set inside, and is not.
    carrier.supports_masking = True
    carrying = carrier(tensor, mask=mask)
    keras_internals.attach_mask(carrying, mask)
    return carrying


def without_mask(tensor: keras.KerasTensor, names: Names, address: str) -> keras.KerasTensor:
    """Return a tensor equal to another that carries no mask when the model runs.

    Operations hand no mask on, as layers do.
    """
    wide = keras.ops.expand_dims(tensor, -1)
    keras_internals.named(wide, names.unique(f"{address}_wide"))
    return keras_internals.named(
        keras.ops.squeeze(wide, -1), names.unique(f"{address}_without_mask")
    )
