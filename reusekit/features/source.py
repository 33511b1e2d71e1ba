"""Sources of feature batches: a store, memory, or the bottom run for every batch.

Whatever the way, the examples come in the order that `feed` gives for the same seed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from threading import Lock
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import PositiveInt

from reusekit.arguments import Seed, checked
from reusekit.data import DataSplit
from reusekit.data.augmentation import Augmentation
from reusekit.data.stacks import batches_of, call_python
from reusekit.data.task import joined
from reusekit.errors import CacheError
from reusekit.features.batches import (
    Padding,
    ahead,
    changed_since,
    each_pass,
    example_batches,
    feed,
    rows_of,
    varied,
)
from reusekit.features.bottoms import computing
from reusekit.features.entry import Entry
from reusekit.features.frontiers import Frontier, restored
from reusekit.features.key import LABELS, WEIGHTS, label_array

_ROWS = 256  # that are read at a time


class FeatureSource(ABC):
    """Batches of what crosses a cut, of `size` examples."""

    size: int
    mixes: bool = False  # whether labels of training are shares

    @property
    @abstractmethod
    def _told(self) -> tuple[np.ndarray, ...]:
        """Labels and, where there are some, weights."""

    @property
    def labels(self) -> np.ndarray:
        """The labels, in the data set's order; of several tasks one array with a field of each."""
        return self._told[0]

    @property
    def weights(self) -> np.ndarray | None:
        """The weights of the examples, in the same order; None where all count alike."""
        return self._told[1] if len(self._told) > 1 else None

    @cached_property
    def spec(self) -> Any:
        """The specifications of the crossing tensors in a batch."""
        return self.batches(1).element_spec[0]

    @abstractmethod
    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """Return batches of (crossing tensors, labels), as the top takes them; see `feed`.

        Where examples have weights, these are the third part.
        """

    def arrays(self) -> np.ndarray | tuple[np.ndarray, ...] | None:
        """Return all features in memory, in order; None for whole maps and varying features."""
        return None


class StoredSource(FeatureSource):
    """Features in a store; `stored` has the stored tensors by address, in the data set's order.

    They stay mapped where they are unless `in_memory` is set before they are read.
    """

    def __init__(self, frontier: Frontier, entry: Entry) -> None:
        self.frontier, self.entry = frontier, entry
        start = label_array("")
        self._tasks = [name.removeprefix(start) for name in entry if name.startswith(start)]
        self.size = len(entry[label_array(self._tasks[0]) if self._tasks else LABELS])
        self.stored = {name: entry[name] for name in frontier.names}
        self.in_memory = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process as arrays where they are held, else as the entry."""
        held: Any = self.entry
        if self.in_memory:
            told = {name: np.asarray(self.entry[name]) for name in self.entry}
            held = told | {name: np.asarray(array) for name, array in self._read.items()}
        return StoredSource, (self.frontier, held), {"in_memory": self.in_memory}

    @cached_property
    def _told(self) -> tuple[np.ndarray, ...]:
        arrays = {task: self.entry[label_array(task)] for task in self._tasks}
        labels = joined(arrays or self.entry[LABELS])
        return labels, *(np.asarray(self.entry[name]) for name in (WEIGHTS,) if name in self.entry)

    @cached_property
    def _read(self) -> Mapping[str, Any]:
        if not self.in_memory:
            return self.stored
        return {name: np.asarray(array) for name, array in self.stored.items()}

    @checked(CacheError)
    def batches(self, batch_size: PositiveInt, seed: Seed | None = None) -> tf.data.Dataset:
        """See `FeatureSource`."""
        batches = feed(self._read, self.labels, batch_size, seed, self.weights)
        return batches.map(lambda stored, *told: (restored(self.frontier, stored), *told))

    def arrays(self) -> np.ndarray | tuple[np.ndarray, ...] | None:
        """See `FeatureSource`."""
        if self.frontier.pooling is None:
            return None
        found = tuple(
            np.asarray(self._read[t.address]).astype(t.dtype, copy=False)
            for t in self.frontier.crossing
        )
        return found[0] if len(found) == 1 else found


class _Derived(FeatureSource):
    """Batches of other inputs for the labels of another source."""

    def __init__(self, source: FeatureSource) -> None:
        self._source, self.size, self.mixes = source, source.size, source.mixes

    @property
    def _told(self) -> tuple[np.ndarray, ...]:
        return self._source._told


class ViewsSource(_Derived):
    """Augmented views in a store; pass number e over the data reads view e modulo their number."""

    def __init__(self, views: Sequence[StoredSource]) -> None:
        super().__init__(views[0])
        self._views = views

    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """See `FeatureSource`."""
        first = self._views[0]
        specs = {name: rows_of(array) for name, array in first.stored.items()}
        order = feed(np.arange(self.size), self.labels, batch_size, seed, self.weights)

        def gather(number: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
            view = self._views[int(number) % len(self._views)].stored
            return [view[name][rows] for name in specs]

        def read(number: tf.Tensor) -> tf.data.Dataset:
            def taken(rows: tf.Tensor, *told: tf.Tensor) -> tuple[Any, ...]:
                parts = call_python(gather, [number, rows], list(specs.values()))
                return restored(first.frontier, dict(zip(specs, parts, strict=True))), *told

            return order.map(taken)

        return each_pass(read, math.ceil(self.size / batch_size))


class InputSource(FeatureSource):
    """The inputs of a model as a data set gives them, in their own structure.

    Args:
        data: The data set.
        padding: How examples of different lengths are brought to one.
        window: How many examples may be held in memory. Fewer than there are: they are read anew in
            each pass, and shuffled within a window of this size, in an order of its own.
    """

    def __init__(self, data: DataSplit, padding: Padding | None, window: int) -> None:
        self._data, self._padding, self._window = data, padding, window
        self.size = data.size

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes to another process: the inputs where they are held.

        Raises:
            CacheError: They are not, since there is no room for them.
        """
        if self._window < self.size:
            raise CacheError(
                "Expected inputs that fit into memory, to be sent to workers, where features are "
                f"computed for every batch. Received: {self.size:,} examples, of which there is "
                f"room for {self._window:,}. Raise memory, or disk so that features are stored."
            )
        held = {"_held": self._held, "_told": self._told}
        return held | {"_window": self._window, "size": self.size}

    @cached_property
    def _held(self) -> tuple[Any, ...]:
        """Inputs, in their structure, labels of any dtype and shape, and weights."""
        held: Any = None
        position = 0
        for batch in example_batches(self._data, 0, self.size, self._padding, _ROWS):
            if held is None:
                held = keras.tree.map_structure(
                    lambda part: np.empty((self.size, *part.shape[1:]), part.dtype.as_numpy_dtype),
                    batch,
                )
            start, position = position, position + len(keras.tree.flatten(batch[1])[0])
            if position > self.size:
                break
            for into, part in zip(*map(keras.tree.flatten, (held, batch)), strict=True):
                into[start:position] = part
        if position != self.size:
            raise changed_since(self.size, f"{position}" + " or more" * (position > self.size))
        return held

    @cached_property
    def _told(self) -> tuple[np.ndarray, ...]:
        if self._window >= self.size:
            return tuple(map(joined, self._held[1:]))
        told = self._data.examples.map(lambda inputs, *told: told).batch(_ROWS)
        parts = zip(*(map(joined, batch) for batch in told.as_numpy_iterator()), strict=True)
        return tuple(map(np.concatenate, parts))

    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """Return batches of (inputs in their own structure, labels), and of weights."""
        if self._window >= self.size:
            return feed(self._held[0], self.labels, batch_size, seed, self.weights)
        examples = self._data.examples
        if self._padding is None:
            shuffled = None if seed is None else (self._window, seed)
            batches = batches_of(examples, batch_size, shuffled=shuffled)
        else:
            if seed is not None:
                examples = examples.shuffle(max(1, self._window), seed)
            batches = self._padding.batch(examples, batch_size)
        return ahead(batches)


