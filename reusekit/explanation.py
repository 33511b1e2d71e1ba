"""Explanations of predictions: Grad-CAM, and gradients times values, at any address."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import checked
from reusekit.errors import AddressError, ReusekitError, SurgeryError, reason
from reusekit.graph import Graph, Tensor, keras_internals, read, resolve
from reusekit.graph.addresses import At
from reusekit.surgery import Split, split


@dataclass(frozen=True, eq=False)
class Explanation:
    """The parts of an inner tensor that speak for an output, of each example.

    Attributes:
        at: The address of the tensor.
        of: The explained output of each example, shape (examples,), int64: its place on the last
            axis.
        outputs: The model's outputs, shape (examples, outputs), float32.
        values: Shape (examples, ...), float32. Of Grad-CAM one number of at least 0 for each
            spatial position of the tensor; of gradients times values one, of either sign, for each
            position (for each value, where the tensor has no axis between batch and channels).
    """

    at: str
    of: np.ndarray = field(repr=False)
    outputs: np.ndarray = field(repr=False)
    values: np.ndarray = field(repr=False)


@checked(SurgeryError)
def explain(
    model: keras.Model,
    inputs: Any,
    at: At,
    method: Literal["grad_cam", "gradient"] = "grad_cam",
    of: NonNegativeInt | Sequence[NonNegativeInt] | np.ndarray | None = None,
    batch_size: PositiveInt = 32,
) -> Explanation:
    """Explain what a model says of inputs, by gradients of an output at an inner tensor.

    Grad-CAM (Selvaraju et al., 2017) weights each channel by its mean gradient, sums the channels
    and keeps what is positive. "gradient" multiplies the gradient with the tensor itself and sums
    the channels. Of softmax and sigmoid it is the logit that is explained where Keras keeps it,
    since the gradient of a sure probability vanishes; other outputs are explained as they are.

    The tensor may lie inside nested models. The model is cut there as by `split`, which keeps a
    small record for each call on its layers: explain many inputs at once. It runs in inference
    mode, on the TensorFlow backend.

    Args:
        model: A model with a functional graph and one output of floats, shape (batch, outputs).
        inputs: Arrays in the model's structure.
        at: The address of a float tensor: for Grad-CAM of shape (batch, positions ..., channels),
            with one to three axes of positions.
        method: "grad_cam", or "gradient" for gradients times values.
        of: The output to explain, its place on the last axis: one, or one for each example. None
            takes the largest one, which is the predicted class.
        batch_size: The examples that are explained at a time.

    Returns:
        The explanation, in the order of the inputs.

    Raises:
        AddressError: No such tensor, one of integers, or one without positions for Grad-CAM.
        SurgeryError: The model has several outputs, `of` or the inputs do not fit it, or the
            backend is another one.

    Example:
        >>> inputs = keras.Input((8, 8, 3), name="x")
        >>> maps = keras.layers.Conv2D(4, 3, name="conv")(inputs)
        >>> pooled = keras.layers.GlobalAveragePooling2D(name="pool")(maps)
        >>> model = keras.Model(inputs, keras.layers.Dense(2, name="head")(pooled), name="m")
        >>> explain(model, np.ones((5, 8, 8, 3), "float32"), "conv", of=1).values.shape
        (5, 6, 6)
    """
    if keras.backend.backend() != "tensorflow":
        raise SurgeryError(
            "Expected the TensorFlow backend, by which gradients are taken. Received: "
            f"{keras.backend.backend()!r}."
        )
    graph = read(model)
    tensor = _explainable(graph, at, method)
    is_first = _has_channels_first(graph, tensor)
    parts = split(graph, tensor.address)
    try:
        arrays = keras.tree.map_structure(np.asarray, inputs)
        lengths = {len(one) for one in keras.tree.flatten(arrays)}
        if len(lengths) != 1 or 0 in lengths:
            raise SurgeryError(
                f"Expected inputs of one length above 0. Received: lengths {sorted(lengths)}."
            )
        count = lengths.pop()
        places = _places(model, of, count)
        borders = [*range(0, count, batch_size), count]
        found = []
        for first, last in pairwise(borders):
            batch = keras.tree.map_structure(lambda one, a=first, b=last: one[a:b], arrays)
            chosen = None if places is None else places[first:last]
            found.append(_explained(parts, batch, chosen, method == "grad_cam", is_first))
    except ReusekitError:
        raise
    except Exception as error:
        raise SurgeryError(
            f"Expected inputs that model {model.name!r} takes, of shape {model.input_shape}. "
            f"Received: what it cannot be run on: {reason(error)}"
        ) from error
    of_all, outputs, values = (np.concatenate(one) for one in zip(*found, strict=True))
    return Explanation(tensor.address, of_all, outputs, values)


def _explainable(graph: Graph, at: At, method: str) -> Tensor:
    tensors = resolve(graph, at)
    if len(tensors) != 1:
        raise AddressError(
            f"Expected the address of one tensor. Received: {[one.address for one in tensors]}."
        )
    tensor = tensors[0]
    if len(graph.outputs) != 1 or len(graph.outputs[0].shape) != 2:
        raise SurgeryError(
            "Expected a model with one output of shape (batch, outputs); rk.extract takes one of "
            f"several. Received: {graph.model.output_shape} of model {graph.model.name!r}."
        )
    if "float" not in tensor.dtype:
        raise AddressError(
            f"Expected the address of floats, which have gradients{_instead(graph, _is_float)}. "
            f"Received: {tensor.address!r} of {tensor.dtype}."
        )
    if method == "grad_cam" and not _has_positions(tensor):
        raise AddressError(
            "Expected a tensor with axes of positions between batch and channels for Grad-CAM"
            f"{_instead(graph, _has_positions, deepest=True)}. Received: {tensor.address!r} of "
            f"shape {tensor.shape}."
        )
    return tensor


def _is_float(tensor: Tensor) -> bool:
    return "float" in tensor.dtype


def _has_positions(tensor: Tensor) -> bool:
    return _is_float(tensor) and 3 <= len(tensor.shape) <= 5


def _instead(graph: Graph, fits: Any, deepest: bool = False) -> str:
    """Return the first or the deepest address that fits, such as an embedding's."""
    found = [one.address for one in graph.tensors if fits(one)]
    return f", such as {found[-1 if deepest else 0]!r}" if found else ""


