"""Batches of stored features for Keras."""

import itertools
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
import tensorflow as tf
from pydantic import PositiveInt

from reusekit.arguments import Seed, checked
from reusekit.errors import DataError
from reusekit.features.entry import MappedArray

# What the data sets that are still there call, by the graph that TensorFlow traced them into.
_called: WeakKeyDictionary[Any, list[Callable]] = WeakKeyDictionary()


def call_python(
    function: Callable, inputs: Sequence[Any], dtypes: Any, eagerly: bool = False
) -> Any:
    """Call a function of Python's in a data set's pipeline, as `tf.numpy_function` does.

    TensorFlow keeps every function that it is given so for as long as the process lives, and with
    it the features and models that it reads. It is given a reference here, and the function is let
    go of with the data set.

    Args:
        function: From arrays (from tensors, where it is called eagerly) to what has these dtypes.
        inputs: Tensors.
        dtypes: Of what it returns: a dtype, or a list of them.
        eagerly: Whether to call it as `tf.py_function` does.
    """
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):
        graph = graph.outer_graph
    if hasattr(graph, "outer_graph"):
        _called.setdefault(graph, []).append(function)
        known = weakref.ref(function)
        function = partial(_call, known)
    return (tf.py_function if eagerly else tf.numpy_function)(function, inputs, dtypes)


def _call(known: Callable[[], Any], *values: Any) -> Any:
    return known()(*values)


@checked(DataError)
def feed(
    inputs: Any,
    labels: np.ndarray | MappedArray,
    batch_size: PositiveInt,
    seed: Seed | None = None,
) -> tf.data.Dataset:
    """Return batches of (inputs, labels), gathered from arrays in memory or mapped files.

    Only positions are shuffled, never the features themselves, so a full shuffle costs the same for
    arrays of any size. The order follows from the seed alone, whatever TensorFlow's own seed is.

    Args:
        inputs: An array of shape (examples, ...), which may be a memory-mapped file or an array of
            a `FeatureStore`, or a tuple, list (which comes as a tuple) or dictionary of such.
        labels: Shape (examples,).
        batch_size: Examples a batch; the last one may be smaller.
        seed: Shuffle fully at each pass, each pass anew, the same passes for the same seed; None
            keeps the order.

    Example:
        >>> batches = feed(np.arange(3.0), np.arange(3), batch_size=2)
        >>> [labels.tolist() for _, labels in batches.as_numpy_iterator()]
        [[0, 1], [2]]
    """
    passes = itertools.count()
    inputs = keras.tree.lists_to_tuples(inputs)  # tf.data would stack what is in a list
    arrays = [*keras.tree.flatten(inputs), labels]
    if not all(hasattr(array, "dtype") and _has_rows(array, labels) for array in arrays):
        raise DataError(
            "Expected arrays of the same examples: one label for each, and as many rows in each "
            f"input. Received: {', '.join(_shape(array) for array in arrays)}."
        )

    def order(_: int) -> np.ndarray:
        return np.random.default_rng((seed, next(passes))).permutation(len(labels))  # type: ignore[arg-type]

    def gather(rows: tf.Tensor) -> tuple[Any, tf.Tensor]:
        *taken, labels = call_python(
            lambda at: [array[at] for array in arrays],
            [rows],
            [tf.as_dtype(array.dtype) for array in arrays],
        )
        for part, array in zip([*taken, labels], arrays, strict=True):
            part.set_shape((None, *array.shape[1:]))
        return keras.tree.pack_sequence_as(inputs, taken), labels

    positions = tf.data.Dataset.range(len(labels))
    if seed is not None:
        # One call of NumPy a pass: a generator of positions would cost more than small heads do.
        positions = (
            tf.data.Dataset.range(1)
            .map(lambda one: tf.ensure_shape(call_python(order, [one], tf.int64), (None,)))
            .unbatch()
            .apply(tf.data.experimental.assert_cardinality(len(labels)))
        )
    return positions.batch(batch_size).map(gather).prefetch(tf.data.AUTOTUNE)


def _has_rows(array: Any, labels: Any) -> bool:
    shapes: list[Any] = [getattr(one, "shape", ()) for one in (array, labels)]
    return all(len(shape) > 0 for shape in shapes) and shapes[0][0] == shapes[1][0]


def _shape(array: Any) -> str:
    return f"shape {tuple(array.shape)}" if hasattr(array, "shape") else type(array).__name__
