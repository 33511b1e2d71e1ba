"""The mask that says which positions of a tensor are filling."""

from collections.abc import Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import keras

from reusekit.errors import AddressError
from reusekit.graph import keras_internals
from reusekit.graph.addresses import resolve_one
from reusekit.graph.flops import nominal_shapes, strides
from reusekit.graph.frontier import ancestors
from reusekit.graph.graph import Call, Graph, Tensor, may_agree, tensors_in
from reusekit.graph.masks import mask_arguments

AUTO = "auto"

# The arguments by which layers of Keras and KerasHub are told what is filling: first those that
# speak of the sequence that comes out, then those of another that it attends to.
_OWN = ("mask", "padding_mask", "decoder_padding_mask", "query_mask", "attention_mask")
_OTHER = (
    "value_mask",
    "key_mask",
    "encoder_padding_mask",
    "encoder_attention_mask",
    "decoder_attention_mask",
)

# From parts of models to what they were taken from, which is told of masks that they are not.
_wholes: WeakKeyDictionary[keras.Model, Graph] = WeakKeyDictionary()


def remember_whole(part: keras.Model, whole: Graph) -> None:
    """Keep, for as long as a part lives, what it was taken from, if that is told of a mask.

    A part that ends before the first layer that is told which positions are filling says nothing
    of them itself. It has the tensors of the whole, or else their addresses.
    """
    if whole.model in _wholes or _all_told(whole, whole.calls):
        _wholes[part] = whole


def padding_mask(graph: Graph, tensor: Tensor, mask: Any = AUTO) -> tuple[Tensor | None, str]:
    """Find the mask under which a tensor is to be pooled.

    With "auto" it is the tensor's Keras mask. Where there is none, it is what layers before the
    tensor, or else any layers of the model, are told by their arguments `padding_mask`,
    `attention_mask` and their like: a tensor of shape (batch, length) that follows from the inputs
    without a weight, such as KerasHub's `padding_mask`. It is followed back through casts, changes
    of shape and logical "and". No name of an input counts. Several that contradict each other are
    none. A part of a model that is not told has the mask of the whole, if that is still there; in
    a part that was saved and loaded, an input of that shape that is used for nothing else is a
    doubt.

    Args:
        graph: The model, read with `keep_masks`.
        tensor: The tensor that is pooled: (batch, length, ..., channels).
        mask: "auto", None for no mask, or where the mask is: an address or a Keras tensor.

    Returns:
        The mask, where positions that are 0 or False are passed over, or None; and a sentence
        where that needs one.

    Raises:
        AddressError: The mask is no tensor of the model, or has no shape (batch, length).
    """
    if mask is None or len(tensor.shape) < 3:
        return None, ""
    if mask != AUTO if isinstance(mask, str) else True:
        return _given(graph, tensor, mask), ""
    known = graph.known_masks.get(tensor)
    if known is not None:
        return (known, "") if _fits(known, tensor) else (None, "")
    told = _all_told(graph, ancestors(graph, [tensor]))
    whole = _wholes.get(graph.model)
    original = None if whole is None else _original(tensor, whole)
    if not told and whole is not None and original is not None:
        return _known_to_whole(graph, tensor, whole, original)
    # Embeddings are told of no mask; what is said after them of the same positions counts then.
    told = told or _first_told(graph, tensor) or _all_told(graph, graph.calls)
    if not told:
        return None, _doubt(graph, tensor)
    sizes = nominal_shapes(graph, strides(graph))
    found = dict.fromkeys(
        m for masks in told.values() for m in masks if sizes[m][0] == sizes[tensor][0]
    )
    if len(found) > 1:
        last = max(told, key=lambda call: call.index)
        own = dict.fromkeys(_told(graph, last, _OWN))
        if len(own) == 1 and len(dict.fromkeys(told[last])) > 1:
            found = own
    if len(found) > 1:
        listed = ", ".join(repr(each.address) for each in found)
        return None, (
            f"{tensor.address!r} is pooled over all its positions, since {listed} may each say "
            "which of them are filling: pass one of them as mask."
        )
    return next(iter(found), None), ""


