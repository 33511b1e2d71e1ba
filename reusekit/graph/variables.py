"""Variables among the arguments of calls: weights that operations use without holding them."""

from functools import cached_property
from typing import Any

import keras

from reusekit.graph import keras_internals


class Variables:
    """Finds variables among the arguments of a model's calls.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = model

    def of(self, leaf: Any) -> Any:
        """Return the model's variable whose `value` an argument is; any other argument as it is."""
        if leaf is None or isinstance(leaf, str | int | float | keras.Variable):
            return leaf
        return self._by_value.get(id(leaf), leaf) if keras.ops.is_tensor(leaf) else leaf

    def among(self, arguments: Any) -> tuple[keras.Variable, ...]:
        """Return the variables among some arguments, each once."""
        (args, kwargs) = arguments
        if len(args) == 1 and not kwargs and not isinstance(args[0], list | tuple | dict):
            # The usual case; a call on nothing but a variable is not recorded.
            return ()
        leaves = keras.tree.flatten(arguments)
        found = {id(leaf): leaf for leaf in leaves if isinstance(leaf, keras.Variable)}
        return tuple(found.values())

    @cached_property
    def _by_value(self) -> dict[int, keras.Variable]:
        return {id(keras_internals.stored_value(v)): v for v in self._model.variables}
