"""Concrete shapes for one example, also where a model leaves dimensions open."""

import math
from collections.abc import Mapping
from typing import Any

import keras

from reusekit.graph.graph import Call, Graph, Tensor

NOMINAL_IMAGE = 224
NOMINAL_SEQUENCE = 128


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
