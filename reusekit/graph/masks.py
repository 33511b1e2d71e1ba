"""Masks as hidden edges: those that calls read or make beside what Keras recorded.

Keras attaches a mask to a tensor, and a layer that is called on that tensor finds it there. Whether
Keras also writes it into the recorded call depends on how the layer was called: an LSTM on one
tensor records its mask, a MultiHeadAttention on two does not. A cut between the tensor and such a
layer must carry the mask across as well.
"""

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import keras

from reusekit.graph import keras_internals

_MERGES = (keras.layers.Multiply, keras.layers.Maximum, keras.layers.Minimum)
_SETTERS = {"_keras_mask", "set_keras_mask"}


def implicit_mask_carriers(
    operation: Any, args: tuple, kwargs: dict[str, Any]
) -> Iterator[keras.KerasTensor]:
    """Yield tensors whose masks a call reads when run, beyond the recorded arguments.

    A layer that is not Keras's own may read the mask off any tensor that it is fed, without an
    argument for it; unless it is given a mask, it is taken to do so.

    Args:
        operation: The layer or operation called.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Yields:
        Each such tensor once. Whether it has a mask is not looked at here.
    """
    if not isinstance(operation, keras.Layer):
        return
    if isinstance(operation, _MERGES):
        yield from _symbols(args[:1])
        return
    kind: type = type(operation)
    names = _mask_arguments(kind)
    if not names and _is_stock(kind):
        return
    given = dict(zip(keras_internals.call_arguments(operation), args, strict=False)) | kwargs
    held = {name: _symbols(value) for name, value in given.items()}
    held = {name: tensors for name, tensors in held.items() if tensors}
    if not _is_stock(kind) and names.isdisjoint(held):
        wanted = list(held)
    elif len(held) == 1:
        # Keras fills `mask` only where a single argument holds all the tensors.
        wanted = [next(iter(held))] if "mask" in names and given.get("mask") is None else []
    else:
        wanted = [n for n in held if f"{n}_mask" in names and given.get(f"{n}_mask") is None]
    yield from dict.fromkeys(tensor for name in wanted for tensor in held[name])


def mask_arguments(operation: Any) -> frozenset[str]:
    """Return the names of the masks that an operation takes as arguments of its call."""
    kind: type = type(operation)
    return _mask_arguments(kind) if isinstance(operation, keras.Layer) else frozenset()


