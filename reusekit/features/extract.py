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
) -> dict[str, np.ndarray]:
    """Compute a model's named outputs for every example, in inference mode, in one pass.

    Args:
        model: A model whose output is a dictionary, such as `rk.extract` builds: all the cuts it
            taps cost one pass together.
        batches: Batches of (inputs, labels) in a fixed order.
        size: The number of examples.
        folder: Where to keep the features as memory-mapped `.npy` files, one for each output; None
            keeps them in memory.
        description: What the progress bar says.

    Returns:
        For each output an array of shape (size, ...), in the order of the batches.

    Raises:
        ReusekitError: The features are not finite, or the batches hold another number of examples.

    Example:
        >>> inputs = keras.Input((2,))
        >>> model = keras.Model(inputs, {"twice": inputs * 2})
        >>> extract_features(model, [(np.ones((3, 2)), np.zeros(3))], size=3)["twice"].shape
        (3, 2)
    """
    arrays: dict[str, np.ndarray] = {}
    position = 0
    for inputs, _ in tracked(batches, description, total=_length(batches)):
        outputs = model.predict_on_batch(inputs)
        count = len(next(iter(outputs.values())))
        if position + count > size:
            raise ReusekitError(f"Expected {size} examples. Received more than that.")
        for number, (name, values) in enumerate(outputs.items()):
            if not np.isfinite(values).all():
                raise ReusekitError(
                    f"The features at {name!r} are not finite (examples {position} to "
                    f"{position + count - 1}). Check the input's range and the weights."
                )
            if name not in arrays:
                file = None if folder is None else Path(folder) / f"features_{number}.npy"
                arrays[name] = _array(file, (size, *values.shape[1:]), values.dtype)
            arrays[name][position : position + count] = values
        position += count
    if position != size:
        raise ReusekitError(f"Expected {size} examples. Received: {position}.")
    return arrays


def _array(file: Path | None, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if file is None:
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)


def _length(batches: Iterable) -> int | None:
    return len(batches) if hasattr(batches, "__len__") else None
