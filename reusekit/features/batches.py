"""Batches for Keras: of arrays in memory or mapped files, and of a data set's own examples."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import PositiveInt

from reusekit.arguments import Seed, checked
from reusekit.data import DataSplit
from reusekit.data.augmentation import Augmentation
from reusekit.data.stacks import batches_of, call_python
from reusekit.data.task import by_task
from reusekit.errors import CacheError, DataError


def rows_of(array: Any) -> tf.TensorSpec:
    """Return the spec of any number of rows of an array."""
    return tf.TensorSpec((None, *array.shape[1:]), array.dtype)


@checked(DataError)
def feed(
    inputs: Any,
    labels: Any,
    batch_size: PositiveInt,
    seed: Seed | None = None,
    weights: Any = None,
) -> tf.data.Dataset:
    """Return batches of (inputs, labels), gathered from arrays in memory or mapped files.

    Only positions are shuffled, so a full shuffle costs the same for arrays of any size. The order
    follows from the seed alone, whatever TensorFlow's own seed is.

    Args:
        inputs: An array of shape (examples, ...), mapped or of a `FeatureStore` perhaps, or a
            tuple, list (which comes as a tuple) or dictionary of such.
        labels: An array of as many rows; of several tasks a dictionary of them, or one array with a
            field of each, which comes as a dictionary.
        batch_size: Examples a batch; the last one may be smaller.
        seed: Shuffle fully at each pass, each pass anew, the same passes for the same seed; None
            keeps the order.
        weights: A weight for each example, the third part of batches; None for batches of two.

    Example:
        >>> batches = feed(np.arange(3.0), np.arange(3), batch_size=2)
        >>> [labels.tolist() for _, labels in batches.as_numpy_iterator()]
        [[0, 1], [2]]
    """
    inputs = keras.tree.lists_to_tuples(inputs)  # tf.data would stack what is in a list
    labels = by_task(labels)
    told = (labels,) if weights is None else (labels, weights)
    by_name = keras.tree.flatten(labels) if isinstance(labels, Mapping) else [labels]
    arrays = [*keras.tree.flatten(inputs), *by_name, *told[1:]]
    shapes = [getattr(one, "shape", None) if hasattr(one, "dtype") else None for one in arrays]
    if not all(shape and shape[0] == (shapes[-1] or [None])[0] for shape in shapes):
        received = (
            type(array).__name__ if shape is None else f"shape {tuple(shape)}"
            for array, shape in zip(arrays, shapes, strict=True)
        )
        raise DataError(
            "Expected arrays of the same examples: one label for each, and as many rows in each "
            f"input. Received: {', '.join(received)}."
        )
    passes, size = itertools.count(), len(arrays[-1])

    def order(_: int) -> np.ndarray:
        return np.random.default_rng((seed, next(passes))).permutation(size)  # type: ignore[arg-type]  # there is one

    def gather(rows: tf.Tensor) -> tuple[Any, ...]:
        specs = [rows_of(array) for array in arrays]
        taken = call_python(lambda at: [array[at] for array in arrays], [rows], specs)
        return keras.tree.pack_sequence_as((inputs, *told), taken)

    positions = tf.data.Dataset.range(size)
    if seed is not None:
        # One call of NumPy a pass: a generator of positions would cost more than small heads do.
        spec = tf.TensorSpec((None,), tf.int64)
        positions = (
            tf.data.Dataset.range(1)
            .map(lambda one: call_python(order, [one], [spec])[0])
            .unbatch()
            .apply(tf.data.experimental.assert_cardinality(size))
        )
    # As they are: what has no loop or condition of Python's takes long to be converted.
    gather = tf.autograph.experimental.do_not_convert(gather)
    return ahead(positions.batch(batch_size).map(gather))


def ahead(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Return batches of which two are made ahead of their use.

    Not as many as TensorFlow finds best: the end of a pass waits for its search, up to
    0.4 seconds.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(2).with_options(options)


def each_pass(make: Callable[[tf.Tensor], tf.data.Dataset], batches: int) -> tf.data.Dataset:
    """Return a data set that is made anew for each pass, given the number of the pass, from 0."""
    passes, spec = itertools.count(), tf.TensorSpec((), tf.int64)

    def number(one: tf.Tensor) -> tf.Tensor:
        return call_python(lambda _: np.int64(next(passes)), [one], [spec])[0]

    once = tf.data.Dataset.range(1).map(number).flat_map(make)
    return once.apply(tf.data.experimental.assert_cardinality(batches))


def varied(
    batches: tf.data.Dataset, augmentation: Augmentation, seed: int, count: int
) -> tf.data.Dataset:
    """Return `count` batches of (inputs, labels), perhaps weights, augmented anew in each pass.

    What is drawn follows from the seed, the number of the pass, and that of the batch alone.
    """
    structure = batches.element_spec
    specs = keras.tree.flatten(augmentation.specs(structure))

    def draw(number: tf.Tensor, position: tf.Tensor, *flat: tf.Tensor) -> list[tf.Tensor]:
        batch = keras.tree.pack_sequence_as(structure, flat)
        return keras.tree.flatten(augmentation((seed, int(number), int(position)), *batch))

    def varied_batch(number: tf.Tensor, position: tf.Tensor, batch: tuple) -> Any:
        given = [number, position, *keras.tree.flatten(batch)]
        made = call_python(draw, given, specs, eagerly=True)
        return keras.tree.pack_sequence_as(batch, made)

    def one_pass(number: tf.Tensor) -> tf.data.Dataset:
        # Outside of the graph of tf.data, whose layers could not be seeded for each batch.
        return batches.enumerate().map(partial(varied_batch, number))

    return ahead(each_pass(one_pass, count))


@checked(CacheError)
@dataclass(frozen=True)
class Padding:
    """A rule to bring examples of different lengths to one.

    Every axis that the inputs leave open is filled up at its end. A model's predictions stay what
    they were where it is told what is filling: by a mask among its inputs, which is filled with
    False or 0, or by an embedding that masks `value`.

    Attributes:
        length: The length of each open axis afterwards.
        longer: What becomes of a longer example: `refuse` is an error, `truncate` cuts its end off.
        value: What numbers are filled up with; boolean inputs are with False.

    Example:
        >>> examples = tf.data.Dataset.from_tensor_slices([3, 1]).map(tf.range)
        >>> [batch.tolist() for batch in Padding(4, value=9).batch(examples, 2).as_numpy_iterator()]
        [[[0, 1, 2, 9], [0, 9, 9, 9]]]
    """

    length: PositiveInt
    longer: Literal["refuse", "truncate"] = "refuse"
    value: float = 0

    @checked(CacheError)
    def batch(self, examples: tf.data.Dataset, batch_size: PositiveInt) -> tf.data.Dataset:
        """Return batches of examples padded to one length; the last may be smaller."""

        def shape(part: Any) -> list[int]:
            return [self.length if size is None else size for size in part.shape]

        def filling(spec: tf.TensorSpec) -> tf.Tensor:
            if spec.dtype.is_floating or spec.dtype.is_integer:
                return tf.cast(self.value, spec.dtype)
            return tf.zeros((), spec.dtype)  # False, or an empty string

        def shortened(*example: Any) -> Any:  # `map` spreads a tuple over several arguments
            whole = example if len(example) > 1 else example[0]
            return tf.nest.map_structure(lambda part: part[tuple(map(slice, shape(part)))], whole)

        spec = examples.element_spec
        shapes, values = (tf.nest.map_structure(of, spec) for of in (shape, filling))
        if self.longer == "truncate":
            examples = examples.map(shortened)
        return examples.padded_batch(batch_size, shapes, values)  # which refuses longer ones


def changed_since(expected: int, received: str) -> DataError:
    """Return the error for a data set that has lost or got examples since it was loaded."""
    return DataError(
        f"Expected {expected} examples. Received: {received}. Load the data set again, since it is "
        "not what it was."
    )


def example_batches(
    data: DataSplit, start: int, stop: int, padding: Padding | None, batch_size: int
) -> Iterator[tuple[Any, ...]]:
    """Yield batches of the examples of some numbers; to the end, of all there are."""
    end = stop if stop < data.size else None
    if padding is None:
        batches = batches_of(data.examples, batch_size, start=start, stop=end)
    else:
        examples = data.examples.skip(start)
        batches = padding.batch(examples.take(end - start) if end else examples, batch_size)
    try:
        yield from ahead(batches)
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        if "to pad to a smaller size" in str(error):
            raise DataError(
                f"Expected examples that fit {padding}. Received: a longer one. Raise the length, "
                "or pass longer='truncate'."
            ) from error
        if "different shapes" in str(error):
            raise DataError(
                "Expected examples of one shape. Received: several shapes. Bring them to one with "
                "Padding(length=...), or load images with an image_size."
            ) from error
        data.check()  # which says which example cannot be read, where it is that
        raise
