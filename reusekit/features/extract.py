"""Run a bottom over a data set once and keep what it computes."""

import os
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np

from reusekit.errors import ReusekitError
from reusekit.progress import tracked


def extract_features(
    model: keras.Model,
    batches: Iterable,
    size: int,
    folder: str | os.PathLike | None = None,
    description: str = "Extracting features",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Compute a model's named outputs for every example, in inference mode, in one pass.

    Args:
        model: A model whose output is a dictionary, such as `rk.extract` builds: all the cuts it
            taps cost one pass together.
        batches: Batches of (inputs, labels) in a fixed order.
        size: The number of examples.
        folder: Where to keep the features as memory-mapped `.npy` files, one for each output; it is
            made where it does not exist. None keeps them in memory.
        description: What the progress bar says.

    Returns:
        For each output an array of shape (size, ...), and the labels, int64, shape (size,); both in
        the order of the batches.

    Raises:
        ReusekitError: The features are not finite, or the batches hold another number of examples.

    Example:
        >>> inputs = keras.Input((2,))
        >>> model = keras.Model(inputs, {"twice": inputs * 2})
        >>> features, labels = extract_features(model, [(np.ones((3, 2)), np.zeros(3))], size=3)
        >>> features["twice"].shape, labels.shape
        ((3, 2), (3,))
    """
    arrays: dict[str, np.ndarray] = {}
    labels = np.empty(size, np.int64)
    position = 0
    for inputs, targets in tracked(batches, description, total=_length(batches)):
        outputs = model.predict_on_batch(inputs)
        rows = slice(position, position + len(targets))
        if rows.stop > size:
            raise ReusekitError(f"Expected {size} examples. Received more than that.")
        labels[rows] = targets
        for number, (name, values) in enumerate(outputs.items()):
            if not np.isfinite(values).all():
                raise ReusekitError(
                    f"The features at {name!r} are not finite (examples {rows.start} to "
                    f"{rows.stop - 1}). Check the input's range and the weights."
                )
            if name not in arrays:
                arrays[name] = _array(folder, number, (size, *values.shape[1:]), values.dtype)
            arrays[name][rows] = values
        position = rows.stop
    if position != size:
        raise ReusekitError(f"Expected {size} examples. Received: {position}.")
    return arrays, labels


def _array(
    folder: str | os.PathLike | None, number: int, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    if folder is None:
        return np.empty(shape, dtype)
    Path(folder).mkdir(parents=True, exist_ok=True)
    file = Path(folder) / f"features_{number}.npy"
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)


def _length(batches: Iterable) -> int | None:
    return len(batches) if hasattr(batches, "__len__") else None
