"""Concrete shapes for one example, also where a model leaves dimensions open."""

import math
from collections.abc import Mapping
from typing import Any

import keras

from reusekit.graph.graph import Call, Graph, Tensor

NOMINAL_IMAGE = 224
NOMINAL_SEQUENCE = 128


def strides(graph: Graph) -> dict[Tensor, float]:
    """How much coarser each tensor's first spatial axis is than the input's.

    Follows the strides of the layers, so that it also works where sizes are open: 32.0 for the last
    feature map of a ResNet, 0.5 after an upsampling of an input.
    """
    found: dict[Tensor, float] = {}
    for call in graph.calls:
        coming = max((found[tensor] for tensor in call.inputs if tensor in found), default=1.0)
        factor = _stride_of(call.operation)
        for tensor in call.outputs:
            measured = _measured(call, tensor, found)
            found[tensor] = measured if measured is not None else coming * factor
    return found


def _measured(call: Call, tensor: Tensor, found: Mapping[Tensor, float]) -> float | None:
    """The stride by the ratio of known sizes, which no rule can get wrong."""
    size = spatial_size(tensor)
    for read in call.inputs:
        before = spatial_size(read)
        if size and before and len(read.shape) == len(tensor.shape):
            return found[read] * before / size
    return None


def spatial_size(tensor: Tensor) -> int | None:
    """The length of a tensor's first spatial axis, or None where it has none or leaves it open."""
    if len(tensor.shape) < 3:
        return None
    first = tensor.shape[2 if keras.config.image_data_format() == "channels_first" else 1]
    return first or None


def _stride_of(operation: Any) -> float:
    """The stride of a layer by its settings."""
    for name in ("strides", "stride"):
        value = getattr(operation, name, None)
        if value is not None:
            first = value[0] if isinstance(value, tuple | list) else value
            transposed = "Transpose" in type(operation).__name__
            return 1 / first if transposed else float(first)
    size = getattr(operation, "size", None)
    if type(operation).__name__.startswith("UpSampling") and size is not None:
        return 1 / (size[0] if isinstance(size, tuple | list) else size)
    return 1.0


def nominal_shapes(graph: Graph, stride: Mapping[Tensor, float]) -> dict[Tensor, tuple[int, ...]]:
    """One example's shape for each tensor, without the batch dimension.

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
