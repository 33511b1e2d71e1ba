"""The side of a worker: a process that keeps the functions it was sent, with their models."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import keras

from reusekit.cluster.parcel import Sent, unpacked, unpacked_model
from reusekit.graph import Graph

_KEPT = 2
"""Functions that are kept, the last ones: a pass over training and validation examples is two."""

_functions: OrderedDict[str, tuple[Any, Mapping[str, Graph]]] = OrderedDict()


def perform(items: Sent, function: Sent, *models: Sent) -> tuple[list[Any], float, int]:
    """Run a function over some items.

    Args:
        items: The items, packed.
        function: The function, packed.
        *models: The models that it stands on.

    Returns:
        The results, the seconds that they took, and their bytes, or those of the items if more.
    """
    run, given = _function(function, models), unpacked(items, {})
    began = perf_counter()
    results = [_plain(run(item)) for item in given]
    took = perf_counter() - began
    return results, took, max(bytes_in(results), bytes_in(items["buffers"]))


def expect(*sent: Sent) -> None:
    """Perform, so that it is quicker the next time; what goes wrong will show then."""
    with suppress(Exception):
        perform(*sent)


def bytes_in(results: Any) -> int:
    """Return the bytes of the arrays in a structure."""
    return sum(getattr(leaf, "nbytes", 0) for leaf in keras.tree.flatten(results))


def _plain(result: Any) -> Any:
    return list(result) if isinstance(result, Iterator) else result


def _function(sent: Sent, models: Sequence[Sent]) -> Any:
    key = sent["key"]
    if key not in _functions:
        held = {name: one for _, kept in _functions.values() for name, one in kept.items()}
        graphs = {one["key"]: held.get(one["key"]) or unpacked_model(one) for one in models}
        _functions[key] = unpacked(sent, graphs), graphs
        while len(_functions) > _KEPT:
            _functions.popitem(last=False)
    _functions.move_to_end(key)
    return _functions[key][0]
