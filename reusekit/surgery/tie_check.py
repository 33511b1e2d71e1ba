"""Edits must not part a weight in two."""

from typing import Any

import keras

from reusekit.errors import TieError
from reusekit.graph import Call, Graph, keras_internals
from reusekit.surgery.edits import Orders


def check_ties(graph: Graph, wanted: Orders, copied: bool) -> None:
    """Raise TieError where edits would leave two weights of one.

    Args:
        graph: The model to edit.
        wanted: The edits.
        copied: Whether the result is to have weights of its own.

    Raises:
        TieError: A layer would go while one that stays is tied to its weights, or a new layer is
            tied to one that is to be copied.
    """
    if copied:
        _check_new(graph, wanted)
    going = {*wanted.replaced, *wanted.removed}
    if not going:
        return
    leaving = [call for call in graph.calls if not going.isdisjoint((call, *call.scopes))]
    staying = {id(call.operation): call for call in graph.calls if call not in set(leaving)}
    lost = {id(call.operation): call for call in leaving if id(call.operation) not in staying}
    weights = {id(v): call for call in lost.values() for v in call.variables}
    for call in graph.calls:
        tied = [weights[id(v)] for v in call.given if id(v) in weights]
        if tied and call not in set(leaving):
            raise TieError(_parted(graph, tied[0], call))
    for call in staying.values():
        for inner in _inner_layers(call.operation):
            if id(inner) in lost:
                raise TieError(_parted(graph, lost[id(inner)], call))


def _parted(graph: Graph, lost: Call, kept: Call) -> str:
    return (
        f"Expected to keep {lost.address!r} of model {graph.model.name!r}: {kept.address!r} is "
        f"tied to its weights, and would keep the old ones. Edit {kept.address!r} as well, in the "
        "same rk.edit."
    )


def _check_new(graph: Graph, wanted: Orders) -> None:
    own = {id(call.operation): call for call in graph.calls}
    lists = (*wanted.after.values(), *wanted.before.values(), wanted.replaced.values())
    for layer in (layer for layers in lists for layer in layers):
        for inner in _inner_layers(layer):
            if id(inner) in own:
                raise TieError(
                    f"Expected weights='share': {layer.name!r} is tied to {inner.name!r} of model "
                    f"{graph.model.name!r}, not to the copy that the result would have."
                )


def _inner_layers(operation: Any) -> list[keras.Layer]:
    if not isinstance(operation, keras.Layer):
        return []
    return keras_internals.all_layers(operation)[1:]
