"""A part of a data set, ready to train on and named by its content."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import PositiveInt

from reusekit.arguments import AnyPath, Seed, checked
from reusekit.data.augmentation import Augmentation
from reusekit.data.stacks import batches_of
from reusekit.data.task import Task
from reusekit.data.treatment import Treatment
from reusekit.errors import DataError

_CHOOSING = ("examples_per_class", "seed", "task", "skip_unreadable")
"""Settings of a treatment that decide which examples there are and what is told of them."""


def cause_of(error: BaseException) -> str:
    """Return an error of TFDS or TensorFlow in one line, without TensorFlow's node names."""
    text = " ".join(str(error).partition("Traceback (most recent call last)")[0].split())
    noise = r"Error in user-defined .*? with iterator: \S+ |\{\{.*?\}\}|\[\[.*|\[Op:.*"
    return re.sub(noise, "", text).strip()[:300]


@dataclass(frozen=True, eq=False)
class Contents:
    """The content of a split's examples one by one, by which a store knows those it has met before.

    Attributes:
        keys: A number of 64 bits for each example that follows from its input, in order.
        treatment: Equal where equal keys make a model be fed equal inputs.
        told: Labels and, where there are some, weights of all examples, each as in `examples`.
        taken: From positions, ascending, to the examples there; inputs of others are not decoded.
        fingerprint: The fingerprint of the split that they are of.
    """

    keys: np.ndarray
    treatment: str
    told: tuple[Any, ...]
    taken: Callable[[np.ndarray], tf.data.Dataset]
    fingerprint: str