def _places(
    model: keras.Model, of: int | Sequence[int] | np.ndarray | None, count: int
) -> np.ndarray | None:
    if of is None:
        return None
    places, size = np.asarray(of), keras.tree.flatten(model.outputs)[0].shape[-1]
    if (
        places.shape not in ((), (count,))
        or places.dtype.kind not in "iu"
        or not 0 <= places.min() <= places.max() < size
    ):
        raise SurgeryError(
            f"Expected one place below {size}, or one for each of {count} inputs, as `of`. "
            f"Received: {of!r}."
        )
    return np.broadcast_to(places.astype("int64"), (count,))


def _has_channels_first(graph: Graph, tensor: Tensor) -> bool:
    """Return whether channels stand before positions, as the layer says that laid them out.

    Layers on the way there that have no such setting, such as activations and sums, keep it. What
    none has laid out, such as embedded tokens, has its channels last.
    """
    call, rank = graph.maker[tensor], len(tensor.shape)
    while not call.is_input:
        order = getattr(call.operation, "data_format", None)
        if order is not None:
            return order == "channels_first"
        same = [one for one in call.inputs if len(one.shape) == rank]
        if not same:
            return False
        call = graph.maker[same[0]]
    return rank > 3 and keras.config.image_data_format() == "channels_first"


def _explained(
    parts: Split, batch: Any, places: np.ndarray | None, is_grad_cam: bool, channels_first: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the explained places, the outputs and the values of one batch."""
    crossing = parts.bottom(batch, training=False)
    tensor = crossing[0] if isinstance(crossing, list | tuple) else crossing
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensor)
        outputs = parts.top(crossing, training=False)
        outputs = keras.tree.flatten(outputs)[0]
        if places is None:
            places = np.argmax(outputs, axis=-1).astype("int64")
        explained = tf.gather(keras_internals.logits(outputs), places, axis=-1, batch_dims=1)
    gradient = tape.gradient(explained, tensor)
    if gradient is None:
        raise AddressError(
            "Expected a tensor through which the output has a gradient. Received: one behind "
            "which it is stopped. Name a later address."
        )
    values, gradient = (np.asarray(one, "float32") for one in (tensor, gradient))
    if channels_first and values.ndim > 2:
        values, gradient = (np.moveaxis(one, 1, -1) for one in (values, gradient))
    if is_grad_cam:
        axes = tuple(range(1, values.ndim - 1))
        made = np.maximum((gradient.mean(axes, keepdims=True) * values).sum(-1), 0)
    else:
        made = gradient * values
        made = made.sum(-1) if made.ndim > 2 else made
    return places, np.asarray(outputs, "float32"), made
