"""Masks are hidden edges: which calls read a mask that is not among their recorded arguments.

Keras attaches a mask to a tensor, and a layer that is called on that tensor finds it there. Whether
Keras also writes it into the recorded call depends on how the layer was called: an LSTM on one
tensor records its mask, a MultiHeadAttention on two does not. Whoever cuts between the tensor and
such a layer must carry the mask across as well.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import keras

from reusekit.graph import keras_internals

_MERGES = (keras.layers.Multiply, keras.layers.Maximum, keras.layers.Minimum)


def implicit_mask_sources(
    operation: Any, args: tuple, kwargs: dict[str, Any], is_tensor: Callable[[Any], bool]
) -> Iterator[Any]:
    """Tensors off which a call reads the mask when it runs, beyond the recorded arguments.

    Args:
        operation: The layer or operation called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        is_tensor: Tells a tensor from any other leaf of the arguments.

    Yields:
        Each such tensor once. Whether it has a mask is not looked at here.
    """
    if not isinstance(operation, keras.Layer):
        return
    if isinstance(operation, _MERGES):
        yield from _tensors(args[:1], is_tensor)
        return
    names = _mask_arguments(type(operation))
    if not names:
        return
    given = dict(zip(keras_internals.call_arguments(operation), args, strict=False)) | kwargs
    held = {name: list(_tensors(value, is_tensor)) for name, value in given.items()}
    held = {name: tensors for name, tensors in held.items() if tensors}
    if len(held) == 1:
        # Keras fills `mask` only where a single argument holds all the tensors.
        wanted = [next(iter(held))] if "mask" in names and given.get("mask") is None else []
    else:
        wanted = [n for n in held if f"{n}_mask" in names and given.get(f"{n}_mask") is None]
    yield from dict.fromkeys(tensor for name in wanted for tensor in held[name])


@cache
def _mask_arguments(kind: type) -> frozenset[str]:
    """The names of the masks that a class of layers takes as arguments of its call."""
    names = inspect.signature(kind.call).parameters
    return frozenset(name for name in names if name.endswith("mask"))


def strips_masks(operation: Any) -> bool:
    """Whether a call takes the masks off the tensors it is fed, so that no later call finds them.

    MultiHeadAttention does, in the running model, to keep masks from the layers inside it.
    """
    return isinstance(operation, keras.layers.MultiHeadAttention)


def passes_mask(layer: Any, tensor: keras.KerasTensor, mask_shape: tuple) -> bool:
    """Whether a layer hands the mask of its first input on to its output unchanged.

    Asked on symbolic tensors made for the purpose, so that nothing is recorded on the layer.
    """
    if not isinstance(layer, keras.Layer) or not layer.supports_masking:
        return False
    probe = keras.KerasTensor(tensor.shape, tensor.dtype)
    mask = keras.KerasTensor(mask_shape, "bool")
    try:
        return layer.compute_mask(probe, mask) is mask
    except Exception:
        # A layer may compute its mask from values; then it makes one of its own.
        return False


def _tensors(structure: Any, is_tensor: Callable[[Any], bool]) -> Iterator[Any]:
    return (leaf for leaf in keras.tree.flatten(structure) if is_tensor(leaf))
