"""Calling one step of a plan on given tensors."""

from collections.abc import Mapping
from typing import Any

import keras

from reusekit.errors import ShapeError, reason
from reusekit.graph import Call, Scope, Tensor

Step = Call | Scope


def fill(step: Step, values: Mapping[Tensor, keras.KerasTensor]) -> tuple[tuple, dict]:
    """Return a step's recorded arguments with each tensor's value in its place.

    A tensor without a value becomes None: that is how a nested model is called without the mask
    that it does not need.
    """
    if not step.kwargs and len(step.args) == 1 and isinstance(step.args[0], Tensor):
        return (values.get(step.args[0]),), {}

    def put(leaf: Any) -> Any:
        return values.get(leaf) if isinstance(leaf, Tensor) else leaf

    return keras.tree.map_structure(put, (step.args, step.kwargs))


def call_step(step: Step, operation: Any, args: tuple, kwargs: dict) -> list[keras.KerasTensor]:
    """Really calls an operation, and turns what Keras says against it into one clear error.

    Args:
        step: The step of the source that the call stands for.
        operation: What to call: the step's operation, or something in its place.
        args: Positional arguments, with Keras tensors.
        kwargs: Keyword arguments, likewise.

    Returns:
        The call's outputs, flat.

    Raises:
        ShapeError: The operation cannot take the shapes that it is fed.
    """
    try:
        return keras.tree.flatten(operation(*args, **kwargs))
    except Exception as error:
        expected = ", ".join(str(t.shape) for t in _tensors(step))
        received = ", ".join(
            str(tuple(leaf.shape))
            for leaf in keras.tree.flatten((args, kwargs))
            if isinstance(leaf, keras.KerasTensor)
        )
        raise ShapeError(
            f"Expected {step.address!r} to take what it is fed; its inputs were {expected} and "
            f"would now be {received}. Keras says: {reason(error)}"
        ) from error


def _tensors(step: Step) -> list[Tensor]:
    leaves = keras.tree.flatten((step.args, step.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
