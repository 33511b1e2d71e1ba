"""Nested models: which may be read in place of their call, and what they are fed."""

from typing import Any

import keras

from reusekit.graph import keras_internals as internals
from reusekit.graph.keras_internals import Record


def may_inline(record: Record) -> bool:
    """Whether a call is of a nested model that does nothing but run its graph."""
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


def fed_to(record: Record) -> list[Any] | None:
    """What a nested model is called on, in the flat order of its inputs; None if unclear."""
    given = record.args[0] if record.args else record.kwargs.get("inputs")
    inner = internals.functional(record.operation)
    if isinstance(given, dict) and not isinstance(internals.input_structure(inner), dict):
        names = [tensor.name for tensor in inner.inputs]
        return [given[name] for name in names] if set(names) <= set(given) else None
    return keras.tree.flatten(given)
