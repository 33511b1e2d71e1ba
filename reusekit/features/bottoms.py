"""Models that compute what crosses a cut: from the model's inputs, or from a shallower cut."""

import keras

from reusekit.features.frontier import Frontier
from reusekit.graph import ancestors, keras_internals
from reusekit.surgery import extract, segment


def from_inputs(target: Frontier) -> keras.Model:
    """Return the model from the inputs to the tensors of `crossing`, in their order."""
    addresses = [tensor.address for tensor in target.crossing]
    return extract(target.graph, addresses, target.pooling, mask_of(target))


def mask_of(target: Frontier) -> str | None:
    """Return the mask under which a cut is pooled, as `extract` takes it."""
    if target.masked_by is None or target.mask is None:
        return target.masked_by
    return target.mask.address


def leads_to(source: Frontier, target: Frontier) -> bool:
    """Return whether what is stored of one cut is enough to compute what is stored of another.

    It is not where the source is pooled, where it does not lie before the target, and where the
    target is pooled under a mask, which would be lost on the way.
    """
    if source.pooling is not None or source is target:
        return False
    if source.graph is not target.graph or (target.pooling and target.mask is not None):
        return False
    known = {*source.stored, *source.crossing, *target.crossing}
    return (
        known.issuperset(target.stored)
        and _is_before(source, target)
        and not (target.pooling and _is_masked(target))
    )


def _is_before(source: Frontier, target: Frontier) -> bool:
    if source.asked == target.asked:
        return target.pooling is not None  # the same maps, pooled
    graph, above = source.graph, source.place.top
    tops = zip(above, target.place.top, strict=True)
    return (
        all(source_top or not target_top for source_top, target_top in tops)
        and not set(source.asked) & set(target.asked)
        and all(above[graph.maker[t].index] or t in source.crossing for t in target.asked)
    )


def _is_masked(target: Frontier) -> bool:
    """Return whether pooled tensors may carry a mask; it is not recorded where unread."""
    return any(
        tensor in target.graph.masks or keras_internals.mask_of(tensor.source) is not None
        for call in ancestors(target.graph, target.asked)
        for tensor in call.outputs
    )


def between(source: Frontier, target: Frontier) -> keras.Model:
    """Return the model from one cut's tensors to those of a deeper one, as a list.

    Args:
        source: Where it starts; `leads_to(source, target)` holds.
        target: Where it ends, pooled as it says.
    """
    graph = source.graph
    if source.asked == target.asked:
        inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in source.crossing]
        part = keras.Model(inputs, inputs)
    else:
        part = segment(graph, [list(source.asked), list(target.asked)])[1]
    outputs = part.outputs[: len(target.crossing)]
    return extract(part, outputs, target.pooling, mask_of(target))
