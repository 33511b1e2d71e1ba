"""The masks that tensors carry when the model runs.

The masks that Keras attached while the model was built are only part of it. A nested model was
built without the mask that it is called with; MultiHeadAttention takes the masks off its inputs
when it runs, so that a residual sum after it has none; ReversibleEmbedding makes its mask when it
runs and not before. All of this is followed here, call by call. A mask that is computed nowhere in
the recorded calls is added to them where a call reads it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from reusekit.graph import keras_internals as internals
from reusekit.graph.graph import Tensor
from reusekit.graph.keras_internals import Record
from reusekit.graph.masks import (
    HiddenMask,
    hidden_mask_ranks,
    implicit_mask_carriers,
    made_masks,
    masks_token_zero,
    may_set_masks,
    starts_masks,
    strips_masks,
)

Bound = dict[int, Any]  # to a Tensor, or to None for an optional input that is left out
Add = Callable[[str, Any, tuple, dict, Sequence[keras.KerasTensor]], Sequence[Tensor]]


class _Symbol(NamedTuple):
    """A mask as a Keras tensor, not looked up before it is needed: it may be computed later.

    Attributes:
        bound: From the ids of Keras tensors to the tensors of the graph they stand for.
        keras_tensor: The mask.
        address: Its name where the graph has none for it.
    """

    bound: Bound
    keras_tensor: keras.KerasTensor
    address: str


class MaskFlow:
    """Follows masks through the calls of a model, in the order in which they are read.

    Args:
        keep: Whether to add each mask to the graph, also where no call reads it.

    Attributes:
        keeps: As it was given.
        kept: From a tensor to its mask, where masks are kept: the one that it carries when the
            model runs, or the one that Keras attached to it, though it is taken off by then.
    """

    def __init__(self, keep: bool = False):
        self._masks: dict[Tensor, _Symbol | Tensor] = {}
        self._carrying: set[Tensor] = set()
        self.keeps = keep
        self._to_keep: list[tuple[Bound, Tensor, _Symbol | Tensor]] = []
        self.kept: dict[Tensor, Tensor] = {}

    @property
    def any(self) -> bool:
        """Return whether any tensor has a mask."""
        return bool(self._masks)

    def fed(self, tensor: Tensor, mask: Tensor) -> None:
        """Note that a nested model was called on a tensor with a mask."""
        self._masks[tensor] = mask
        self._carrying.add(tensor)

    def carried(self, tensor: Tensor | None, add: Add) -> Tensor | None:
        """Return the mask that a tensor carries, added to the graph where it is not in it."""
        if tensor not in self._carrying:
            return None
        mask = self._masks[tensor]
        return _computed(mask, add) if isinstance(mask, _Symbol) else mask

    def reads(self, record: Record, bound: Bound, add: Add) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the masks that a call reads off its tensors, paired with these."""
        if not self._carrying:
            return ()
        carriers = implicit_mask_carriers(record.operation, record.args, record.kwargs)
        tensors: list[Any] = [bound.get(id(carrier)) for carrier in carriers]
        pairs = [(tensor, self.carried(tensor, add)) for tensor in tensors]
        return tuple((tensor, mask) for tensor, mask in pairs if mask is not None)

    def made(self, record: Record, bound: Bound, outputs: Sequence[Tensor], add: Add) -> None:
        """Note a call, whose outputs carry masks if its inputs do."""
        layer = record.operation
        if not isinstance(layer, keras.Layer):
            return
        kind: type = type(layer)
        built = [internals.mask_of(tensor.keras_tensor) for tensor in outputs]
        is_built_masked = built.count(None) < len(built)
        unrecorded = not is_built_masked and starts_masks(layer)
        masked = self._carrying or is_built_masked or unrecorded
        if not masked and not may_set_masks(kind):
            # The usual case, in a model without masks.
            return
        masks: Sequence[_Symbol | Tensor | None] = ()
        if masked:
            if not unrecorded and self._is_as_built(record, bound):
                masks = _symbols(bound, built, outputs)
            else:
                masks = self._made_now(record, bound, outputs, add)
        if not any(masks) and may_set_masks(kind):
            masks = _set_when_run(record, bound, outputs, add)
        for tensor, mask in zip(outputs, masks, strict=False):
            if mask is not None:
                self._masks[tensor] = mask
                self._carrying.add(tensor)
        if self.keeps:
            self._to_keep += self._masks_to_keep(bound, built, outputs)
        if strips_masks(layer):
            self._carrying.difference_update(bound.get(id(x)) for x in record.inputs)

    def _masks_to_keep(
        self, bound: Bound, built: Sequence[keras.KerasTensor | None], outputs: Sequence[Tensor]
    ) -> Iterator[tuple[Bound, Tensor, "_Symbol | Tensor"]]:
        for tensor, symbol in zip(outputs, _symbols(bound, built, outputs), strict=True):
            mask = self._masks[tensor] if tensor in self._carrying else symbol
            if mask is not None and (isinstance(mask, Tensor) or _follows_from_inputs(mask)):
                yield bound, tensor, mask

    def end(self, bound: Bound, add: Add) -> None:
        """End the reading of a model, adding the masks to be kept."""
        for _, tensor, mask in (each for each in self._to_keep if each[0] is bound):
            self.kept[tensor] = _computed(mask, add) if isinstance(mask, _Symbol) else mask
        self._to_keep = [each for each in self._to_keep if each[0] is not bound]

    def _is_as_built(self, record: Record, bound: Bound) -> bool:
        """Return whether the carriers of a layer's masks are those of building time."""
        if any(_is_keras_tensor(leaf) for leaf in keras.tree.flatten(record.kwargs.get("mask"))):
            return True
        for leaf in keras.tree.flatten(_first_argument(record)):
            if _is_keras_tensor(leaf):
                built, tensor = internals.mask_of(leaf), bound.get(id(leaf))
                now = self._masks[tensor] if tensor in self._carrying else None
                if built is None and now is None:
                    continue
                same = isinstance(now, _Symbol) and now.keras_tensor is built and now.bound is bound
                if not same:
                    return False
        return True

    def _made_now(
        self, record: Record, bound: Bound, outputs: Sequence[Tensor], add: Add
    ) -> Sequence[_Symbol | Tensor | None]:
        """Return the masks of a layer's outputs, made of the masks that its inputs carry now."""
        stands_for: Bound = {}

        def symbol(tensor: Tensor | None) -> keras.KerasTensor | None:
            if tensor is None:
                return None
            made = keras.KerasTensor(tensor.shape, tensor.dtype)
            stands_for[id(made)] = tensor
            return made

        def fed(leaf: Any) -> Any:
            return symbol(bound.get(id(leaf))) if _is_keras_tensor(leaf) else leaf

        def mask(leaf: Any) -> Any:
            return symbol(self.carried(bound.get(id(leaf)), add))

        first = _first_argument(record)
        inputs, masks = (keras.tree.map_structure(each, first) for each in (fed, mask))
        made = made_masks(record.operation, inputs, masks)
        if made is None:
            ranks = [len(m.shape) for m in keras.tree.flatten(masks) if m is not None]
            return _hidden(record, bound, outputs, ranks[:1] * len(outputs), add)
        return _symbols(stands_for, made, outputs)

    def among(self, tensors: set[Tensor]) -> dict[Tensor, Tensor]:
        """Map each of some tensors to its mask, where that is among them, too."""
        pairs = (
            (t, mask.bound.get(id(mask.keras_tensor)) if isinstance(mask, _Symbol) else mask)
            for t, mask in self._masks.items()
        )
        return {t: mask for t, mask in pairs if t in tensors and mask in tensors}