class AugmentedSource(_Derived):
    """The inputs of another source, augmented; without a seed they come as they are.

    What is drawn follows from the seed, the pass and the batch alone, so that every trial sees the
    same.
    """

    def __init__(self, source: FeatureSource, augmentation: Augmentation) -> None:
        super().__init__(source)
        self._augmentation, self.mixes = augmentation, augmentation.mixes

    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """See `FeatureSource`; mixed labels are shares of shape (batch, outputs)."""
        source = self._source.batches(batch_size, seed)
        if seed is None:
            return source
        return varied(source, self._augmentation, seed, math.ceil(self.size / batch_size))


def input_source(
    data: DataSplit, padding: Padding | None, window: int, training: bool
) -> FeatureSource:
    """Return the inputs of a data set, augmented where they are trained on; see `InputSource`."""
    source = InputSource(data, padding, window)
    if data.augmentation is None or not training:
        return source
    return AugmentedSource(source, data.augmentation)


class ComputedSource(_Derived):
    """Features that are computed for every batch of another source.

    With a seed the bottom varies the data, by random numbers that follow from the seed, the pass
    and the batch alone, so that every trial sees the same.
    """

    def __init__(self, source: FeatureSource, frontier: Frontier, seed: int | None = None) -> None:
        super().__init__(source)
        self._frontier, self._seed = frontier, seed
        model, self._reseed = computing(frontier, augment=seed is not None)
        # In inference mode: what augments does so in this mode as well.
        self._run = tf.function(partial(model, training=False), reduce_retracing=True)
        self._specs = [
            tf.TensorSpec(output.shape, tensor.dtype)
            for tensor, output in zip(frontier.crossing, model.outputs, strict=True)
        ]
        self._one_at_a_time = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return ComputedSource, (self._source, self._frontier, self._seed)

    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """See `FeatureSource`."""
        source = self._source.batches(batch_size, seed)

        def computed(number: tf.Tensor) -> tf.data.Dataset:
            def compute(position: tf.Tensor, batch: tuple) -> tuple[Any, ...]:
                inputs, *told = batch
                # Outside of the graph of tf.data, which runs on the processor alone.
                given = [number, position, *keras.tree.flatten(inputs)]
                run = partial(self._compute, inputs)
                parts = call_python(run, given, self._specs, eagerly=True)
                return (parts[0] if len(parts) == 1 else tuple(parts)), *told

            return source.enumerate().map(compute)

        return ahead(each_pass(computed, math.ceil(self.size / batch_size)))

    def _compute(
        self, structure: Any, number: tf.Tensor, position: tf.Tensor, *inputs: tf.Tensor
    ) -> list[tf.Tensor]:
        packed = keras.tree.pack_sequence_as(structure, inputs)
        with self._one_at_a_time:
            if self._seed is not None:
                self._reseed(self._seed, int(number), int(position))
            outputs = keras.tree.flatten(self._run(packed))
        return [tf.cast(o, spec.dtype) for o, spec in zip(outputs, self._specs, strict=True)]
