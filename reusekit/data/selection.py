"""The rows of a data set that make up a split."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from reusekit.data.task import Task
from reusekit.data.treatment import Treatment
from reusekit.errors import DataError, nearest


def few_per_class(labels: np.ndarray, task: Task, treatment: Treatment) -> np.ndarray:
    """Draw the same number of examples of each class that occurs.

    Args:
        labels: Shape (size,).
        task: Their task.
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
                f"Expected examples_per_class to be at most {len(positions)}, as class "
                f"{task.names[label]!r} has. Received: {count}."
            )
        chosen.append(generator.permutation(positions)[:count])
    return np.sort(np.concatenate(chosen))


def only(examples: tf.data.Dataset, positions: np.ndarray) -> tf.data.Dataset:
    """Return the examples at these positions, in order."""
    end = int(positions.max(initial=-1)) + 1
    wanted = tf.constant(np.isin(np.arange(end), positions))
    return (
        examples.take(end)
        .enumerate()
        .filter(lambda position, _: wanted[position])
        .map(lambda _, example: example)
        .apply(tf.data.experimental.assert_cardinality(len(positions)))
    )


def positions_of(split: str, sizes: Mapping[str, int], where: str) -> list[tuple[str, range]]:
    """Return the positions that a split with slices and sums takes of each part.

    Args:
        split: As TFDS has it, such as `train[:80%]+test`.
        sizes: The number of examples of each part that there is.
        where: Name of the data set in a message.

    Raises:
        DataError: There is no such part, or no example in it.

    Example:
        >>> positions_of("train[:50%]+test", {"train": 8, "test": 3}, "pets")
        [('train', range(0, 4)), ('test', range(0, 3))]
    """
    if "all" in sizes:
        raise DataError(
            f"Expected parts of {where} by other names than 'all', which stands for all of them. "
            "Received: 'all'. Rename that folder."
        )
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[size], num_bytes=0)
        for name, size in sizes.items()
    }
    for name in (part.partition("[")[0] for part in split.split("+")):
        if name not in (*sizes, "all"):
            raise DataError(
                f"Expected a part of {where}. Received: {name!r}. {nearest(name, sizes)}"
            )
    try:
        taken = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, AssertionError, NotImplementedError) as error:
        raise DataError(
            f"Expected a part of {where}, or slices of some, such as train[:80%] or "
            f"train[100:200]. Received: {split!r}."
        ) from error
    found = [  # a whole part has no ends
        (one.splitname, range(one.from_ or 0, sizes[one.splitname] if one.to is None else one.to))
        for one in taken
    ]
    for name, positions in found:
        if not positions:
            raise DataError(
                f"Expected a split with examples, such as train[2:5]. Received: {split!r}, which "
                f"has none of {name!r} of {where}."
            )
    return found


def rows_of(builder: tfds.core.DatasetBuilder, split: str) -> tuple[tuple[str, range], ...]:
    """Return the rows of each file that a split reads; empty for a data set without files."""
    if not builder.info.splits:
        return ()
    return tuple(
        (part.filename, range(part.skip, part.skip + part.take))
        for part in builder.info.splits[split].file_instructions
    )