def _symbols(
    bound: Bound, masks: Sequence[keras.KerasTensor | None], outputs: Sequence[Tensor]
) -> list[_Symbol | None]:
    return [
        None if mask is None else _Symbol(bound, mask, f"{tensor.address}/mask")
        for tensor, mask in zip(outputs, masks, strict=False)
    ]


def _follows_from_inputs(mask: _Symbol) -> bool:
    """Return whether a mask is computed from what the model that is read is fed.

    A model that starts at an inner tensor of another may have tensors with masks that follow from
    the inputs of the other alone.
    """
    waiting, seen = [mask.keras_tensor], set()
    while waiting:
        made = waiting.pop()
        if id(made) in seen or id(made) in mask.bound:
            continue
        seen.add(id(made))
        record = internals.producer(made)
        if record.is_input:
            return False
        waiting.extend(record.inputs)
    return True


def _computed(mask: _Symbol, add: Add) -> Tensor:
    """Return a mask as a tensor of the graph, adding its computation where needed."""
    bound = mask.bound
    waiting = [mask.keras_tensor]
    added = 0
    while waiting:
        top = waiting[-1]
        if id(top) in bound:
            waiting.pop()
            continue
        record = internals.producer(top)
        missing = [x for x in record.inputs if id(x) not in bound]
        if missing:
            waiting.extend(missing)
            continue
        address = (
            mask.address if top is mask.keras_tensor else f"{mask.address}/{(added := added + 1)}"
        )
        args, kwargs = keras.tree.map_structure(
            lambda leaf: bound[id(leaf)] if _is_keras_tensor(leaf) else leaf,
            (record.args, record.kwargs),
        )
        made = add(address, record.operation, args, kwargs, record.outputs)
        bound.update((id(x), tensor) for x, tensor in zip(record.outputs, made, strict=True))
    return bound[id(mask.keras_tensor)]


def _set_when_run(
    record: Record, bound: Bound, outputs: Sequence[Tensor], add: Add
) -> Sequence[_Symbol | Tensor | None]:
    """Return the masks that a layer sets in its `call`, which is not run at building."""
    layer, args, kwargs = record.operation, record.args, record.kwargs
    if masks_token_zero(layer, args, kwargs):
        tokens = bound[id(record.inputs[0])]
        symbol = keras.KerasTensor(tokens.shape, tokens.dtype)
        mask = keras.layers.Embedding.compute_mask(layer, symbol)
        return _symbols({id(symbol): tokens}, [mask], outputs)
    return _hidden(record, bound, outputs, hidden_mask_ranks(layer, args, kwargs), add)


def _hidden(
    record: Record, bound: Bound, outputs: Sequence[Tensor], ranks: Sequence[int], add: Add
) -> list[Tensor | None]:
    """Return stand-ins for masks that only the layer itself can make; None for rank 0."""
    inputs = tuple(tensor for x in record.inputs if (tensor := bound.get(id(x))) is not None)
    found: list[Tensor | None] = []
    for tensor, rank in zip(outputs, ranks, strict=False):
        spec = keras.KerasTensor(tensor.shape[:rank], "bool")
        mask = HiddenMask(record.operation)
        made = add(f"{tensor.address}/mask", mask, inputs, {}, [spec]) if rank else [None]
        found.extend(made)
    return found


def _first_argument(record: Record) -> Any:
    """Return the first argument, whose masks Keras makes a layer's output masks of."""
    return record.args[0] if record.args else next(iter(record.kwargs.values()), None)


def _is_keras_tensor(leaf: object) -> bool:
    return isinstance(leaf, keras.KerasTensor)
