"""Sources of feature batches: a store, memory, or the bottom run for every batch.

Whatever the way, the examples come in the order that `feed` gives for the same seed.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from threading import Lock
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import PositiveInt

from reusekit.arguments import Seed, checked
from reusekit.data import DataSplit
from reusekit.errors import CacheError, DataError
from reusekit.features.batches import call_python, feed
from reusekit.features.entry import Entry
from reusekit.features.frontiers import Frontier
from reusekit.features.key import LABELS
from reusekit.features.padding import Padding

_ROWS = 256  # that are read at a time


class FeatureSource(ABC):
    """Batches of what crosses a cut.

    Attributes:
        how: How they are come by, as `PlannedFeatures` says it.
        size: The number of examples.
    """

    how: str
    size: int

    @property
    @abstractmethod
    def labels(self) -> np.ndarray:
        """The labels, in the data set's order."""

    @abstractmethod
    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """Return batches of (crossing tensors, labels), as the top of the split takes them.

        Args:
            batch_size: Examples a batch; the last one may be smaller.
            seed: Shuffle fully at each pass, as `feed` does; None keeps the order.
        """

    def arrays(self) -> np.ndarray | tuple[np.ndarray, ...] | None:
        """Return all features in memory, in order; None for whole maps and varying features."""
        return None


class StoredSource(FeatureSource):
    """Features in a store.

    Args:
        frontier: The cut.
        entry: What is stored of it.
        how: How it came there.
        in_memory: Whether to read it into memory; else it stays mapped where it is.

    Attributes:
        frontier, entry: As they were given.
        stored: The stored tensors by address, in the data set's order.
    """

    def __init__(
        self, frontier: Frontier, entry: Entry, how: str = "stored", in_memory: bool = False
    ) -> None:
        self.how, self.size = how, len(entry[LABELS])
        self.frontier, self.entry, self._in_memory = frontier, entry, in_memory
        self.stored = {name: entry[name] for name in frontier.names}

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels, in the data set's order."""
        return np.asarray(self.entry[LABELS])

    @cached_property
    def _read(self) -> Mapping[str, Any]:
        if not self._in_memory:
            return self.stored
        return {name: np.asarray(array) for name, array in self.stored.items()}

    @checked(CacheError)
    def batches(self, batch_size: PositiveInt, seed: Seed | None = None) -> tf.data.Dataset:
        """See `FeatureSource`."""
        restore = self.frontier.restore
        batches = feed(self._read, self.labels, batch_size, seed)
        return batches.map(lambda stored, labels: (restore(stored), labels))

    def arrays(self) -> np.ndarray | tuple[np.ndarray, ...] | None:
        """See `FeatureSource`."""
        if self.frontier.pooling is None:
            return None
        found = tuple(
            np.asarray(self._read[t.address]).astype(t.dtype, copy=False)
            for t in self.frontier.stored
        )
        return found[0] if len(found) == 1 else found


