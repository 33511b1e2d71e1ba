"""A part of a data set, ready to train on and named by its content."""

from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class DataSplit:
    """A labelled part of a TFDS data set.

    Attributes:
        name: Data set and version, as TFDS takes them: `sklearn_digits:1.0.0`.
        split: What was asked for, such as `train[:80%]`.
        examples: Single (input, label) pairs in a fixed order; images are float32 in [0, 255].
        size: The number of examples.
        class_names: Names of the classes, in label order.
        fingerprint: Equal where the data are the same: content, split, selection, decoding.
        seed: Decides the order of shuffled batches.
    """

    name: str
    split: str
    examples: tf.data.Dataset = field(repr=False)
    size: int
    class_names: tuple[str, ...] = field(repr=False)
    fingerprint: str
    seed: int = 0

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of one input, without the batch axis."""
        return tuple(self.examples.element_spec[0].shape)

    def batches(
        self, batch_size: int, shuffle: bool = False, in_memory: bool = False
    ) -> tf.data.Dataset:
        """Batches of (inputs, labels), in the fixed order or freshly shuffled at each pass.

        Two passes over a shuffled data set differ from each other, and are the same two passes in
        every process with the same seed.

        Args:
            batch_size: Examples a batch; the last one may be smaller.
            shuffle: Whether to shuffle fully, over all examples.
            in_memory: Whether to keep the decoded examples in memory after the first pass.
        """
        examples = self.examples.cache() if in_memory else self.examples
        if shuffle:
            examples = examples.shuffle(self.size, seed=self.seed, reshuffle_each_iteration=True)
        return examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    def labels(self) -> np.ndarray:
        """All labels in the fixed order, int64, shape (size,)."""
        return np.array([label for _, label in self.examples.as_numpy_iterator()], np.int64)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All examples in memory: inputs (size, ...) and labels (size,), in the fixed order."""
        inputs, labels = next(iter(self.examples.batch(self.size).as_numpy_iterator()))
        return inputs, labels
