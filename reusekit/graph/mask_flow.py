"""Which tensor carries which mask when the model runs.

The masks that Keras attached while the model was built are only part of it. A nested model was
built without the mask that it is called with, and MultiHeadAttention takes the masks off its inputs
when it runs, so that a residual sum after it has none. Both are followed here, call by call.
"""

from collections.abc import Iterator, Sequence

import keras

from reusekit.graph import keras_internals as internals
from reusekit.graph.graph import Tensor
from reusekit.graph.keras_internals import Record
from reusekit.graph.masks import implicit_mask_sources, passes_mask, strips_masks

Bound = dict[int, Tensor | None]


class MaskFlow:
    """Follows masks through the calls of a model, in the order in which they are read."""

    def __init__(self):
        # A mask may be computed after the tensor that carries it, so it is looked up when needed.
        self._masks: dict[Tensor, tuple[Bound, keras.KerasTensor] | Tensor] = {}
        self._carrying: set[Tensor] = set()

    def fed(self, tensor: Tensor, mask: Tensor) -> None:
        """A nested model was called on a tensor with a mask."""
        self._masks[tensor] = mask
        self._carrying.add(tensor)

    def mask_of(self, tensor: Tensor) -> Tensor | None:
        """The mask that a tensor was made with, where it is in the graph."""
        found = self._masks.get(tensor)
        if isinstance(found, tuple):
            bound, source = found
            return bound.get(id(source))
        return found

    def reads(self, record: Record, bound: Bound) -> tuple[tuple[Tensor, Tensor], ...]:
        """The masks that a call reads off its tensors, paired with these."""
        if not self._carrying:
            return ()
        found = []
        for source in implicit_mask_sources(
            record.operation, record.args, record.kwargs, _is_keras_tensor
        ):
            tensor = bound.get(id(source))
            if tensor in self._carrying and (mask := self.mask_of(tensor)) is not None:
                found.append((tensor, mask))
        return tuple(found)

    def made(self, record: Record, bound: Bound, outputs: Sequence[Tensor]) -> None:
        """A call was made; its outputs carry masks if what they are made of does."""
        if not self._carrying and all(internals.mask_of(t.source) is None for t in outputs):
            return
        inputs = [tensor for x in record.inputs if (tensor := bound.get(id(x))) is not None]
        given = any(
            bound.get(id(leaf)) is not None
            for name, value in record.kwargs.items()
            if name.endswith("mask")
            for leaf in keras.tree.flatten(value)
        )
        carries = given or all(tensor in self._carrying for tensor in self._masked(inputs))
        for tensor in outputs if carries else ():
            mask = internals.mask_of(tensor.source)
            if mask is not None:
                self._masks[tensor] = (bound, mask)
                self._carrying.add(tensor)
            elif self._hands_on(record, inputs):
                self._masks[tensor] = self._masks[inputs[0]]
                self._carrying.add(tensor)
        if strips_masks(record.operation):
            self._carrying.difference_update(inputs)

    def _masked(self, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        """Those tensors that were made with a mask, or that Keras thinks were."""
        return (
            tensor
            for tensor in tensors
            if tensor in self._masks or internals.mask_of(tensor.source) is not None
        )

    def _hands_on(self, record: Record, inputs: Sequence[Tensor]) -> bool:
        """Whether a call hands on a mask that was not there when the model was built."""
        if not inputs or inputs[0] not in self._carrying or len(record.outputs) != 1:
            return False
        mask = self.mask_of(inputs[0])
        return mask is not None and passes_mask(record.operation, inputs[0].source, mask.shape)

    def among(self, tensors: set[Tensor]) -> dict[Tensor, Tensor]:
        """From each tensor that is made with a mask to the mask, where both are among some."""
        pairs = ((tensor, self.mask_of(tensor)) for tensor in self._masks)
        return {t: mask for t, mask in pairs if t in tensors and mask in tensors}


def _is_keras_tensor(leaf: object) -> bool:
    return isinstance(leaf, keras.KerasTensor)