def with_found_mask(operation: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a call with the mask that Keras would find on its tensors.

    Keras itself records it only where the call has no other keyword arguments; not recorded, it is
    lost where MultiHeadAttention takes it off the tensor before.
    """
    given = dict(zip(keras_internals.call_arguments(operation), args, strict=False)) | kwargs
    given = {name: v for name, v in given.items() if _symbols(v)}
    kwargs = {
        name: value
        for name, value in kwargs.items()
        # Nothing but None was recorded where Keras looked for masks and found none;
        # `use_causal_mask`, or a mask that is a constant, is no mask that Keras found.
        if not name.endswith("mask") or any(x is not None for x in keras.tree.flatten(value))
    }
    if len(given) == 1 and "mask" in mask_arguments(operation):
        masks = keras.tree.map_structure(keras_internals.mask_of, *given.values())
        if any(mask is not None for mask in keras.tree.flatten(masks)):
            kwargs["mask"] = masks
    return kwargs


@cache
def _mask_arguments(kind: Any) -> frozenset[str]:
    """Return the names of the masks that a class of layers takes as arguments of its call."""
    names = inspect.signature(kind.call).parameters
    return frozenset(name for name in names if name.endswith("mask"))


@cache
def _is_stock(kind: type) -> bool:
    return kind.__module__.startswith("keras.src.")


def strips_masks(operation: Any) -> bool:
    """Return whether a call strips its inputs of their masks, for all later calls.

    MultiHeadAttention does, in the running model, to keep masks from the layers inside it.
    """
    return isinstance(operation, keras.layers.MultiHeadAttention)


def made_masks(
    layer: keras.Layer, inputs: Any, masks: Any
) -> list[keras.KerasTensor | None] | None:
    """Return the masks that a layer makes, of the masks of what it is fed, for its outputs.

    Asked on symbolic tensors made for the purpose, so that nothing is recorded on the layer.

    Args:
        layer: The layer.
        inputs: Its first argument: Keras tensors in some structure.
        masks: The mask of each, or None, in the same structure.

    Returns:
        One for each output; empty if it makes none. One of `masks` where that is handed on. None
        where the layer can only be asked with values.
    """
    if not layer.supports_masking:
        return []
    try:
        made = keras.tree.flatten(layer.compute_mask(inputs, masks))
    except Exception:
        # A layer that does not expect symbolic tensors may raise anything.
        return None
    known = all(mask is None or isinstance(mask, keras.KerasTensor) for mask in made)
    return made if known else None


def passes_mask(layer: Any, tensor: keras.KerasTensor, mask_shape: tuple) -> bool:
    """Return whether a layer hands the mask of its first input on to its output unchanged."""
    if not isinstance(layer, keras.Layer):
        return False
    mask = keras.KerasTensor(mask_shape, "bool")
    made = made_masks(layer, keras.KerasTensor(tensor.shape, tensor.dtype), mask)
    return bool(made and made[0] is mask)


@cache
def may_set_masks(kind: type) -> bool:
    """Return whether layers of a class may set masks that Keras learns of only at run time."""
    return issubclass(kind, keras.layers.ReversibleEmbedding) or not _is_stock(kind)


def starts_masks(layer: keras.Layer) -> bool:
    """Return whether a layer of Keras's own makes a mask where there was none.

    Keras computes it when the layer is called; a call that was recorded without running the layer
    lacks it.
    """
    if isinstance(layer, keras.layers.Embedding):
        return layer.mask_zero and not isinstance(layer, keras.layers.ReversibleEmbedding)
    return isinstance(layer, keras.layers.Masking)


def masks_token_zero(layer: keras.Layer, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Return whether a call sets a mask that Keras knows nothing of while it builds a model.

    ReversibleEmbedding does so in its `call`, which does not run then.
    """
    if not isinstance(layer, keras.layers.ReversibleEmbedding) or not layer.mask_zero:
        return False
    given = dict(zip(keras_internals.call_arguments(layer), args, strict=False)) | kwargs
    return not given.get("reverse", False)


class HiddenMask(keras.Operation):
    """Stands for a mask that a layer sets when it runs and that no other operation can compute.

    It cannot be called; whoever needs the mask where the layer is not must refuse.

    Args:
        layer: The layer that sets it.
    """

    def __init__(self, layer: keras.Layer):
        super().__init__(name=f"{layer.name}_mask")
        # As learned as what it belongs to: it is no free tensor.
        self.weights = layer.weights

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to run."""
        raise NotImplementedError(f"{self.name!r} is known to no one but its layer.")


def hidden_mask_ranks(layer: keras.Layer, args: tuple, kwargs: dict[str, Any]) -> list[int]:
    """Return, for each output, the rank of the mask that the `call` sets; 0 for none.

    Only layers that may do so are traced: those that are not Keras's own, and hold a layer that
    makes masks or name the attribute in their code.
    """
    kind: type = type(layer)
    if _is_stock(kind) or not _sets(layer):
        return []
    try:
        return keras_internals.traced_mask_ranks(layer, args, kwargs)
    except Exception:
        # A layer that cannot be traced says by compute_output_spec what comes out of it.
        return []


def _sets(layer: keras.Layer) -> bool:
    code = getattr(inspect.unwrap(type(layer).call), "__code__", None)
    return (code is not None and not _SETTERS.isdisjoint(code.co_names)) or any(
        isinstance(inner, keras.layers.Masking) or getattr(inner, "mask_zero", False)
        for inner in keras_internals.all_layers(layer)
    )


def _symbols(structure: Any) -> list[keras.KerasTensor]:
    leaves = keras.tree.flatten(structure)
    return [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
