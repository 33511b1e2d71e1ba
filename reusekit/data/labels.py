"""Labels of a TFDS data set: the task they state, and the label of each example."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from reusekit.data.examples import FeaturePath, read_examples
from reusekit.data.task import Kind, Task
from reusekit.errors import DataError

MOST_CLASSES = 100
"""Different whole numbers, beyond which a label is a quantity and no class."""

Stored = Sequence[tf.Tensor]
"""The stored values of one example, one for each feature of the label."""


@dataclass(frozen=True)
class Labels:
    """The labels of a data set.

    Attributes:
        task: Task that they state.
        of: From what is stored of an example to its label, or to a dictionary by task.
    """

    task: Task
    of: Callable[[Stored], Any]


@dataclass(frozen=True)
class _Asked:
    """The features that a user named as the label, and the task that was asked for."""

    builder: tfds.core.DatasetBuilder
    names: Sequence[str]
    features: Sequence[tfds.features.FeatureConnector]
    kind: Kind | None

    def refusal(self, expected: str) -> DataError:
        """Return the error for features that cannot be such labels."""
        said = ", ".join(map(repr, self.names))
        received = "; ".join(" ".join(str(feature).split()) for feature in self.features)
        wanted = f" as labels of {self.kind}" if self.kind else ""
        return DataError(
            f"Expected {expected}, as the label {said} of {self.builder.name}{wanted}. "
            f"Received: {received}. Choose another label, or another task."
        )


def stated_labels(
    builder: tfds.core.DatasetBuilder,
    names: Sequence[str],
    features: Sequence[tfds.features.FeatureConnector],
    kind: Kind | None,
) -> Labels | None:
    """Find the task that a label's features state; None for values that have to be counted.

    Args:
        builder: A builder, which need not be prepared.
        names: The label's features, as a user writes them.
        features: These.
        kind: The task that is asked for; None for the one that the features look like.

    Raises:
        DataError: The features are no labels, or none of that task.
    """
    asked = _Asked(builder, names, features, kind)
    if len(features) > 1:
        return _several(asked)
    feature, name = features[0], names[0]
    if isinstance(feature, tfds.features.ClassLabel):
        return _classes(asked, feature)
    if isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        if isinstance(inner, tfds.features.ClassLabel) and inner.num_classes is not None:
            return _sets_of_classes(asked, inner)
    shape, letter = _shape_and_kind(feature)
    if shape == () and letter in ("i", "u") and kind in (None, "classification"):
        return None
    if shape == () and letter == "S" and kind == "classification":
        return None
    if shape == () and letter == "b" and kind in (None, "classification"):
        classes = Task("classification", ("False", "True"))
        return Labels(classes, lambda stored: tf.cast(stored[0], tf.int64))
    if shape is None or letter not in ("b", "i", "u", "f") or len(shape) > 1 or None in shape:
        raise asked.refusal(
            "one class, some of several classes, or numbers of a fixed count for each example; "
            "words are classes where task is 'classification'"
        )
    parts = (name,) if shape == () else tuple(f"{name}/{n}" for n in range(shape[0] or 0))
    return _numbers(asked, parts, {letter}, scalar=shape == ())


def _classes(asked: _Asked, feature: tfds.features.ClassLabel) -> Labels:
    if asked.kind == "regression":
        return _numbers(asked, tuple(asked.names), {"i"}, scalar=True)
    if feature.num_classes is None or asked.kind == "multilabel":
        raise asked.refusal("a ClassLabel that says how many classes it has, one for each example")
    return Labels(Task("classification", tuple(feature.names)), lambda stored: stored[0])


def _sets_of_classes(asked: _Asked, feature: tfds.features.ClassLabel) -> Labels:
    if asked.kind not in (None, "multilabel"):
        raise asked.refusal("one value for each example")
    count = feature.num_classes

    def of(stored: Stored) -> tf.Tensor:
        # A class out of range gives NaN, which the check of labels finds.
        known = tf.reduce_all((stored[0] >= 0) & (stored[0] < count))
        found = tf.reduce_max(
            tf.concat([tf.one_hot(stored[0], count), tf.zeros((1, count))], axis=0), axis=0
        )
        return tf.where(known, found, np.nan)

    return Labels(Task("multilabel", tuple(feature.names)), of)


def _several(asked: _Asked) -> Labels:
    found = [_shape_and_kind(feature) for feature in asked.features]
    letters = {letter for _, letter in found}
    if any(shape != () for shape, _ in found) or not letters <= {"b", "i", "u", "f"}:
        raise asked.refusal("true and false, or a number, in each of several features")
    return _numbers(asked, tuple(asked.names), letters, scalar=False)


def _numbers(asked: _Asked, names: tuple[str, ...], letters: set[str], scalar: bool) -> Labels:
    """Take true and false for labels, and other numbers for what is to be predicted."""
    kind = asked.kind or {"b": "multilabel", "f": "regression"}.get("".join(sorted(letters)))
    if kind not in ("multilabel", "regression") or (kind == "multilabel" and "f" in letters):
        raise asked.refusal(
            "true and false for several labels, or numbers that are no classes; whole numbers are "
            "taken for either where task is 'multilabel' or 'regression'"
        )
    vector = not scalar or kind == "multilabel"

    def of(stored: Stored) -> tf.Tensor:
        values = tf.cast(tf.stack(list(stored)), tf.float32)
        return tf.reshape(values, (len(names),) if vector else ())

    return Labels(Task(kind, names), of)  # type: ignore[arg-type]  # one of the two


def _shape_and_kind(
    feature: tfds.features.FeatureConnector,
) -> tuple[tuple[int | None, ...] | None, str]:
    """Return a feature's shape, and the letter by which NumPy calls its kind of dtype.

    The shape is None where it is no tensor, or holds something else than numbers.
    """
    spec = feature.get_tensor_spec()
    if not isinstance(spec, tf.TensorSpec) or isinstance(feature, tfds.features.Image):
        return None, ""
    letter = "S" if spec.dtype == tf.string else np.dtype(spec.dtype.as_numpy_dtype).kind
    return tuple(spec.shape), letter


def counted_labels(builder: tfds.core.DatasetBuilder, name: str, path: FeaturePath) -> Labels:
    """Take the different whole numbers or words of a label for classes.

    Those of all splits count, so that a value is the same class in each.

    Args:
        builder: A prepared builder.
        name: The label, as a user writes it.
        path: Where it lies in an example.

    Raises:
        DataError: They are too many.
    """
    splits = "+".join(builder.info.splits or ["train"])
    stored = read_examples(builder, splits, [path])
    values = np.unique([value for (value,) in stored.as_numpy_iterator()])
    if len(values) > MOST_CLASSES:
        raise DataError(
            f"Expected at most {MOST_CLASSES} different values of the label {name!r} of "
            f"{builder.name} as classes. Received: {len(values):,}. Set task to 'regression' where "
            "numbers are predicted."
        )
    if values.dtype.kind in "SO":
        names = tuple(value.decode(errors="replace") for value in values.tolist())
        table = tf.constant(values.tolist())

        def place(stored: Stored) -> tf.Tensor:
            return tf.argmax(table == stored[0])

        return Labels(Task("classification", names), place)
    values = values.astype(np.int64)

    def of(stored: Stored) -> tf.Tensor:
        return tf.searchsorted(values, tf.cast(stored[0], tf.int64)[None], out_type=tf.int64)[0]

    return Labels(Task("classification", tuple(map(str, values))), of)


def joint_labels(found: Mapping[str, Labels], counts: Mapping[str, int]) -> Labels:
    """Return the labels of several tasks of the same examples.

    Args:
        found: The labels of each task, by its name.
        counts: How many features each of them is made of; they are stored in that order.
    """
    ends = dict(zip(counts, np.cumsum(list(counts.values())).tolist(), strict=True))

    def of(stored: Stored) -> dict[str, tf.Tensor]:
        return {
            name: labels.of(stored[ends[name] - counts[name] : ends[name]])
            for name, labels in found.items()
        }

    return Labels(Task.joint({name: labels.task for name, labels in found.items()}), of)


def check_labels(labels: np.ndarray, task: Task, where: str) -> None:
    """Check that each example of a split has a label of its task.

    Args:
        labels: Of each example, shape (size,) or (size, outputs); of several tasks, `joined`.
        task: Their task.
        where: Data set and split, as a message calls them.

    Raises:
        DataError: Labels are of another shape or type, or an example has none, as in a test split
            whose labels are kept secret.
    """
    if task.parts:
        given = labels.dtype.names or ()
        if set(given) != set(task.names):
            raise DataError(
                f"Expected labels of {', '.join(task.names)} for each example of "
                f"{where.rstrip(',')}. Received: "
                f"{', '.join(given) or f'labels of type {labels.dtype}'}."
            )
        for name, part in task.by_name.items():
            check_labels(labels[name], part, f"{where.rstrip(',')}, task {name!r},")
        return
    many = task.size
    each, expected = {
        "classification": ("one class", f"labels from 0 to {many - 1}"),
        "multilabel": (f"{many} labels of 0 and 1", "0 or 1 for each label"),
        "regression": (f"{many} numbers", "finite numbers"),
    }[task.kind]
    count = 1 if task.kind == "classification" else many
    single = count == 1 and task.kind != "multilabel"
    if labels.dtype.kind not in "biuf" or labels.shape[1:] not in [(count,), *[()] * single]:
        raise DataError(
            f"Expected {each} for each example of {where.rstrip(',')}. Received: labels of shape "
            f"{labels.shape[1:]} and type {labels.dtype}."
        )
    found = labels.reshape(len(labels), count)
    if task.kind == "classification":
        good = (found >= 0) & (found < many) & (found % 1 == 0)
    else:
        good = np.isin(found, (0, 1)) if task.kind == "multilabel" else np.isfinite(found)
    rows = np.flatnonzero(~good.all(axis=1))
    if len(rows):
        missing = "a class" if task.kind == "classification" else "a label"
        raise DataError(
            f"Expected {expected} for each example of {where.rstrip(',')}. Received: "
            f"{len(rows):,} of {len(labels):,} without {missing}, the first at position {rows[0]}: "
            f"{labels[rows[0]].tolist()}. Choose another split, or another label."
        )
