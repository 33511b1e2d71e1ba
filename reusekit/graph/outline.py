"""The calls of one model, without looking into nested ones: their order and their names."""

from typing import Any

import keras

from reusekit.graph import keras_internals as internals
from reusekit.graph.keras_internals import Record
from reusekit.graph.masks import implicit_mask_sources


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
    sources = implicit_mask_sources(
        record.operation,
        record.args,
        record.kwargs,
        lambda leaf: isinstance(leaf, keras.KerasTensor),
    )
    masks = (internals.mask_of(source) for source in sources)
    return [*record.inputs, *(m for m in masks if m is not None and internals.has_history(m))]


def _named(records: list[Record]) -> dict[tuple[int, int], str]:
    numbers: dict[int, list[int]] = {}
    for operation, number in (record.key for record in records):
        numbers.setdefault(operation, []).append(number)
    names = {record.key: record.operation.name for record in records}
    for operation, found in numbers.items():
        if len(found) > 1:
            for place, number in enumerate(sorted(found)):
                names[operation, number] += f"@{place}"
    return names
