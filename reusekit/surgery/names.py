"""Names in a model that is being built, which must be unique at its top level.

Layers that come out of two nested models may share a name, and a layer that the source still uses
cannot be renamed. Such a layer is put into a nested model of its own, named by its address.
"""

from collections.abc import Mapping
from typing import Any

import keras

from reusekit.graph import Tensor
from reusekit.surgery.calling import Step, call_step, fill

_RESERVED = object()


class Names:
    """The names taken in one model, and the wrappers made where a name was taken twice."""

    def __init__(self):
        self._owners: dict[str, Any] = {}
        self._wrappers: dict[tuple, keras.Model] = {}

    def claim(self, operation: Any) -> bool:
        """Take an operation's name for it, unless another operation has it."""
        return self._owners.setdefault(operation.name, operation) is operation

    def reserve(self, name: str, operation: Any) -> None:
        """Keep a name that is free for an operation, or with None for whoever redeems it."""
        if name not in self._owners:
            self._owners[name] = operation or _RESERVED

    def redeem(self, name: str) -> str:
        """Return the reserved name once, and a similar one afterwards or where it was taken."""
        if self._owners.get(name) is not _RESERVED:
            return self.unique(name)
        self._owners[name] = None
        return name

    def unique(self, wanted: str) -> str:
        """Return a name like an address that no operation has, and take it.

        Example:
            >>> names = Names()
            >>> names.unique("outer/layer@1:0"), names.unique("outer/layer@1:0")
            ('outer.layer_1_0', 'outer.layer_1_0_1')
        """
        stem = wanted.replace("/", ".").replace("@", "_").replace(":", "_")
        name, number = stem, 0
        while name in self._owners:
            number += 1
            name = f"{stem}_{number}"
        self._owners[name] = None
        return name

    def wrapper(self, step: Step, values: Mapping[Tensor, keras.KerasTensor]) -> keras.Model:
        """Return a nested model of stock layers that makes one step's call.

        Calls of one layer that differ in nothing but their tensors get the same wrapper, since
        Keras cannot load a layer that is shared between two nested models.
        """
        place = {tensor: number for number, tensor in enumerate(values)}
        shape = keras.tree.map_structure(
            lambda leaf: ("tensor", place.get(leaf)) if isinstance(leaf, Tensor) else repr(leaf),
            (step.args, step.kwargs),
        )
        specs = [(tuple(value.shape), value.dtype) for value in values.values()]
        key = (id(step.operation), repr(shape), repr(specs))
        if key not in self._wrappers:
            inputs = {
                tensor: keras.Input(batch_shape=value.shape, dtype=value.dtype, name=f"input_{n}")
                for n, (tensor, value) in enumerate(values.items())
            }
            args, kwargs = fill(step, inputs)
            outputs = call_step(step, step.operation, args, kwargs)
            given = list(inputs.values())
            self._wrappers[key] = keras.Model(
                given if len(given) > 1 else given[0],
                outputs if len(outputs) > 1 else outputs[0],
                name=self.unique(step.address.partition("@")[0]),
            )
        return self._wrappers[key]
