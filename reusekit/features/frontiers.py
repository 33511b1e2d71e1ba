"""The tensors that cross a cut, which are what is stored of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras

from reusekit.arguments import checked
from reusekit.errors import CacheError
from reusekit.graph import Cut, Graph, Tensor, cut, read, resolve
from reusekit.graph.padding_mask import AUTO, padding_mask

Features = tuple[str, str | None]
"""The name of features: the cut, and how they are pooled."""


@dataclass(frozen=True, eq=False)
class Frontier:
    """The tensors that cross a cut, which are stored.

    Attributes:
        crossing: These, in the order in which `split(model, at).top` takes them; with pooling
            those that were asked for.
        pooling: How they are pooled before: "avg", "max", "token" or None.
        mask: The mask under which each is pooled, or None.
        masked_by: What `mask` the frontier was asked for with.
        doubts: What could not be decided about masks, in sentences.
    """

    graph: Graph = field(repr=False)
    asked: tuple[Tensor, ...]
    crossing: tuple[Tensor, ...]
    pooling: str | None
    mask: Tensor | None = None
    masked_by: Any = AUTO
    doubts: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The addresses of the crossing tensors."""
        return tuple(tensor.address for tensor in self.crossing)

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
def frontier(
    model: keras.Model | Graph,
    at: Any,
    pooling: str | None = None,
    mask: Any = AUTO,
    carries_mask: bool = False,
) -> Frontier:
    """Return the tensors that cross a cut: those asked for, and what else the top reads.

    Args:
        model: A model, or one that was read already.
        at: Where it is cut: an address, a `CutPoint`, a Keras tensor, or a list of these.
        pooling: "avg", "max" or "token" stores the tensors asked for, pooled; None whole maps.
        mask: See `Extraction`.
        carries_mask: See `Extraction`.

    Example:
        >>> tokens, valid = (keras.Input((16,), dtype="int32", name=n) for n in ("tokens", "valid"))
        >>> x = keras.layers.Embedding(9, 4, name="embedding")(tokens)
        >>> y = keras.layers.LSTM(4)(x, mask=valid)
        >>> frontier(keras.Model([tokens, valid], y), "embedding").names
        ('embedding', 'valid')
    """
    wants_mask = mask is not None and (pooling is not None or carries_mask)
    graph = read(model, keep_masks=wants_mask)
    found = cut(graph, resolve(graph, at))
    told = [padding_mask(graph, tensor, mask) for tensor in (found.at if wants_mask else ())]
    masks = [each for each, _ in told if each is not None]
    about = (next(iter(masks), None), mask, tuple(doubt for _, doubt in told if doubt))
    crossing = found.at if pooling else tuple(dict.fromkeys([*found.frontier, *masks]))
    return Frontier(graph, found.at, crossing, pooling, *about)


def restored(frontier: Frontier, stored: Mapping[str, Any]) -> Any:
    """Return a stored batch, by address, as the top takes it: one tensor, or a tuple.

    It comes in the model's own precision.
    """
    found = tuple(keras.ops.cast(stored[one.address], one.dtype) for one in frontier.crossing)
    return found[0] if len(found) == 1 else found
