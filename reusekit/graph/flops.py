"""Floating-point operations of each call, for one example: multiply-adds times two."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from reusekit.graph import keras_internals as internals
from reusekit.graph.flop_rules import rule_for
from reusekit.graph.graph import Call, Graph, Tensor
from reusekit.graph.tracing import read_inside

NOMINAL_IMAGE = 224
NOMINAL_SEQUENCE = 128


@dataclass(frozen=True)
class Flops:
    """The costs of a model's calls.

    Attributes:
        per_call: FLOPs of each call by its index, for one example in inference.
        uncounted: The classes of layers and operations that no rule covers and whose inside cannot
            be seen, sorted. They count as zero.
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
    """Count the FLOPs of each call of a graph.

    A multiply-add counts as two, any other arithmetic on an element as one; moving, reshaping and
    looking up count as zero. Dimensions the model leaves open are taken at a nominal size, see
    `nominal_shapes`. A layer without a rule costs what the calls cost that its
    own `call` is made of; where that cannot be seen, it counts as zero and is named.

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
        count, unknown = (0, ()) if call.is_input else _count(call, shapes)
        counts.append(count)
        uncounted.update(unknown)
    return Flops(tuple(counts), tuple(sorted(uncounted)), shapes, stride)


def _count(call: Call, shapes: Mapping[Tensor, tuple[int, ...]]) -> tuple[int, tuple[str, ...]]:
    """Return the FLOPs of one call, and the classes in it that no rule covers."""
    rule = rule_for(call.operation)
    if rule is not None:
        given = _shapes(_arguments(call), shapes)
        return int(rule(call.operation, given, _shapes(call.outputs, shapes))), ()
    inside = read_inside(call, shapes)
    if inside is None:
        return 0, (type(call.operation).__name__,)
    found = count_flops(inside)
    return found.total, found.uncounted


def _arguments(call: Call) -> list:
    """Return a call's arguments in the order of its signature, however they were passed."""
    order = internals.call_arguments(call.operation)
    named = sorted(
        call.kwargs.items(), key=lambda item: order.index(item[0]) if item[0] in order else -1
    )
    return [*call.args, *(value for _, value in named)]


def _shapes(structure: Any, shapes: Mapping[Tensor, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors in a structure; of one that is there twice, twice.

    A weight or a constant, such as a layer's own code multiplies by, has no batch dimension.
    """
    leaves = keras.tree.flatten(structure)
    return [
        shapes[leaf] if isinstance(leaf, Tensor) else tuple(leaf.shape)
        for leaf in leaves
        if isinstance(leaf, Tensor | keras.Variable) or keras.ops.is_tensor(leaf)
    ]


def strides(graph: Graph) -> dict[Tensor, float]:
    """Return each tensor's stride: the input's first spatial axis over the tensor's.

    Follows the strides of the layers, so that padding does not blur it and sizes may be open: 32.0
    for the last feature map of a ResNet, 0.5 after an upsampling of an input.
    """
    found: dict[Tensor, float] = {}
    for call in graph.calls:
        coming = max((found[tensor] for tensor in call.inputs), default=1.0)
        factor = _stride_of(call.operation)
        for tensor in call.outputs:
            found[tensor] = coming * (_resized(call, tensor) if factor is None else factor)
    return found


def _resized(call: Call, tensor: Tensor) -> float:
    """Return the ratio of the sizes before and after a call that has no stride, such as slicing.

    A ratio near one is padding or cropping.
    """
    after = spatial_size(tensor)
    for read in call.inputs:
        before = spatial_size(read)
        if before and after and len(read.shape) == len(tensor.shape):
            return 1.0 if 0.67 < before / after < 1.5 else before / after
    return 1.0


def spatial_size(tensor: Tensor) -> int | None:
    """Return the length of a tensor's first spatial axis; None if absent or open."""
    if len(tensor.shape) < 3:
        return None
    first = tensor.shape[2 if keras.config.image_data_format() == "channels_first" else 1]
    return first or None


def _stride_of(operation: Any) -> float | None:
    """Return the stride of a layer by its settings, or None where it has no such setting."""
    for name in ("strides", "stride"):
        value = getattr(operation, name, None)
        if value is not None:
            first = value[0] if isinstance(value, tuple | list) else value
            transposed = "Transpose" in type(operation).__name__
            return 1 / first if transposed else float(first)
    size = getattr(operation, "size", None)
    if type(operation).__name__.startswith("UpSampling") and size is not None:
        return 1 / (size[0] if isinstance(size, tuple | list) else size)
    return None


def nominal_shapes(graph: Graph, stride: Mapping[Tensor, float]) -> dict[Tensor, tuple[int, ...]]:
    """Return one example's shape for each tensor, without the batch dimension.

    A known dimension stands as it is. An open one is taken as `NOMINAL_IMAGE` in a model that is
    fed tensors of rank four or more, and as `NOMINAL_SEQUENCE` in any other, divided by the
    tensor's stride, so that shares and ratios come out as they would at that size.
    """
    sequence = all(len(tensor.shape) < 4 for tensor in graph.inputs)
    nominal = NOMINAL_SEQUENCE if sequence else NOMINAL_IMAGE
    return {
        tensor: tuple(
            math.ceil(nominal / stride[tensor]) if size is None else size
            for size in tensor.shape[1:]
        )
        for tensor in graph.tensors
    }
