"""Shapes that a call makes where they are other than Keras recorded, as in a nested model."""

from collections.abc import Mapping
from typing import Any

import keras

from reusekit.graph.graph import Tensor
from reusekit.graph.keras_internals import Record

Shape = tuple[int | None, ...]


def shapes_now(record: Record, bound: Mapping[int, Tensor | None]) -> list[Shape] | None:
    """Return the shapes that a recorded call makes of what it is fed now.

    Args:
        record: The call. Nothing is recorded on its operation.
        bound: From the ids of the Keras tensors it was recorded on to the tensors it is fed.

    Returns:
        One for each output, or None where they are those that were recorded.
    """
    if isinstance(record.operation, keras.layers.TextVectorization):
        return _of_texts(record)
    fed = {id(x): tensor for x in record.inputs if (tensor := bound.get(id(x))) is not None}
    if all(fed[id(x)].shape == x.shape for x in record.inputs if id(x) in fed):
        return None

    def now(leaf: Any) -> Any:
        if not isinstance(leaf, keras.KerasTensor) or id(leaf) not in fed:
            return leaf
        shape = _known_best(fed[id(leaf)].shape, leaf.shape)
        return keras.KerasTensor(
            shape, leaf.dtype, sparse=leaf.sparse, ragged=leaf.ragged, name=leaf.name
        )

    try:
        args, kwargs = keras.tree.map_structure(now, (record.args, record.kwargs))
        specs = keras.tree.flatten(record.operation.compute_output_spec(*args, **kwargs))
    except Exception:
        # Keras asks the same of a nested model that is called on other shapes; what cannot answer
        # keeps the shapes it was built with.
        return None
    return [
        _known_best(tuple(spec.shape), output.shape)
        for spec, output in zip(specs, record.outputs, strict=True)
    ]


def _of_texts(record: Record) -> list[Shape] | None:
    """Return the shape that a text layer makes; Keras records one with an axis too many."""
    settings, shape = record.operation.get_config(), tuple(record.inputs[0].shape)
    if settings["split"] is None or settings["output_mode"] == "int" or shape[1:] != (1,):
        return None
    return [tuple(record.operation.compute_output_shape(shape[:1]))]


def _known_best(now: Shape, recorded: Shape) -> Shape:
    """Return a shape in this call, its open axes as they were recorded."""
    if len(now) != len(recorded):
        return now
    return tuple(old if new is None else new for new, old in zip(now, recorded, strict=True))
