"""The recorded calls of one model: their order and names, nested models, and shapes as called."""

from collections.abc import Mapping
from typing import Any

import keras

from reusekit.graph import keras_internals as internals
from reusekit.graph.graph import Tensor
from reusekit.graph.keras_internals import Record
from reusekit.graph.masks import implicit_mask_carriers

Shape = tuple[int | None, ...]


class Outline:
    """The calls of a functional model.

    Attributes:
        records: The calls in post-order from the outputs, then inputs that nothing reads. Arguments
            come before what reads them, in the order in which they are written.
        names: From the key of each call to its name in this model: `layer`, or `layer@2` where
            there are several calls, numbered in the order in which they were made.
    """

    def __init__(self, functional: Any):
        self.records = _in_order([*functional.outputs, *functional.inputs])
        self.names = _named(self.records)


def _in_order(targets: list[keras.KerasTensor]) -> list[Record]:
    order: list[Record] = []
    seen: set[tuple[int, int]] = set()
    for target in targets:
        # A tensor is to be visited; a record waits until all that it needs has been.
        stack: list[keras.KerasTensor | Record] = [target]
        while stack:
            top = stack.pop()
            if isinstance(top, Record):
                order.append(top)
                continue
            key = internals.producer_key(top)
            if key not in seen:
                seen.add(key)
                record = internals.producer(top)
                stack.append(record)
                stack.extend(reversed(_needs(record)))
    return order


def _needs(record: Record) -> list[keras.KerasTensor]:
    """Return the tensors a call depends on, masks that it reads off them included."""
    if [internals.mask_of(tensor) for tensor in record.inputs].count(None) == len(record.inputs):
        return record.inputs
    carriers = implicit_mask_carriers(record.operation, record.args, record.kwargs)
    masks = (internals.mask_of(carrier) for carrier in carriers)
    return [*record.inputs, *(m for m in masks if m is not None and internals.has_history(m))]


def _named(records: list[Record]) -> dict[tuple[int, int], str]:
    numbers: dict[int, list[int]] = {}
    for operation, number in (record.key for record in records):
        numbers.setdefault(operation, []).append(number)
    names = {record.key: record.operation.name for record in records}
    for operation, found in numbers.items():
        if len(found) > 1:
            for call, number in enumerate(sorted(found)):
                names[operation, number] += f"@{call}"
    return names


# --- nested models ------------------------------------------------------------------------------


def may_inline(record: Record) -> bool:
    """Return whether a call is of a nested model that does nothing but run its graph."""
    if not internals.runs_its_graph(record.operation):
        return False
    fed = fed_to(record)
    wanted = internals.functional(record.operation).inputs
    if fed is None or len(fed) != len(wanted):
        return False
    # A nested model adds or drops a last axis of size one, which is not in its graph.
    return all(
        given is None
        or (isinstance(given, keras.KerasTensor) and len(given.shape) == len(inner.shape))
        for given, inner in zip(fed, wanted, strict=True)
    )


class HandedOn(keras.Operation):
    """Stands for a nested model's handing on, as an output, of what it is fed.

    Nothing is called for it: in what is built, its output is its input.
    """

    def __init__(self, name: str):
        super().__init__(name=name)

    def call(self, x: Any) -> Any:
        """Return the tensor itself."""
        return x

    def compute_output_spec(self, x: Any) -> Any:
        """Return the tensor itself."""
        return x


def as_called(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Return a nested model's arguments with what it is called on first and the others by keyword.

    Example:
        >>> as_called(("x", False), {}), as_called((), {"inputs": "x", "mask": "m"})
        ((('x',), {'training': False}), (('x',), {'mask': 'm'}))
    """
    named = dict(zip(("inputs", "training", "mask"), args, strict=False)) | kwargs
    inputs = named.pop("inputs")
    return (inputs,), named


def fed_to(record: Record) -> list[Any] | None:
    """Return a nested model's arguments in the flat order of its inputs; None if unclear."""
    given = record.args[0] if record.args else record.kwargs.get("inputs")
    inner = internals.functional(record.operation)
    if isinstance(given, dict) and not isinstance(internals.input_structure(inner), dict):
        names = [tensor.name for tensor in inner.inputs]
        return [given[name] for name in names] if set(names) <= set(given) else None
    return keras.tree.flatten(given)


# --- shapes -------------------------------------------------------------------------------------


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
