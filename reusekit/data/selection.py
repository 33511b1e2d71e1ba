"""The rows of a data set that make up a split."""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from reusekit.errors import DataError


def few_per_class(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw the same number of examples of each class that occurs.

    Args:
        labels: Shape (size,).
        count: How many of each.
        seed: Decides which.

    Returns:
        Positions of the chosen examples, int64, ascending.

    Raises:
        DataError: A class that occurs has fewer.

    Example:
        >>> few_per_class(np.array([0, 1, 0, 1, 1]), 2, seed=0).tolist()
        [0, 1, 2, 4]
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        if len(positions) < count:
            raise DataError(
                f"examples_per_class={count} is more than class {label} has: {len(positions)}."
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
