"""Classes of a data set: their names, and the class of each example."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from reusekit.data.examples import FeaturePath, read_examples
from reusekit.errors import DataError

_MOST_VALUES = 100
"""Different whole numbers, beyond which a label is a quantity and no class."""


@dataclass(frozen=True)
class Classes:
    """The classes that a feature of a data set tells apart.

    Attributes:
        names: In the order of the classes.
        values: What is stored for each class, ascending, where that is not its position.
    """

    names: tuple[str, ...]
    values: np.ndarray | None = None

    def of(self, stored: tf.Tensor) -> tf.Tensor:
        """Return the position of the class of a stored label."""
        if self.values is None:
            return stored
        return tf.searchsorted(self.values, tf.cast(stored, tf.int64)[None], out_type=tf.int64)[0]


def stated_classes(
    builder: tfds.core.DatasetBuilder, name: str, feature: tfds.features.FeatureConnector
) -> Classes | None:
    """Find the classes that a label's feature states; None for whole numbers, which state none.

    Args:
        builder: A builder, which need not be prepared.
        name: The label, as a user writes it.
        feature: The label's feature.

    Raises:
        DataError: The label is another number, a text, or several classes an example.
    """
    if isinstance(feature, tfds.features.ClassLabel):
        if feature.num_classes is None:
            raise DataError(
                f"The label {name!r} of {builder.name} is no class. Expected a ClassLabel "
                "that says how many classes it has."
            )
        return Classes(tuple(feature.names))
    received = " ".join(str(feature).split())
    if isinstance(feature, tfds.features.Sequence):
        raise DataError(
            f"The label {name!r} of {builder.name} is no class. Expected one class an example. "
            f"Received: {received}."
        )
    scalar = isinstance(feature, tfds.features.Tensor) and feature.shape == ()
    kind = np.dtype(feature.np_dtype).kind if scalar else ""
    if kind not in ("b", "i", "u"):
        raise DataError(
            f"The label {name!r} of {builder.name} is no class. Expected a ClassLabel, whole "
            f"numbers, or true and false. Received: {received}."
        )
    return Classes(("False", "True"), np.array([0, 1])) if kind == "b" else None


def counted_classes(builder: tfds.core.DatasetBuilder, name: str, path: FeaturePath) -> Classes:
    """Take the different whole numbers of a label for classes.

    Those of all splits count, so that a number is the same class in each.

    Args:
        builder: A prepared builder.
        name: The label, as a user writes it.
        path: Where it lies in an example.

    Raises:
        DataError: They are too many.
    """
    splits = "+".join(builder.info.splits or ["train"])
    stored = read_examples(builder, splits, [path])
    values = np.unique([int(value) for (value,) in stored.as_numpy_iterator()])
    if len(values) > _MOST_VALUES:
        raise DataError(
            f"The label {name!r} of {builder.name} is no class. Expected at most {_MOST_VALUES} "
            f"different whole numbers. Received: {len(values):,}."
        )
    return Classes(tuple(map(str, values)), values.astype(np.int64))


def check_classes(labels: np.ndarray, classes: Classes, where: str) -> None:
    """Check that each example of a split has one of the classes.

    Args:
        labels: The position of the class of each example.
        classes: Those there are.
        where: Data set and split, as a message calls them.

    Raises:
        DataError: An example has none, as in a test split whose labels are kept secret.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= len(classes.names)))
    if len(bad):
        raise DataError(
            f"{where} has examples without a class: {len(bad):,} of {len(labels):,}, the first at "
            f"position {bad[0]}. Expected labels from 0 to {len(classes.names) - 1}. Received: "
            f"{labels[bad[0]]}. Choose another split, or another label."
        )
