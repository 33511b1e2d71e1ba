"""Inputs of one shape that are taken by their positions, many at a time.

Taking a batch from an array costs a fraction of handing TensorFlow the examples one by one.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import tensorflow as tf

# The functions that living data sets call, by the graph that TensorFlow traced them into.
_called: WeakKeyDictionary[Any, list[Callable]] = WeakKeyDictionary()


def call_python(
    function: Callable, inputs: Sequence[Any], specs: Sequence[tf.TensorSpec], eagerly: bool = False
) -> list[tf.Tensor]:
    """Call a function of Python's in a data set's pipeline, as `tf.numpy_function` does.

    TensorFlow keeps every function that it is given so for as long as the process lives, and with
    it the features and models that it reads. It is given a reference here, and the function is let
    go of with the data set. Eagerly, it is called on tensors, as `tf.py_function` does.
    """
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):
        graph = graph.outer_graph
    if hasattr(graph, "outer_graph"):
        _called.setdefault(graph, []).append(function)
        function = partial(_call, weakref.ref(function))
    call = tf.py_function if eagerly else tf.numpy_function
    made = call(function, inputs, [spec.dtype for spec in specs])
    for part, spec in zip(made, specs, strict=True):
        part.set_shape(spec.shape)
    return made


def _call(known: Callable[[], Any], *values: Any) -> Any:
    return known()(*values)


@dataclass(frozen=True, eq=False)
class Stack:
    """Inputs of one shape, held as whole numbers and fed as float32.

    Attributes:
        take: From positions to an array of the inputs there, uint8 of shape (positions, *shape).
        shape: The shape of one.
        size: The number of inputs.
    """

    take: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    size: int

    def of(self, array: np.ndarray) -> "Stack":
        """Return the same inputs, held in an array."""

        def take(positions: np.ndarray) -> np.ndarray:
            if len(positions) and (np.diff(positions) == 1).all():
                return array[positions[0] : positions[-1] + 1]  # which copies nothing
            return array[positions]

        return Stack(take, self.shape, self.size)

    @property
    def bytes_of_one(self) -> int:
        """The bytes that one takes."""
        return int(np.prod(self.shape))

    def at(self, positions: tf.Tensor) -> tf.Tensor:
        """Return the inputs at some positions, float32 of shape (positions, *shape)."""
        spec = tf.TensorSpec((None, *self.shape), tf.uint8)
        return tf.cast(call_python(self.take, [positions], [spec])[0], tf.float32)

    def examples(self, together: int) -> tf.data.Dataset:
        """Return single inputs, of which `batches_of` knows that they are a stack.

        Args:
            together: How many are taken at a time.
        """
        take = tf.autograph.experimental.do_not_convert(self.at)
        taken = tf.data.Dataset.range(self.size).batch(together).map(take).prefetch(1)
        found = taken.unbatch().apply(tf.data.experimental.assert_cardinality(self.size))
        _stacked[found] = self, ()
        return found


_stacked: WeakKeyDictionary[tf.data.Dataset, tuple[Stack, tuple[Any, ...]]] = WeakKeyDictionary()
"""Data sets whose examples are a stack, with what is told of each example."""


def zipped(inputs: tf.data.Dataset, told: Sequence[Any]) -> tf.data.Dataset:
    """Return examples of inputs and of what is told of each.

    Args:
        inputs: Single inputs.
        told: Arrays of as many rows, or dictionaries of them.
    """
    parts = (tf.data.Dataset.from_tensor_slices(part) for part in told)
    found = tf.data.Dataset.zip(inputs, *parts)
    if inputs in _stacked:
        _stacked[found] = _stacked[inputs][0], tuple(told)
    return found


def batches_of(
    examples: tf.data.Dataset,
    batch_size: int,
    *,
    start: int = 0,
    stop: int | None = None,
    shuffled: tuple[int, int] | None = None,
) -> tf.data.Dataset:
    """Return batches of examples; of a stack they are taken as such, for the same batches.

    Args:
        examples: All of a split.
        batch_size: Examples a batch; the last one may be smaller.
        start: The first of them.
        stop: The one behind the last; None for all.
        shuffled: The window that they are shuffled in, each pass anew, and a seed; None keeps the
            order.
    """
    known = _stacked.get(examples)
    found = examples if known is None else tf.data.Dataset.range(known[0].size)
    if start:
        found = found.skip(start)
    if stop is not None:
        found = found.take(stop - start)
    if shuffled is not None:
        window, seed = shuffled
        found = found.shuffle(max(1, window), seed, reshuffle_each_iteration=True)
    found = found.batch(batch_size)
    if known is None:
        return found
    stack, told = known
    held = tf.nest.map_structure(tf.constant, told)

    def taken(positions: tf.Tensor) -> Any:
        rows = tf.nest.map_structure(lambda part: tf.gather(part, positions), held)
        return (stack.at(positions), *rows) if rows else stack.at(positions)

    # As it is: what has no loop or condition of Python's takes long to be converted.
    return found.map(tf.autograph.experimental.do_not_convert(taken), 2)
