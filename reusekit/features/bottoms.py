"""Bottoms: models from the inputs to what crosses a cut, in the model's precision or another."""

import keras

from reusekit.errors import CacheError, nearest
from reusekit.features.frontiers import Frontier
from reusekit.features.randomness import is_augmenting
from reusekit.graph import Graph, keras_internals, read
from reusekit.surgery import extract
from reusekit.surgery.clones import twin_of

COMPUTE_DTYPES = ("bfloat16",)


def from_inputs(target: Frontier) -> keras.Model:
    """Return the model from the inputs to the tensors of `crossing`, in their order."""
    addresses = [tensor.address for tensor in target.crossing]
    return extract(target.graph, addresses, target.pooling, mask_of(target))


def mask_of(target: Frontier) -> str | None:
    """Return the mask under which a cut is pooled, as `extract` takes it."""
    if target.masked_by is None or target.mask is None:
        return target.masked_by
    return target.mask.address


def in_compute_dtype(model: keras.Model | Graph, compute_dtype: str) -> Graph:
    """Return a copy of a model that computes in another precision, its weights kept in float32.

    Every layer whose policy is float32 gets Keras's mixed policy, but for augmentation: bfloat16
    cannot tell the places of neighbouring pixels apart. What the copy returns has the dtype that
    it was computed in; the dtypes that Keras noted when the model was built stay as they were.

    Args:
        model: A model, or one that was read already. It is not changed.
        compute_dtype: "bfloat16".

    Returns:
        The copy, read. Addresses are those of the model.

    Raises:
        CacheError: Another dtype.
        CopyError: A layer does not come back from its configuration.
        TieError: Layers share a weight in a way that copies of them would not.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(2, name="head")(x))
        >>> copy = in_compute_dtype(model, "bfloat16").model
        >>> copy(keras.ops.ones((1, 4))).dtype.name, copy.get_layer("head").kernel.dtype
        ('bfloat16', 'float32')
    """
    if compute_dtype not in COMPUTE_DTYPES:
        raise CacheError(
            f"Expected a bottom to compute in {', '.join(COMPUTE_DTYPES)}, or None for the model's "
            f"own precision. Received: {compute_dtype!r}. "
            f"{nearest(str(compute_dtype), COMPUTE_DTYPES)}"
        )
    copy = twin_of(read(model).model, "copy")
    for layer in keras_internals.all_layers(copy):
        if layer.dtype_policy.name == "float32" and not is_augmenting(layer):
            layer.dtype_policy = f"mixed_{compute_dtype}"
    return read(copy)