class ViewsSource(FeatureSource):
    """Augmented views in a store; each pass over the data reads the next one.

    Args:
        views: What is stored of each.
    """

    how = "views"

    def __init__(self, views: Sequence[StoredSource]) -> None:
        self._views, self.size = views, len(views[0].labels)

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels, in the data set's order."""
        return np.asarray(self._views[0].labels)

    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """See `FeatureSource`. Pass number e reads view e modulo their number."""
        views, frontier = [view.stored for view in self._views], self._views[0].frontier
        names, first = frontier.names, views[0]
        order = feed(np.arange(self.size), self.labels, batch_size, seed)

        def gather(number: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
            view = views[number % len(views)]
            return [view[name][rows] for name in names]

        def read(number: tf.Tensor) -> tf.data.Dataset:
            def taken(rows: tf.Tensor, labels: tf.Tensor) -> tuple[Any, tf.Tensor]:
                kinds = [tf.as_dtype(first[name].dtype) for name in names]
                parts = call_python(gather, [number, rows], kinds)
                for part, name in zip(parts, names, strict=True):
                    part.set_shape((None, *first[name].shape[1:]))
                return frontier.restore(dict(zip(names, parts, strict=True))), labels

            return order.map(taken)

        return _each_pass(read, math.ceil(self.size / batch_size))


class InputSource(FeatureSource):
    """The inputs of a model as a data set gives them.

    Args:
        data: The data set.
        padding: How examples of different lengths are brought to one.
        window: How many examples may be held in memory. Fewer than there are: they are read anew in
            each pass, and shuffled within a window of this size, in an order of its own.
    """

    how = "inputs"

    def __init__(self, data: DataSplit, padding: Padding | None, window: int) -> None:
        self._data, self._padding, self._window = data, padding, window
        self.size = data.size

    @cached_property
    def _held(self) -> tuple[Any, np.ndarray]:
        """Inputs, in their structure, and labels."""
        inputs: Any = None
        labels: Any = None
        position = 0
        for batch, targets in example_batches(self._data, 0, self.size, self._padding, _ROWS):
            rows = slice(position, position + len(targets))
            position = rows.stop
            if position > self.size:
                break
            if inputs is None:
                # Labels of any dtype and shape: numbers to predict, or several labels an example.
                inputs, labels = keras.tree.map_structure(
                    lambda part: np.empty((self.size, *part.shape[1:]), part.dtype.as_numpy_dtype),
                    (batch, targets),
                )
            labels[rows] = targets
            for into, part in zip(
                keras.tree.flatten(inputs), keras.tree.flatten(batch), strict=True
            ):
                into[rows] = part
        if position != self.size:
            raise DataError(
                f"Expected {self.size} examples. Received: {position}"
                f"{' or more' if position > self.size else ''}. The data set is not what it was "
                "when it was loaded; load it again."
            )
        return inputs, labels

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels, in the data set's order."""
        if self._window >= self.size:
            return self._held[1]
        return np.array([label for _, label in self._data.examples.as_numpy_iterator()])

    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """Return batches of (inputs in their own structure, labels)."""
        if self._window >= self.size:
            return feed(*self._held, batch_size, seed)
        examples = self._data.examples
        if seed is not None:
            examples = examples.shuffle(max(1, self._window), seed, reshuffle_each_iteration=True)
        return self._batched(examples, batch_size).prefetch(tf.data.AUTOTUNE)

    def _batched(self, examples: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
        if self._padding is not None:
            return self._padding.batch(examples, batch_size)
        return examples.batch(batch_size)


class ComputedSource(FeatureSource):
    """Features that are computed for every batch.

    Args:
        source: Batches of what the model is fed.
        model: From these to what crosses the cut.
        frontier: The cut.
        random: Where the model varies the data, what sets its random numbers, and a seed for that.
            They follow from this, the pass and the batch alone, so that every trial sees the same.
    """

    how = "recompute"

    def __init__(
        self,
        source: FeatureSource,
        model: keras.Model,
        frontier: Frontier,
        random: tuple[Callable[..., None], int] | None = None,
    ) -> None:
        self._source, self.size = source, source.size
        self._random = random
        # In inference mode: what augments does so in this mode as well.
        self._run = tf.function(partial(model, training=False), reduce_retracing=True)
        self._outputs = [
            (tf.as_dtype(tensor.dtype), output.shape)
            for tensor, output in zip(frontier.crossing, model.outputs, strict=True)
        ]
        self._one_at_a_time = Lock()

    @property
    def labels(self) -> np.ndarray:
        """The labels, in the data set's order."""
        return self._source.labels

    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """See `FeatureSource`."""
        source = self._source.batches(batch_size, seed)

        def computed(number: tf.Tensor) -> tf.data.Dataset:
            def compute(place: tf.Tensor, batch: tuple) -> tuple[Any, tf.Tensor]:
                inputs, labels = batch
                # Outside of the graph of tf.data, which runs on the processor alone.
                parts = call_python(
                    partial(self._compute, inputs),
                    [number, place, *keras.tree.flatten(inputs)],
                    [dtype for dtype, _ in self._outputs],
                    eagerly=True,
                )
                for part, (_, shape) in zip(parts, self._outputs, strict=True):
                    part.set_shape(shape)
                return (parts[0] if len(parts) == 1 else tuple(parts)), labels

            return source.enumerate().map(compute)

        batches = _each_pass(computed, math.ceil(self.size / batch_size))
        return batches.prefetch(tf.data.AUTOTUNE)

    def _compute(
        self, structure: Any, number: tf.Tensor, place: tf.Tensor, *inputs: tf.Tensor
    ) -> list[tf.Tensor]:
        packed = keras.tree.pack_sequence_as(structure, inputs)
        with self._one_at_a_time:
            if self._random:
                reseed, seed = self._random
                reseed(seed, int(number), int(place))
            outputs = keras.tree.flatten(self._run(packed))
        return [tf.cast(o, dtype) for o, (dtype, _) in zip(outputs, self._outputs, strict=True)]


def _each_pass(make: Callable[[tf.Tensor], tf.data.Dataset], batches: int) -> tf.data.Dataset:
    """Return a data set that is made anew for each pass, given the number of the pass, from 0."""
    passes = itertools.count()

    def number(one: tf.Tensor) -> tf.Tensor:
        counted = call_python(lambda _: np.int64(next(passes)), [one], tf.int64)
        return tf.ensure_shape(counted, ())

    once = tf.data.Dataset.range(1).map(number).flat_map(make)
    return once.apply(tf.data.experimental.assert_cardinality(batches))


def example_batches(
    data: DataSplit, start: int, stop: int, padding: Padding | None, batch_size: int
) -> Iterator[tuple[Any, tf.Tensor]]:
    """Yield batches of the examples of some numbers; to the end, of all there are.

    Raises:
        DataError: The examples differ in shape and there is no padding, or one is too long for it.
    """
    examples = data.examples.skip(start)
    if stop < data.size:
        examples = examples.take(stop - start)
    batches = padding.batch(examples, batch_size) if padding else examples.batch(batch_size)
    try:
        yield from batches.prefetch(tf.data.AUTOTUNE)
    except tf.errors.InvalidArgumentError as error:
        if "is refused" in str(error):
            raise DataError(
                f"An example is longer than {padding}. Raise the length, or pass longer='truncate'."
            ) from error
        if "different shapes" in str(error):
            raise DataError(
                "The examples differ in shape. Bring them to one with Padding(length=...), or load "
                "images with an image_size."
            ) from error
        data.check()  # which says which example cannot be read, where it is that
        raise
