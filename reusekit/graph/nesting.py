"""Nested models: which may be read in place of their call, and what they are fed."""

from typing import Any

import keras

from reusekit.graph import keras_internals as internals
from reusekit.graph.keras_internals import Record


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
