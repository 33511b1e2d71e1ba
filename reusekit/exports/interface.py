"""The interface of an exported model: flat inputs and outputs, each by a name of its own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from reusekit.errors import ExportError
from reusekit.graph import Graph, Tensor, keras_internals, read
from reusekit.surgery import clone, split

_HALF = ("float16", "bfloat16", "float64")


@dataclass(frozen=True, eq=False)
class Interface:
    """A model as a file holds it, and how the Keras model's inputs and outputs come to that.

    Attributes:
        source: The Keras model.
        top: The part of it that is written.
        model: That part with dictionaries of inputs and outputs by safe names.
        inputs: The inputs, by those names.
        outputs: The outputs, by those names.
        front: The part of the source, from strings to numbers, that the file leaves out.
        exact: Whether the file computes in the precision of the source.
        notes: What a person should know of it.
    """

    source: Graph
    top: Graph
    model: keras.Model
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    front: keras.Model | None = field(default=None, repr=False)
    exact: bool = True
    notes: tuple[str, ...] = ()

    @property
    def signature(self) -> list[dict[str, keras.layers.InputSpec]]:
        """The inputs as Keras's exporters take them, a fixed batch included."""
        return [
            {
                name: keras.layers.InputSpec(shape=t.shape, dtype=t.dtype, name=name)
                for name, t in self.inputs.items()
            }
        ]

    def fed(self, x: Any) -> dict[str, np.ndarray]:
        """Return a batch of the source's inputs as the file takes it."""
        if self.front is not None:
            x = _arrays(self.front.predict_on_batch(x))
        else:
            x = flat(self.source, x)
        return {
            name: _shaped(value, tensor)
            for (name, tensor), value in zip(self.inputs.items(), x, strict=True)
        }


def interface_of(model: keras.Model | Graph, texts: bool, exact: bool) -> Interface:
    """Return the interface of a model.

    Args:
        model: A model with a functional graph, or one that was read already.
        texts: Whether the format takes strings; else what makes numbers of them is left out.
        exact: Whether the format computes in any precision; else it is written in float32.

    Raises:
        ExportError: The model gives strings, or takes no batches, or nothing but strings.
        NoGraphError: The model has no functional graph.
    """
    source = read(model)
    for tensor in (*source.inputs, *source.outputs):
        if not tensor.shape:
            raise ExportError(
                f"Expected a model of batches. Received: {source.model.name!r}, where "
                f"{tensor.address!r} has no axis at all."
            )
    front, top, notes = None, source.model, []
    if not texts and any(t.dtype == "string" for t in (*source.inputs, *source.outputs)):
        front, top, layers = _without_texts(source)
        notes.append(
            f"The file takes numbers: those that {', '.join(map(repr, layers))} make of texts."
        )
    lower = not exact and _computes_in(top)
    if lower:
        top = clone(top, dtype="float32")
        notes.append(f"The model computes in {lower}, and the file in float32.")
    graph = read(top)
    inputs = dict(zip(_names(graph.input_structure, "input"), graph.inputs, strict=True))
    outputs = dict(zip(_names(graph.output_structure, "output"), graph.outputs, strict=True))
    fed = {n: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=n) for n, t in inputs.items()}
    made = top(keras.tree.pack_sequence_as(graph.input_structure, [*fed.values()]), training=False)
    named = dict(zip(outputs, keras.tree.flatten(made), strict=True))
    written = keras.Model(fed, named, name="exported")
    return Interface(source, graph, written, inputs, outputs, front, not lower, tuple(notes))


def flat(graph: Graph, x: Any) -> list[np.ndarray]:
    """Return inputs that a model takes as a list in the order of its tensors."""
    structure = graph.input_structure
    if isinstance(x, Mapping):
        if isinstance(structure, Mapping):
            x = {key: x[key] for key in structure}
        else:
            x = [x[tensor.keras_tensor.name] for tensor in graph.inputs]
    return _arrays(x)


def _without_texts(source: Graph) -> tuple[keras.Model, keras.Model, list[str]]:
    """Part a model where strings have become numbers.

    Raises:
        ExportError: They never do.
    """
    ends = [
        tensor
        for call in source.calls
        if any(t.dtype == "string" for t in call.reads)
        for tensor in call.outputs
        if tensor.dtype != "string"
    ]
    inner = [tensor for tensor in ends if tensor not in source.outputs]
    if not inner or any(tensor.dtype == "string" for tensor in source.outputs):
        strange = next((t for t in source.outputs if t.dtype == "string"), source.inputs[0])
        raise ExportError(
            "Expected a model whose strings become numbers on their way, since this format has no "
            f"strings. Received: {strange.address!r}. Choose the format 'saved_model', which has "
            "them."
        )
    parts = split(source, [tensor.address for tensor in inner])
    layers = [source.maker[tensor].address for tensor in inner]
    return parts.bottom, parts.top, list(dict.fromkeys(layers))


def _computes_in(model: keras.Model) -> str | None:
    """Return a precision other than float32 in which a layer computes; None for none."""
    dtypes = (getattr(layer, "compute_dtype", "") for layer in keras_internals.all_layers(model))
    return next((dtype for dtype in dtypes if dtype in _HALF), None)


def _names(structure: Any, alone: str) -> list[str]:
    """Return a safe name for each tensor of a structure: its key in a dictionary, else its own."""
    found: list[str] = []
    for path, tensor in keras.tree.flatten_with_path(structure):
        keys = [str(key) for key in path if isinstance(key, str)]
        name = re.sub(r"\W", "_", "_".join(keys) or tensor.address, flags=re.ASCII)
        name = name if name[:1].isalpha() else f"{alone}_{name}".rstrip("_")
        others = sum(other == name or other.startswith(f"{name}__") for other in found)
        found.append(f"{name}__{others}" if others else name)
    return found


def _arrays(structure: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in keras.tree.flatten(structure)]


def _shaped(value: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Return an input in the model's shape and dtype; Keras adds and drops a last axis of 1."""
    if value.ndim == len(tensor.shape) - 1:
        value = value[..., None]
    elif value.ndim == len(tensor.shape) + 1 and value.shape[-1] == 1:
        value = value[..., 0]
    return value if tensor.dtype == "string" else value.astype(tensor.dtype)