def _original(tensor: Tensor, whole: Graph) -> Tensor | None:
    """Return the tensor of the whole that a part of it has, where calls are counted anew."""
    same = whole.by_keras_tensor.get(id(tensor.keras_tensor), ())
    if len(same) == 1:
        return same[0]
    return None if "@" in tensor.address else whole.names.get(tensor.address)


def _known_to_whole(
    graph: Graph, tensor: Tensor, whole: Graph, original: Tensor
) -> tuple[Tensor | None, str]:
    """Return the mask of a tensor of a part, as the whole has it."""
    found, doubt = padding_mask(whole, original)
    here = graph.names.get(found.address) if found is not None else None
    if found is None or (here is not None and _fits(here, tensor)):
        return here, doubt
    return None, (
        f"{tensor.address!r} is pooled over all its positions, since {found.address!r} of "
        f"{whole.model.name!r}, which says which of them are filling, is not in "
        f"{graph.model.name!r}: pool with rk.extract, from the model that has both."
    )


def _doubt(graph: Graph, tensor: Tensor) -> str:
    """Return a sentence where an input that nothing else uses may be the mask of a tensor."""
    if len(graph.inputs) < 2 or len(tensor.shape) != 3:
        return ""
    before = {read for call in ancestors(graph, [tensor]) for read in (*call.reads, *call.outputs)}
    unused = [
        repr(each.address)
        for each in graph.inputs
        if each not in before
        and _fits(each, tensor)
        and not any(call.variables for call in graph.readers[each])
    ]
    if not unused:
        return ""
    return (
        f"{tensor.address!r} is pooled over all its positions, since no layer is told which of "
        f"them are filling, though {', '.join(unused)} may say so: pass its address as mask, or "
        "mask=None."
    )


def _first_told(graph: Graph, tensor: Tensor) -> dict[Call, list[Tensor]]:
    """Return the first call behind a tensor that is told of its own positions, with its masks."""
    after = {tensor}
    for call in graph.calls:
        if after.isdisjoint(call.reads):
            continue
        after.update(call.outputs)
        masks = [mask for mask in _told(graph, call, _OWN) if _fits(mask, tensor)]
        if masks:
            return {call: masks}
    return {}


def _all_told(graph: Graph, calls: Iterable[Call]) -> dict[Call, list[Tensor]]:
    """Return the masks that calls are given, for each that is given any."""
    found = {call: list(_told(graph, call, _OWN + _OTHER)) for call in calls if not call.is_input}
    return {call: masks for call, masks in found.items() if masks}


def _given(graph: Graph, tensor: Tensor, mask: Any) -> Tensor:
    found = mask if isinstance(mask, Tensor) else resolve_one(graph, mask)
    if not _fits(found, tensor):
        raise AddressError(
            f"Expected mask as the address of a tensor of shape (batch, length), for features of "
            f"shape {tensor.shape}. Received: {found.address!r} of shape {found.shape}."
        )
    return found


def _fits(mask: Tensor, tensor: Tensor) -> bool:
    axes = len(mask.shape)
    return 1 < axes < len(tensor.shape) and may_agree(mask.shape, tensor.shape[:axes])


def _told(graph: Graph, call: Call, names: tuple[str, ...]) -> Iterator[Tensor]:
    """Yield the masks that a call is given by arguments of some names."""
    if mask_arguments(call.operation).isdisjoint(names):
        return
    taken = keras_internals.call_arguments(call.operation)
    given = dict(zip(taken, call.args, strict=False)) | call.kwargs
    for name in names:
        for mask in tensors_in(given.get(name)):
            yield from _origins(graph, mask)


def _origins(graph: Graph, mask: Tensor) -> Iterator[Tensor]:
    """Yield the tensors of shape (batch, length) that a mask of attention is made from."""
    call = graph.maker[mask]
    if mask not in graph.free or len(mask.shape) < 2:
        return
    inputs = [tensor for tensor in call.inputs if len(tensor.shape) > 1]
    passed = keras_internals.keeps_truth(call.operation)
    if len(mask.shape) == 2 and not (passed and len(inputs) == 1 and len(inputs[0].shape) == 2):
        yield mask
    elif passed:
        for tensor in inputs:
            yield from _origins(graph, tensor)
