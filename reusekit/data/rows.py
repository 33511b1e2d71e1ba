"""Labelled rows of a source of one's own, from which a split is taken."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from reusekit.data.labels import check_labels
from reusekit.data.selection import few_per_class
from reusekit.data.shares import Parts, Shares, draw_parts
from reusekit.data.split import Contents, DataSplit
from reusekit.data.stacks import zipped
from reusekit.data.task import Task, by_task
from reusekit.data.treatment import Treatment
from reusekit.digests import digest as digest_of
from reusekit.errors import DataError
from reusekit.progress import say

ROWS = 8_192
"""Rows that are read at a time."""


def row_keys(inputs: Any) -> np.ndarray:
    """Return a number of 64 bits for each row of inputs that follows from its content.

    Args:
        inputs: An array of shape (rows, ...), or a dictionary of them.

    Example:
        >>> keys = row_keys(np.array([[1, 2], [3, 4], [1, 2]]))
        >>> keys[0] == keys[2], keys[0] == keys[1]
        (np.True_, np.False_)
    """
    if isinstance(inputs, dict):
        keys = np.stack([row_keys(inputs[name]) for name in sorted(inputs)], axis=1)
        return keys[:, 0] if len(inputs) == 1 else row_keys(keys)
    rows: Any = inputs
    if inputs.dtype.kind in "OSU":
        texts = inputs.reshape(len(inputs), -1).tolist()
        rows = (b"\0".join(map(_encoded, part)) for part in texts)
    else:
        inputs = inputs + 0 if inputs.dtype.kind == "f" else inputs  # -0.0 is 0.0
        rows = np.ascontiguousarray(inputs).reshape(len(inputs), -1).view(np.uint8)
    digests = (hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.fromiter((int.from_bytes(one) for one in digests), np.uint64, len(inputs))


def _encoded(text: str | bytes) -> bytes:
    try:
        return text if isinstance(text, bytes) else text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"Expected text that UTF-8 can hold. Received: {text[:60]!r}.") from error


def check_values(missing: np.ndarray, what: str, at: np.ndarray) -> None:
    """Refuse rows without a value.

    Args:
        missing: Whether each row has none.
        what: The values, as a message calls them.
        at: The position of each row.

    Raises:
        DataError: Some have none.
    """
    if missing.any():
        raise DataError(
            f"Expected a value in each row of {what}. Received: none, or one that is not finite, "
            f"in {missing.sum():,} rows, the first at position {at[missing.argmax()]}."
        )


def numbers(values: np.ndarray, what: str, at: np.ndarray) -> np.ndarray:
    """Return numbers as a model takes them: whole ones as they are, others as float32.

    Args:
        values: Shape (rows, ...).
        what: The values, as a message calls them.
        at: The position of each row.

    Raises:
        DataError: Some are missing or not finite.
    """
    if values.dtype.kind not in "fb":
        return values
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    finite = np.isfinite(found).reshape(len(found), -1)
    check_values(np.logical_not(finite.all(axis=1)), what, at)
    return found


def weights_from(values: Any, what: str) -> np.ndarray:
    """Return weights of examples, of at least 0.

    Raises:
        DataError: They are something else.
    """
    found = np.asarray(values)
    numeric = found.dtype.kind in "biuf"
    if found.ndim != 1 or not numeric or not (found >= 0).all():
        raise DataError(
            f"Expected {what} to be numbers of at least 0, one for each example. Received: "
            f"{found.dtype} of shape {found.shape}"
            + (f" with {found[~(found >= 0)][0]}." if numeric and found.ndim == 1 else ".")
        )
    check_values(~np.isfinite(found), what, np.arange(len(found)))
    return found.astype(np.float32)


def streamed(blocks: Callable[[], Iterator[Any]], like: Any, size: int) -> tf.data.Dataset:
    """Return single inputs that are read in blocks, each pass anew.

    Args:
        blocks: Gives arrays of shape (rows, ...), or dictionaries of them.
        like: One block.
        size: The number of rows in all.
    """
    spec = tf.nest.map_structure(
        lambda part: tf.TensorSpec(
            (None, *part.shape[1:]), tf.string if part.dtype.kind in "OSU" else part.dtype
        ),
        like,
    )
    read = tf.data.Dataset.from_generator(blocks, output_signature=spec).prefetch(1)
    return read.unbatch().apply(tf.data.experimental.assert_cardinality(size))


@dataclass(frozen=True)
class Rows:
    """All labelled rows of a source.

    Attributes:
        name: Name of the source.
        inputs: From positions of rows, ascending, and a treatment to a data set of their inputs,
            and the positions of those that could be read.
        keys: A number for each row that follows from its input; see `row_keys`.
        task: Task that the labels state.
        labels: The label of each; of several tasks, `joined`.
        weights: The weight of each; None for no weights.
        groups: The group of each; None for no groups.
        open_length: Whether inputs may be series that a treatment brings to its length.
        stored: Shape and dtype of inputs before any treatment, where keys do not follow from them.
        reading: How inputs of a treatment are read, where an earlier version read them otherwise.
    """

    name: str
    inputs: Callable[[np.ndarray, Treatment], tuple[tf.data.Dataset, np.ndarray]]
    keys: np.ndarray
    task: Task
    labels: np.ndarray
    weights: np.ndarray | None = None
    groups: np.ndarray | None = None
    open_length: bool = False
    stored: str = ""
    reading: Callable[[Treatment], list[str]] = lambda _: []

    def drawn(self, shares: Shares) -> Parts:
        """Return the parts that shares draw of the rows."""
        parts = draw_parts(self.keys, shares, strata(self.task, self.labels), self.groups)
        if parts.duplicates:
            say(
                f"warning: {self.name} has {parts.duplicates:,} of {len(self.keys):,} examples "
                "whose input is that of an earlier one; equal inputs are in one part."
            )
        return parts

    def split(
        self,
        split: str,
        positions: np.ndarray,
        treatment: Treatment,
        origin: Mapping[str, Any],
    ) -> DataSplit:
        """Return the split of some rows.

        Args:
            split: Its name.
            positions: Its rows, ascending.
            treatment: Which of them are kept, and how pictures are treated.
            origin: Plain data to read it again.

        Raises:
            DataError: A row has no label, or a class too few rows.
        """
        among = positions
        if not self.open_length:
            treatment = treatment.model_copy(update={"length": None})
        where = f"{self.name}, split {split!r},"
        check_labels(self.labels[positions], self.task, where)
        while True:
            few = positions[few_per_class(self.labels[positions], self.task, treatment)]
            inputs, readable = self.inputs(few, treatment)
            if len(readable) == len(few) or not treatment.examples_per_class:
                break
            positions = np.setdiff1d(positions, np.setdiff1d(few, readable))
        positions = readable
        labels, keys = self.labels[positions], self.keys[positions]
        told = [labels] if self.weights is None else [labels, self.weights[positions]]
        examples = zipped(inputs, list(map(by_task, told)))
        digest = hashlib.blake2b(digest_size=16)
        reading = self.reading(treatment)
        named = [*self.task.stated(), treatment.decisive(), str(inputs.element_spec), *reading]
        digest.update(json.dumps(named, sort_keys=True).encode())
        for part in (keys, *told):
            digest.update(np.ascontiguousarray(part).data)
        of_inputs = [self.stored, treatment.of_inputs(), str(inputs.element_spec), *reading]
        contents = Contents(
            keys=keys,
            treatment=digest_of(of_inputs),
            told=tuple(by_task(part) for part in told),
            taken=lambda at: zipped(
                self.inputs(positions[at], treatment)[0], [by_task(part[at]) for part in told]
            ),
            fingerprint=digest.hexdigest(),
        )
        return DataSplit(
            name=self.name,
            split=split,
            examples=examples,
            size=len(positions),
            task=self.task,
            fingerprint=digest.hexdigest(),
            treatment=treatment,
            origin=origin,
            keys=keys,
            counts=_counts(labels, self.task),
            reopened=lambda other: self.split(split, among, other, origin),
            contents=contents,
        )


def strata(task: Task, labels: np.ndarray) -> np.ndarray | None:
    """Return the classes and labels of examples that all parts are to have in proportion.

    They are numbers, or rows of 0 and 1; None where all that is told are numbers.
    """
    if task.kind == "regression":
        return None
    if not task.parts:
        return labels
    found = [strata(part, labels[name]) for name, part in task.by_name.items()]
    rows = [
        one if one.ndim == 2 else one[:, None] == np.unique(one) for one in found if one is not None
    ]
    return np.concatenate(rows, axis=1) if rows else None


def _counts(labels: np.ndarray, task: Task) -> np.ndarray:
    """Return how many examples each class or label has, as `DataSplit.check` does."""
    if task.parts:
        parts = [_counts(labels[name], part) for name, part in task.by_name.items()]
        return np.concatenate(parts)
    if task.kind == "classification":
        return np.bincount(labels, minlength=task.size)
    if task.kind == "multilabel":
        return labels.sum(axis=0, dtype=np.int64)
    return np.full(task.size, len(labels))


def treated(inputs: tf.data.Dataset, treatment: Treatment) -> tf.data.Dataset:
    """Bring stored pictures to what a model is fed, and leave all other inputs.

    Raises:
        DataError: Something else is to be resized or converted.
    """
    parts = tf.nest.flatten(inputs.element_spec)
    asked = treatment.image_size or treatment.channels or treatment.length
    if not asked and not any(map(_is_picture, parts)):
        return inputs
    return inputs.map(treatment.of(inputs.element_spec), tf.data.AUTOTUNE)


def _is_picture(spec: tf.TensorSpec) -> bool:
    """Return whether an input is stored as pictures are, of 8 or 16 bits."""
    return (
        spec.shape.rank == 3 and spec.dtype in (tf.uint8, tf.uint16) and spec.shape[-1] in (1, 3, 4)
    )
