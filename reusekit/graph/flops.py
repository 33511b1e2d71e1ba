"""Floating-point operations of each call, for one example: multiply-adds times two."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from reusekit.graph.flop_rules import rule_for
from reusekit.graph.graph import Graph, Tensor
from reusekit.graph.sizes import nominal_shapes, strides


@dataclass(frozen=True)
class Flops:
    """What a model's calls cost.

    Attributes:
        per_call: FLOPs of each call by its index, for one example in inference.
        uncounted: The classes of layers and operations that no rule covers, sorted. They count as
            zero.
        shapes: The shape of one example of each tensor that the count is based on.
        stride: The stride of each tensor.
    """

    per_call: tuple[int, ...]
    uncounted: tuple[str, ...]
    shapes: Mapping[Tensor, tuple[int, ...]]
    stride: Mapping[Tensor, float]

    @property
    def total(self) -> int:
        """FLOPs of the whole model for one example."""
        return sum(self.per_call)


def count_flops(graph: Graph) -> Flops:
    """Counts the FLOPs of each call of a graph.

    A multiply-add counts as two, any other arithmetic on an element as one; moving, reshaping and
    looking up count as zero. Dimensions the model leaves open are taken at a nominal size, see
    `reusekit.graph.sizes.nominal_shapes`. A layer without a rule counts as zero and is named.

    Args:
        graph: A model that was read.

    Returns:
        The count.

    Example:
        >>> from reusekit.graph import read
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(3, use_bias=False, name="head")(x))
        >>> count_flops(read(model)).total
        24
    """
    stride = strides(graph)
    shapes = nominal_shapes(graph, stride)
    counts: list[int] = []
    uncounted: set[str] = set()
    for call in graph.calls:
        rule = None if call.is_input else rule_for(call.operation)
        if rule is None:
            if not call.is_input:
                uncounted.add(type(call.operation).__name__)
            counts.append(0)
        else:
            counts.append(
                int(
                    rule(
                        call.operation,
                        _shapes((call.args, call.kwargs), shapes),
                        _shapes(call.outputs, shapes),
                    )
                )
            )
    return Flops(tuple(counts), tuple(sorted(uncounted)), shapes, stride)


def _shapes(structure: Any, shapes: Mapping[Tensor, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes of the tensors in a structure; of one that is there twice, twice."""
    leaves = keras.tree.flatten(structure)
    return [shapes[leaf] for leaf in leaves if isinstance(leaf, Tensor)]
