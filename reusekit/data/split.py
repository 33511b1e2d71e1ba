"""A part of a data set, ready to train on and named by its content."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import PositiveInt

from reusekit.arguments import AnyPath, Seed, checked
from reusekit.errors import DataError


def cause_of(error: BaseException) -> str:
    """Return an error of TFDS or TensorFlow in one line, without TensorFlow's node names."""
    text = " ".join(str(error).split())
    return re.sub(r"\{\{.*?\}\}|\[\[.*|\[Op:.*", "", text).strip()[:300]


@dataclass(frozen=True)
class DataSplit:
    """A labelled part of a TFDS data set.

    Attributes:
        name: Data set and version, as TFDS takes them: `sklearn_digits:1.0.0`.
        split: What was asked for, such as `train[:80%]`.
        examples: Single (input, label) pairs in a fixed order; images are float32 in [0, 255].
        size: The number of examples.
        class_names: Names of the classes, in label order.
        fingerprint: Differs where content, split, selection or treatment differ.
        treatment: How the examples were selected and resized: options of `load_split`.
        rows: Which rows of which files it consists of, before `examples_per_class`; empty where
            the data set has no files, as under `tfds.testing.mock_data`.
    """

    name: str
    split: str
    examples: tf.data.Dataset = field(repr=False)
    size: int
    class_names: tuple[str, ...] = field(repr=False)
    fingerprint: str
    treatment: Mapping[str, Any] = field(repr=False)
    rows: tuple[tuple[str, range], ...] = field(repr=False)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of one input, without the batch axis."""
        return tuple(self.examples.element_spec[0].shape)

    @checked(DataError)
    def batches(self, batch_size: PositiveInt, shuffle_seed: Seed | None = None) -> tf.data.Dataset:
        """Return batches of (inputs, labels), in fixed order or freshly shuffled at each pass.

        Args:
            batch_size: Examples a batch; the last one may be smaller.
            shuffle_seed: Shuffle fully over all examples, each pass anew; TensorFlow mixes its own
                global seed in, so set that too for the same passes in every process. None keeps
                the order.
        """
        examples = self.examples
        if shuffle_seed is not None:
            examples = examples.shuffle(self.size, seed=shuffle_seed, reshuffle_each_iteration=True)
        return examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    @checked(DataError)
    def arrays(self, file: AnyPath | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return all examples: inputs (size, ...) and labels (size, ...), in the fixed order.

        Labels keep their dtype: classes are int64, numbers to predict stay what they are.

        Args:
            file: A `.npy` file to keep the inputs in, mapped into memory; None keeps them in
                memory.

        Raises:
            DataError: The examples differ in shape.
        """
        spec, label_spec = self.examples.element_spec
        if None in (*spec.shape, *label_spec.shape):
            raise DataError(
                f"Expected examples of one shape. {self.name}, split {self.split!r}, has inputs of "
                f"shape {tuple(spec.shape)} and labels of shape {tuple(label_spec.shape)}: load "
                "images with an image_size."
            )
        shape, dtype = (self.size, *spec.shape), spec.dtype.as_numpy_dtype
        if file is None:
            inputs = np.empty(shape, dtype)
        else:
            try:
                inputs = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
            except OSError as error:
                reason = error.strerror
                raise DataError(
                    f"Expected a file that can be written. Received: {str(file)!r}: {reason}."
                ) from error
        labels = np.empty((self.size, *label_spec.shape), label_spec.dtype.as_numpy_dtype)
        for row, (example, label) in enumerate(self.examples.as_numpy_iterator()):
            inputs[row], labels[row] = example, label
        return inputs, labels

    def check(self) -> np.ndarray:
        """Decode every example once, so that a broken file is found before any work.

        Returns:
            How many examples each class has; zeros where the labels are no classes.

        Raises:
            DataError: Some cannot be read; the message says how many, and where the first is.
        """

        def count(counts: tf.Tensor, example: tuple) -> tf.Tensor:
            label = example[1]
            if not label.dtype.is_integer or label.shape.rank:
                return counts
            return counts + tf.one_hot(label, self.classes, dtype=tf.int64)

        try:
            return self.examples.reduce(np.zeros(self.classes, np.int64), count).numpy()
        except tf.errors.OpError as error:
            cause = error
        broken: list[Any] = []
        examples = iter(self.examples)
        for position in range(self.size):
            try:
                next(examples)
            except tf.errors.OpError as error:
                cause = cause if broken else error
                broken.append(position)
            except StopIteration:
                break
        where = f", the first at position {broken[0]}" if broken else ""
        raise DataError(
            f"{self.name}, split {self.split!r}, has examples that cannot be read: "
            f"{len(broken) or 'some'} of {self.size:,}{where}. {cause_of(cause)}"
        )

    @checked(DataError)
    def overlaps(self, other: "DataSplit") -> bool:
        """Return whether the two may share an example: the same rows of the same file.

        Which rows `examples_per_class` left out is not looked at.
        """
        return any(
            file == other_file
            and max(rows.start, other_rows.start) < min(rows.stop, other_rows.stop)
            for file, rows in self.rows
            for other_file, other_rows in other.rows
        )
