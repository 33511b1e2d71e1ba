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

    @property
    def pooled_under(self) -> str | None:
        """The mask as `extract` takes it."""
        if self.masked_by is None or self.mask is None:
            return self.masked_by
        return self.mask.address

    @cached_property
    def cut(self) -> Cut:
        """The cut itself, with what depends on it."""
        return cut(self.graph, self.asked)

    @checked(CacheError)
    def restore(self, stored: Mapping[str, Any]) -> Any:
        """Return the crossing tensors from a batch of each stored one, by address.

        They come in the model's own precision: one, or a tuple like `crossing`.
        """
        if not set(self.names) <= stored.keys():
            raise CacheError(
                f"Expected a batch of each of {', '.join(self.names)}. "
                f"Received: {', '.join(map(str, stored)) or 'none'}."
            )
        return restored(self, stored)

    @cached_property
    def remade(self) -> tuple[list[Tensor], list[Tensor], keras.Model]:
        """The tensors that are made from inputs, with these and the model that does it."""
        made = [tensor for tensor in self.crossing if tensor not in self.stored]
        model = extract(self.graph, [tensor.address for tensor in made])
        of = dict(zip(self.graph.inputs, model.inputs, strict=True))
        needed = _inputs_of(self.graph, made)
        return needed, made, keras.Model([of[tensor] for tensor in needed], model.outputs)


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
    from it), are stored, or the inputs are in their stead, whichever takes fewer bytes.

    Args:
        model: A model, or one that was read already.
        at: Where it is cut: an address, a `CutPoint`, a Keras tensor, or a list of these.
        pooling: "avg", "max" or "token" stores the tensors asked for alone, pooled for a head; None
            stores whole maps.
        mask: Which positions pooling passes over, as for `extract`.
        carries_mask: Whether the mask crosses after whole maps, for a head that pools them.

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
    found = cut(graph, resolve(graph, at))
    told = [padding_mask(graph, tensor, mask) for tensor in (found.at if wants_mask else ())]
    masks = [each for each, _ in told if each is not None]
    about = (next(iter(masks), None), mask, tuple(doubt for _, doubt in told if doubt))
    if pooling is not None:
        return Frontier(graph, found.at, found.at, found.at, pooling, *about)
    carried = [each for each in dict.fromkeys(masks) if each not in found.frontier]
    crossing = (*found.frontier, *carried)
    may_follow = {*found.free, *(each for each in carried if each in graph.free)}
    free = [tensor for tensor in crossing if tensor in may_follow]
    kept = [tensor for tensor in crossing if tensor not in may_follow]
    inputs = _inputs_of(graph, free)
    if free and _bytes(graph, inputs) < _bytes(graph, free):
        free = [tensor for tensor in inputs if tensor not in kept]
    return Frontier(graph, found.at, crossing, (*kept, *free), pooling, *about)


def restored(frontier: Frontier, stored: Mapping[str, Any]) -> Any:
    """Return what `Frontier.restore` does; unchecked, for TensorFlow to trace."""
    found = {t: keras.ops.cast(stored[t.address], t.dtype) for t in frontier.stored}
    if not found.keys() >= set(frontier.crossing):
        needed, made, model = frontier.remade
        found.update(zip(made, model([found[t] for t in needed], training=False), strict=True))
    tensors = tuple(found[tensor] for tensor in frontier.crossing)
    return tensors[0] if len(tensors) == 1 else tensors


def _inputs_of(graph: Graph, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the model inputs that some tensors are computed from, in the model's order."""
    needed = {t for call in ancestors(graph, tensors) if call.is_input for t in call.outputs}
    return [tensor for tensor in graph.inputs if tensor in needed]


def _bytes(graph: Graph, tensors: Sequence[Tensor]) -> int:
    """Return the bytes of one example; open sizes are taken as the cut points take them."""
    shapes = nominal_shapes(graph, strides(graph))
    # Keras names its dtypes as NumPy does, and registers bfloat16 with it.
    return sum(math.prod(shapes[t]) * np.dtype(t.dtype).itemsize for t in tensors)
