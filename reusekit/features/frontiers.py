"""The stored tensors of a cut, and the way back to those that cross it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras
import numpy as np

from reusekit.arguments import checked
from reusekit.errors import CacheError
from reusekit.graph import Cut, Graph, Tensor, ancestors, cut, read, resolve
from reusekit.graph.flops import nominal_shapes, strides
from reusekit.graph.padding_mask import AUTO, padding_mask
from reusekit.surgery import extract

Features = tuple[str, str | None]
"""The name of features: the cut, and how they are pooled."""


@dataclass(frozen=True, eq=False)
class Frontier:
    """The tensors that cross a cut, and those of them, or of the inputs, that are stored.

    Attributes:
        graph: The model that is cut.
        asked: The tensors that were asked for.
        crossing: The tensors that cross, in the order in which `split(model, at).top` takes them;
            with pooling those that were asked for.
        stored: The tensors that are stored.
        pooling: How they are pooled before: "avg", "max", "token" or None.
        mask: The mask under which each is pooled, or None.
        masked_by: What `mask` the frontier was asked for with.
        doubts: What could not be decided about masks, in sentences.
    """

    graph: Graph = field(repr=False)
    asked: tuple[Tensor, ...]
    crossing: tuple[Tensor, ...]
    stored: tuple[Tensor, ...]
    pooling: str | None
    mask: Tensor | None = None
    masked_by: Any = AUTO
    doubts: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The addresses of the stored tensors."""
        return tuple(tensor.address for tensor in self.stored)

    @cached_property
    def cut(self) -> Cut:
        """The cut itself, with what depends on it."""
        return cut(self.graph, self.asked)

    @checked(CacheError)
    def restore(self, stored: Mapping[str, Any]) -> Any:
        """Return the crossing tensors from the stored ones: one, or a tuple like `crossing`.

        Args:
            stored: A batch of each stored tensor, by address, in whatever precision; the model's
                own comes back. Works inside `tf.data`, too.
        """
        if not set(self.names) <= stored.keys():
            raise CacheError(
                f"Expected a batch of each of {', '.join(self.names)}. "
                f"Received: {', '.join(map(str, stored)) or 'none'}."
            )
        found = {t.address: keras.ops.cast(stored[t.address], t.dtype) for t in self.stored}
        if self._recomputed:
            inputs = [found[tensor.address] for tensor in self._needed]
            made = self._from_inputs(inputs, training=False)
            found.update(zip((t.address for t in self._recomputed), made, strict=True))
        tensors = tuple(found[tensor.address] for tensor in self.crossing)
        return tensors[0] if len(tensors) == 1 else tensors

    @cached_property
    def _recomputed(self) -> list[Tensor]:
        return [tensor for tensor in self.crossing if tensor not in self.stored]

    @cached_property
    def _needed(self) -> list[Tensor]:
        return inputs_of(self.graph, self._recomputed)

    @cached_property
    def _from_inputs(self) -> keras.Model:
        model = extract(self.graph, [tensor.address for tensor in self._recomputed])
        of = dict(zip(self.graph.inputs, model.inputs, strict=True))
        return keras.Model([of[tensor] for tensor in self._needed], model.outputs)


@checked(CacheError)
def frontier(
    model: keras.Model | Graph,
    at: Any,
    pooling: str | None = None,
    mask: Any = AUTO,
    carries_mask: bool = False,
) -> Frontier:
    """Decide what to store of a cut.

    The tensors asked for are stored, and so is what else crosses with them. Free tensors among
    that, which follow from the inputs without a weight (a padding mask, an attention mask made
    from it), are stored, or the inputs are in their place, whichever takes fewer bytes.

    Args:
        model: A model, or one that was read already.
        at: Where it is cut: an address, a `CutPoint`, a Keras tensor, or a list of these.
        pooling: "avg" or "max" stores the tensors asked for alone, pooled as by `extract`: a head
            takes them, and no top that needs the others. None stores whole maps.
        mask: Which positions pooling passes over, as for `extract`.
        carries_mask: Whether the mask is to cross as well where nothing is pooled, for a head that
            pools: after all else, if no top needs it.

    Raises:
        AddressError: `at` names no tensor of the model, or several.
        CutOrderError: One of several tensors asked for depends on another.

    Example:
        >>> tokens = keras.Input((16,), dtype="int32", name="tokens")
        >>> same = keras.ops.equal(tokens[:, :, None], tokens[:, None, :])
        >>> x = keras.layers.Embedding(9, 4, name="embedding")(tokens)
        >>> y = keras.layers.MultiHeadAttention(1, 4)(x, x, attention_mask=same)
        >>> frontier(keras.Model(tokens, y), "embedding").names
        ('embedding', 'tokens')
    """
    wants_mask = mask is not None and (pooling is not None or carries_mask)
    graph = read(model, keep_masks=wants_mask)
    place = cut(graph, resolve(graph, at))
    masks, doubts = [], []
    for tensor in place.at if wants_mask else ():
        found, doubt = padding_mask(graph, tensor, mask)
        masks += [found] if found is not None else []
        doubts += [doubt] if doubt else []
    known = next(iter(masks), None)
    about = {"mask": known, "masked_by": mask, "doubts": tuple(doubts)}
    if pooling is not None:
        return Frontier(graph, place.at, place.at, place.at, pooling, **about)
    carried = tuple(m for m in dict.fromkeys(masks) if m not in place.frontier)
    crossing = (*place.frontier, *carried)
    may_follow = {*place.free, *(mask for mask in carried if mask in graph.free)}
    free = [tensor for tensor in crossing if tensor in may_follow]
    kept = tuple(tensor for tensor in crossing if tensor not in may_follow)
    inputs = inputs_of(graph, free)
    if free and _bytes(graph, inputs) < _bytes(graph, free):
        free = [tensor for tensor in inputs if tensor not in kept]
    return Frontier(graph, place.at, crossing, (*kept, *free), pooling, **about)


def inputs_of(graph: Graph, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the model inputs that some tensors are computed from, in the model's order."""
    needed = {t for call in ancestors(graph, tensors) if call.is_input for t in call.outputs}
    return [tensor for tensor in graph.inputs if tensor in needed]


def _bytes(graph: Graph, tensors: Sequence[Tensor]) -> int:
    """Return the bytes of one example; open sizes are taken as the cut points take them."""
    shapes = nominal_shapes(graph, strides(graph))
    # Keras names its dtypes as NumPy does, and registers bfloat16 with it.
    return sum(math.prod(shapes[t]) * np.dtype(t.dtype).itemsize for t in tensors)