@checked(DataError)
@dataclass(frozen=True)
class DataSplit:
    """A labelled part of a data set.

    Attributes:
        name: Data set and version, as TFDS takes them: `sklearn_digits:1.0.0`.
        split: Part that was asked for, such as `train[:80%]`.
        examples: Single examples in a fixed order: (input, label) or (input, label, weight). An
            input is a tensor, or a dictionary of them by the names of a model's inputs; images are
            float32 in [0, 255]. Labels are as `task` says.
        size: The number of examples.
        task: Task that the labels state.
        fingerprint: Differs where content, split, selection or treatment differ.
        treatment: How the examples were selected and treated.
        origin: Plain data to read it again: a function of `rk.data` as `reader`, and its arguments
            beside name, split and treatment. Empty where only a program has the data.
        rows: Which rows of which files it consists of, before `examples_per_class`; empty where
            the data set has no files, as under `tfds.testing.mock_data`, and None where `keys`
            tell examples apart.
        keys: A number for each example that follows from its content, ascending or not; None where
            it is not known.
        raw: The split as it was read, before its texts became tokens or its classes were weighed;
            None where it is that.
        counts: What `check` returns, where each example was read when the split was opened; None
            where it was not.
        augmentation: The layers that vary these examples where they are trained on; `augmented`
            gives them. `examples` and the fingerprint are those of the examples as they are.
        reopened: Opens the same examples in another treatment, for `treated`; None where only one
            is known.
        contents: The content of each example; None where it is not known, and where they are those
            of another fingerprint or size: who makes other examples of a split gives it another
            one.
    """

    name: str
    split: str
    examples: tf.data.Dataset = field(repr=False)
    size: int
    task: Task = field(repr=False)
    fingerprint: str
    treatment: Treatment = field(default_factory=Treatment, repr=False)
    origin: Mapping[str, Any] = field(default_factory=dict, repr=False)
    rows: tuple[tuple[str, range], ...] | None = field(default=None, repr=False)
    keys: np.ndarray | None = field(default=None, repr=False, compare=False)
    raw: "DataSplit | None" = field(default=None, repr=False)
    counts: np.ndarray | None = field(default=None, repr=False, compare=False)
    augmentation: Augmentation | None = field(default=None, repr=False)
    reopened: Callable[[Treatment], "DataSplit"] | None = field(
        default=None, repr=False, compare=False
    )
    contents: Contents | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = self.contents
        if known and (known.fingerprint, len(known.keys)) != (self.fingerprint, self.size):
            object.__setattr__(self, "contents", None)

    def __len__(self) -> int:
        return self.size

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, or of whatever is to be told, in the order of outputs."""
        return self.task.names

    @property
    def classes(self) -> int:
        """The number of classes, or of whatever is to be told."""
        return self.task.size

    @property
    def mixes_labels(self) -> bool:
        """True where training examples are mixed, so that labels are shares."""
        return self.augmentation is not None and self.augmentation.mixes

    @property
    def input_shape(self) -> Any:
        """The shape of one input, or a dictionary of shapes, without the batch axis."""
        return tf.nest.map_structure(lambda spec: tuple(spec.shape), self.examples.element_spec[0])

    @checked(DataError)
    def batches(self, batch_size: PositiveInt, shuffle_seed: Seed | None = None) -> tf.data.Dataset:
        """Return batches of examples, in fixed order or freshly shuffled at each pass.

        Args:
            batch_size: Examples a batch; the last one may be smaller.
            shuffle_seed: Shuffle fully over all examples, each pass anew; TensorFlow mixes its own
                global seed in, so set that too for the same passes in every process. None keeps
                the order.

        Raises:
            DataError: Augmented examples are asked for in the order of training.
        """
        if shuffle_seed is not None and self.augmentation is not None:
            raise DataError(
                "Expected a split without augmentation, which searches and fine-tuning apply by "
                f"themselves. Received: {self.augmentation}."
            )
        shuffled = None if shuffle_seed is None else (self.size, shuffle_seed)
        batches = batches_of(self.examples, batch_size, shuffled=shuffled)
        return batches.prefetch(tf.data.AUTOTUNE)

    @checked(DataError)
    def arrays(self, file: AnyPath | None = None) -> Any:
        """Return all examples as arrays, in the fixed order.

        Inputs, labels and, where there are some, weights keep their structure and their dtypes,
        with an axis of (size,) in front.

        Args:
            file: A `.npy` file to keep the inputs in, mapped into memory; of several inputs each
                has one, with its number behind the file's name. None keeps them in memory.

        Raises:
            DataError: The examples differ in shape.
        """
        spec = self.examples.element_spec
        parts = tf.nest.flatten(spec)
        if any(None in part.shape for part in parts):
            shapes = [tf.nest.map_structure(lambda part: tuple(part.shape), one) for one in spec]
            raise DataError(
                f"Expected examples of one shape in {self.name}, split {self.split!r}. Received: "
                f"inputs of shape {shapes[0]} and labels of shape {shapes[1]}. Load images with an "
                "image_size."
            )
        several = len(tf.nest.flatten(spec[0])) > 1

        def held(part: tf.TensorSpec, place: int | None = None) -> np.ndarray:
            shape, dtype = (self.size, *part.shape), part.dtype.as_numpy_dtype
            if file is None or place is None or dtype is object:  # text has no file of its own
                return np.empty(shape, dtype)
            path = Path(file)
            path = path.with_stem(f"{path.stem}-{place}") if several else path
            try:
                return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            except OSError as error:
                reason = error.strerror
                raise DataError(
                    f"Expected a file that can be written. Received: {str(path)!r}: {reason}."
                ) from error

        inputs = [held(part, place) for place, part in enumerate(tf.nest.flatten(spec[0]))]
        arrays = [*inputs, *map(held, tf.nest.flatten(spec[1:]))]
        for row, example in enumerate(self.examples.as_numpy_iterator()):
            for array, part in zip(arrays, tf.nest.flatten(example), strict=True):
                array[row] = part
        return tf.nest.pack_sequence_as(spec, arrays)

    @checked(DataError)
    def balanced(self, counts: np.ndarray | None = None) -> "DataSplit":
        """Return the examples with weights by which all classes count alike.

        An example's weight is the number of examples over that of classes and over that of its
        class, as scikit-learn's `balanced` has it, times the weight that it has already. `raw` is
        the split as it was read, by which runs and models know it.

        Args:
            counts: How many examples each class has, as `check` returns them; None counts them.

        Raises:
            DataError: The task is no classification, or the counts are none of its classes.
        """
        if self.task.kind != "classification":  # the weight of an example counts in all tasks
            raise DataError(
                "Expected a task of one class an example for balanced class weights. Received: "
                f"{self.task.kind}."
            )
        found = self.check() if counts is None else counts
        if found.shape != (self.task.size,) or found.dtype.kind not in "iu":
            raise DataError(
                f"Expected counts of {self.task.size} classes as whole numbers. Received: "
                f"{found.dtype} of shape {found.shape}."
            )
        reopened = self.reopened
        present = found > 0
        each = np.where(present, self.size / (present.sum() * np.maximum(found, 1)), 1.0)
        table = tf.constant(each, tf.float32)

        def weighted(inputs: Any, label: tf.Tensor, *weight: tf.Tensor) -> tuple[Any, ...]:
            own = table[label]
            return inputs, label, own * tf.cast(weight[0], tf.float32) if weight else own

        said = f"{self.fingerprint} balanced {each.tolist()}"
        fingerprint = hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
        contents = self.contents
        if contents is not None:
            of, (labels, *weight) = contents.taken, contents.told
            own = each.astype(np.float32)[labels]
            contents = replace(
                contents,
                told=(labels, own * weight[0].astype(np.float32) if weight else own),
                taken=lambda at: of(at).map(weighted, tf.data.AUTOTUNE),
                fingerprint=fingerprint,
            )
        return replace(
            self,
            examples=self.examples.map(weighted, tf.data.AUTOTUNE),
            fingerprint=fingerprint,
            raw=self.raw or self,
            reopened=reopened and (lambda other: reopened(other).balanced(found)),
            contents=contents,
        )

    @checked(DataError)
    def treated(self, treatment: Treatment) -> "DataSplit":
        """Return the same examples in the same order as another treatment brings them.

        Their fingerprint is that of a split that was opened so. Weights of `balanced` and layers of
        `augmented` stay.

        Args:
            treatment: The treatment of pictures, series and texts. Which examples are kept stays.

        Raises:
            DataError: The examples cannot be treated so, or a program has made the split from
                examples that are treated already.

        Example:
            >>> import reusekit as rk
            >>> digits = rk.data.load("sklearn_digits", "test[:50]")
            >>> digits.treated(rk.data.Treatment(image_size=(16, 16), channels=3)).input_shape
            (16, 16, 3)
        """
        chosen = {name: getattr(self.treatment, name) for name in _CHOOSING}
        if self.reopened is None:
            raise DataError(
                f"Expected {self.name}, split {self.split!r}, to come from rk.data.load, "
                "from_folder, from_table, from_arrays or from_dataset, to be treated anew. "
                "Received: a split whose examples a program has treated already."
            )
        found = self.reopened(treatment.changed(**chosen))
        found = replace(found, counts=self.counts)
        return found if self.augmentation is None else found.augmented(self.augmentation.layers)

    @checked(DataError)
    def augmented(self, layers: Any) -> "DataSplit":
        """Return the examples with layers of Keras that vary them wherever they are trained on.

        Searches, fine-tuning and the baseline from scratch vary each batch anew in each pass, in
        the same way for the same seed; searches may store augmented views in the stead of that.
        `MixUp` and `CutMix` mix labels and weights as well. Layers come one after another, before
        anything that the backbone does with its inputs, and are no part of any model. Give the
        training split, never the others.

        Args:
            layers: A list of layers, or of their names, each alone or with its options, such as
                `{"RandomFlip": {"mode": "horizontal"}}`. They take the place of earlier ones.

        Raises:
            DataError: A layer is unknown, does not vary examples in training alone, changes their
                shape, or mixes labels that cannot be mixed; or the inputs are no floats.

        Example:
            >>> import keras
            >>> import reusekit as rk
            >>> train = rk.data.load("sklearn_digits", "train[:50]")
            >>> augmented = train.augmented([keras.layers.RandomRotation(0.1), "MixUp"])
            >>> print(augmented.augmentation)
            RandomRotation(factor=(-0.1, 0.1)), MixUp
        """
        spec = self.examples.element_spec
        return replace(self, augmentation=Augmentation(layers, spec, self.task))

    def check(self) -> np.ndarray:
        """Read every example once, so that a broken one is found before any work.

        Returns:
            How many examples each class or label has; of each number to predict, how many are
            finite, which are all. Those of several tasks follow one another.

        Raises:
            DataError: Some cannot be read, or have no label; the message says how many, and where
                the first is.
        """

        def count(state: tuple, numbered: tuple) -> tuple:
            counts, missing, first = state
            position, example = numbered
            found, good = _told(self.task, example[1])
            first = tf.where(good | (first >= 0), first, position)
            return counts + found, missing + tf.cast(~good, tf.int64), first

        label = self.examples.element_spec[1]
        if not _may_be_told(self.task, label):
            raise DataError(
                f"Expected labels of {self.task.kind} with {self.task.size} outputs in "
                f"{self.name}, split {self.split!r}. Received: {label}."
            )
        start = np.zeros(self.task.size, np.int64), np.int64(0), np.int64(-1)
        numbered = self.examples.map(lambda *example: example[:2]).enumerate()
        try:
            counts, missing, first = numbered.reduce(start, count)
        except tf.errors.OpError as error:
            raise self._unreadable(error) from error
        if missing:
            raise DataError(
                f"Expected a label of the task, {self.task.kind}, for each example of {self.name}, "
                f"split {self.split!r}. Received: none for {int(missing):,} of {self.size:,}, the "
                f"first at position {int(first)}. Give them labels, or leave them out."
            )
        return counts.numpy()

    def _unreadable(self, cause: Exception) -> DataError:
        """Find the examples that cannot be read, one by one."""
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
        return DataError(
            f"Expected examples of {self.name}, split {self.split!r}, that can be read. Received: "
            f"{len(broken) or 'some'} of {self.size:,} that cannot be read{where}: "
            f"{cause_of(cause).rstrip('.')}. Mend them, or leave them out."
        )

    @checked(DataError)
    def overlaps(self, other: "DataSplit") -> bool:
        """Return whether the two share an example: the same rows of a file, else equal content.

        Which rows `examples_per_class` left out is not looked at.
        """
        if self.rows is None or other.rows is None:
            return self.equal_examples(other) > 0
        return any(
            file == other_file
            and max(rows.start, other_rows.start) < min(rows.stop, other_rows.stop)
            for file, rows in self.rows
            for other_file, other_rows in other.rows
        )

    @checked(DataError)
    def equal_examples(self, other: "DataSplit") -> int:
        """Return how many examples have the content of one of another split.

        Of inputs alone, whatever their labels; 0 where the content of either is not known.
        """
        if self.keys is None or other.keys is None:
            return 0
        return int(np.isin(self.keys, other.keys).sum())


def _may_be_told(task: Task, label: Any) -> bool:
    """Return whether a label's shape and dtype are those of a task."""
    if task.parts:
        named = isinstance(label, dict) and label.keys() == task.by_name.keys()
        return named and all(_may_be_told(one, label[name]) for name, one in task.by_name.items())
    if not isinstance(label, tf.TensorSpec):
        return False
    if task.kind == "classification":
        return label.dtype.is_integer and label.shape.rank in (0, None)
    return label.shape.num_elements() in (task.size, None)


def _told(task: Task, label: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Return which outputs a label speaks of, as 0 and 1, and whether it is of the task."""
    if task.parts:
        pairs = [_told(part, label[name]) for name, part in task.by_name.items()]
        told, good = zip(*pairs, strict=True)
        return tf.concat(told, axis=0), tf.reduce_all(tf.stack(good))
    if task.kind == "classification":
        told = tf.one_hot(label, task.size, dtype=tf.int64)
        return told, tf.reduce_any(told > 0)
    values = tf.reshape(label, (task.size,))
    if task.kind == "multilabel":
        told = values == 1
        return tf.cast(told, tf.int64), tf.reduce_all(told | (values == 0))
    told = tf.math.is_finite(values)
    return tf.cast(told, tf.int64), tf.reduce_all(told)
