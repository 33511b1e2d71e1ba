"""Calls that give something else in training than in inference, found by running them."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import keras
import numpy as np

from reusekit.graph import Call, Tensor, keras_internals
from reusekit.surgery import rates

Kind = Literal["random", "other"]

_RUNS = 8
_EXAMPLES, _FEW_EXAMPLES, _MANY_NUMBERS = 8, 2, 1 << 20
_OPEN_SIZE = 8
_ROUNDING = 1e-4  # of the largest number, between two runs that are meant to give the same


def in_training(call: Call) -> Kind | None:
    """Tell how a call acts in training otherwise than in inference, if it does.

    Keras's and KerasHub's own layers are known: random are those that hold a random generator and
    are told no rate. A user's layers and functions are run on random numbers, some times in
    training and once in inference mode; nothing that they hold changes.

    Args:
        call: A call of a layer, whose rates are set to 0 where they are known.

    Returns:
        "random" where training mode gives something else each time, "other" where it gives always
        the same, but not what inference gives.

    Example:
        >>> from reusekit.graph import read
        >>> x = keras.Input((3,))
        >>> noise = keras.layers.Lambda(lambda x: x + keras.random.normal(keras.ops.shape(x)))
        >>> graph = read(keras.Model(x, keras.layers.Dense(2)(noise(x))))
        >>> [in_training(call) for call in graph.calls if not call.is_input]
        ['random', None]
    """
    parts = keras_internals.all_layers(call.operation)
    own = [part for part in parts if not rates.is_stock(part)]
    if any(_draws(part) for part in parts if part not in own):
        return "random"
    if not own:
        return None
    try:
        with _numbers_kept():
            return _tried(call)
    except Exception:  # whatever a user's code says of numbers that mean nothing
        return "random" if any(map(_draws, own)) else None


def _draws(layer: keras.Layer) -> bool:
    return keras_internals.has_generator(layer) and not rates.rates(layer)


def _tried(call: Call) -> Kind | None:
    generators = keras_internals.all_generators(call.operation)
    inputs = _inputs(call)
    first: Any = None
    for _ in range(_RUNS):
        with keras.StatelessScope() as scope:
            outputs = _run(call, inputs, training=True)
        if any(scope.get_current_value(each.state) is not None for each in generators):
            return "random"
        if first is None:
            first = outputs
        elif not _alike(first, outputs):
            return "random"
    with keras.StatelessScope():
        return None if _alike(first, _run(call, inputs, training=False)) else "other"


def _run(call: Call, inputs: dict[Tensor, np.ndarray], training: bool) -> list[np.ndarray]:
    args, kwargs = keras.tree.map_structure(
        lambda leaf: (
            keras.ops.convert_to_tensor(inputs[leaf]) if isinstance(leaf, Tensor) else leaf
        ),
        (call.args, call.kwargs),
    )
    if keras_internals.takes(call.operation, "training"):
        kwargs = {**kwargs, "training": training}
    outputs = keras.tree.flatten(call.operation(*args, **kwargs))
    return [keras.ops.convert_to_numpy(output) for output in outputs]


def _inputs(call: Call) -> dict[Tensor, np.ndarray]:
    numbers = np.random.default_rng(0)

    def draw(tensor: Tensor) -> np.ndarray:
        sizes = [_OPEN_SIZE if size is None else size for size in tensor.shape[1:]]
        many = math.prod(sizes) * _EXAMPLES > _MANY_NUMBERS
        shape = (tensor.shape[0] or (_FEW_EXAMPLES if many else _EXAMPLES), *sizes)
        if tensor.dtype == "bool":
            return numbers.random(shape) < 0.5
        if "int" in tensor.dtype:
            return numbers.integers(0, 2, shape).astype(tensor.dtype)
        drawn = numbers.standard_normal(shape).astype("float32")
        return keras.ops.cast(drawn, tensor.dtype)

    return {tensor: draw(tensor) for tensor in call.inputs}


def _alike(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """Return whether two runs gave the same but for the order in which sums were made."""
    if [each.shape for each in one] != [each.shape for each in other]:
        return False
    for first, second in zip(one, other, strict=True):
        if not np.issubdtype(first.dtype, np.number):
            if not np.array_equal(first, second):
                return False
            continue
        first, second = first.astype("float64"), second.astype("float64")
        largest = np.abs(first).max(initial=0, where=np.isfinite(first))
        if not np.allclose(first, second, rtol=0, atol=_ROUNDING * largest, equal_nan=True):
            return False
    return True


@contextmanager
def _numbers_kept() -> Iterator[None]:
    """Leave Python's and NumPy's global random numbers where they were."""
    states: Any = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
