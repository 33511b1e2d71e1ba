"""The rows of a data set that make up a split."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from reusekit.data.task import Task
from reusekit.data.treatment import Treatment
from reusekit.errors import DataError


def few_per_class(labels: np.ndarray, task: Task, treatment: Treatment) -> np.ndarray:
    """Draw the same number of examples of each class that occurs.

    Args:
        labels: Shape (size,).
        task: What they are.
        treatment: How many of each, and the seed that decides which.

    Returns:
        Positions of the chosen examples, int64, ascending.

    Raises:
        DataError: A class that occurs has fewer, or the labels are no classes.

    Example:
        >>> labels, task = np.array([0, 1, 0, 1, 1]), Task("classification", ("a", "b"))
        >>> few_per_class(labels, task, Treatment(examples_per_class=2)).tolist()
        [0, 1, 2, 4]
    """
    count = treatment.examples_per_class
    if count is None:
        return np.arange(len(labels))
    if task.kind != "classification":
        raise DataError(
            "Expected labels of one class an example for examples_per_class. Received: those of "
            f"{task.kind}."
        )
    generator = np.random.default_rng(treatment.seed)
    chosen = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        if len(positions) < count:
            raise DataError(
                f"examples_per_class={count} is more than class {task.names[label]!r} has: "
                f"{len(positions)}."
            )
        chosen.append(generator.permutation(positions)[:count])
    return np.sort(np.concatenate(chosen))


def only(examples: tf.data.Dataset, positions: np.ndarray) -> tf.data.Dataset:
    """Return the examples at these positions, in order."""
    wanted = tf.constant(positions, tf.int64)
    return (
        examples.enumerate()
        .filter(lambda position, _: tf.reduce_any(wanted == position))
        .map(lambda _, example: example)
        .apply(tf.data.experimental.assert_cardinality(len(positions)))
    )


def rows_of(builder: tfds.core.DatasetBuilder, split: str) -> tuple[tuple[str, range], ...]:
    """Return the rows of each file that a split reads; empty for a data set without files."""
    if not builder.info.splits:
        return ()
    return tuple(
        (part.filename, range(part.skip, part.skip + part.take))
        for part in builder.info.splits[split].file_instructions
    )
