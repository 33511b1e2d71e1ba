"""The features of a data set at some cuts: from the store, or from one pass over the bottom."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reusekit.data import DataSplit
from reusekit.errors import CacheError, DataError, nearest
from reusekit.features.entry import Entry
from reusekit.features.feed import feed
from reusekit.features.frontier import Frontier, frontier
from reusekit.features.key import LABELS, FeatureKey, feature_keys
from reusekit.features.padding import Padding
from reusekit.features.sharded_array import ShardedArray
from reusekit.features.store import Batch, FeatureStore
from reusekit.graph import Graph, read
from reusekit.progress import tracked
from reusekit.surgery import extract

_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """What crosses a cut, for every example of a data set.

    Attributes:
        frontier: The cut.
        entry: What is stored of it.
    """

    frontier: Frontier
    entry: Entry

    @property
    def labels(self) -> ShardedArray:
        """The labels, in the data set's order."""
        return self.entry[LABELS]

    @property
    def arrays(self) -> dict[str, ShardedArray]:
        """The stored tensors by address, in the data set's order."""
        return {name: self.entry[name] for name in self.frontier.names}

    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """Batches of (what crosses, labels), as the top of the split model takes them.

        Args:
            batch_size: Examples a batch; the last one may be smaller.
            seed: Shuffle as `feed` does; None keeps the order.
        """
        batches = feed(self.arrays, self.labels, batch_size, seed)
        return batches.map(lambda stored, labels: (self.frontier.restore(stored), labels))


def stored_features(
    store: FeatureStore,
    model: keras.Model | Graph,
    cuts: Sequence[Any],
    data: DataSplit,
    *,
    pooling: str | None = None,
    dtype: str | None = None,
    padding: Padding | None = None,
    preprocessing: Any = None,
    batch_size: int = 64,
    description: str = "Extracting features",
) -> list[StoredFeatures]:
    """The features at some cuts. Those that are not stored are computed in one pass, together.

    Args:
        store: Where they are kept.
        model: What is cut; its bottom runs in inference mode.
        cuts: For each cut an address, a `CutPoint`, a Keras tensor, or a list of these.
        data: What the model is fed, in its fixed order.
        pooling: "avg" or "max" stores the tensors asked for, pooled; None what crosses, whole.
        dtype: What features are stored as, such as `float16`; None for what the model computes.
            Masks, positions and other integers stay what they are.
        padding: How examples of different lengths are brought to one.
        preprocessing: What is done to the examples that neither the model nor `data.fingerprint`
            says; see `feature_keys`.
        batch_size: Examples a batch of the pass: it decides speed and memory.
        description: What the progress bar says.

    Returns:
        The features of each cut. Removing them from the store waits until they are let go of.

    Raises:
        CacheError: The features cannot be named or stored.
        DataError: The examples differ in shape and there is no padding, one is longer than the
            padding allows, or there are more or fewer than there were.
        AddressError: A cut names no tensor of the model, or several.

    Example:
        >>> import tempfile
        >>> import reusekit as rk
        >>> from reusekit.data import load_split
        >>> data = load_split("sklearn_digits", "test[:50]", image_size=(32, 32))
        >>> model = rk.load_backbone("reusekit/glyphnet").model
        >>> store = FeatureStore(tempfile.mkdtemp())
        >>> early, late = stored_features(store, model, ["stem_out", "block7_out"], data)
        >>> late.arrays["block7_out"].shape, late.labels.shape
        ((50, 4, 4, 64), (50,))
    """
    if dtype is not None and dtype not in _DTYPES:
        raise CacheError(
            f"Expected features to be stored as one of {', '.join(_DTYPES)}, or None. "
            f"Received: {dtype!r}. {nearest(str(dtype), _DTYPES)}"
        )
    graph = read(model)
    frontiers = [frontier(graph, at, pooling) for at in cuts]
    keys = feature_keys(frontiers, data, dtype, padding, preprocessing)

    def compute(missing: Sequence[FeatureKey], start: int, stop: int) -> Iterator[list[Batch]]:
        wanted = dict.fromkeys(name for key in missing for name in key.arrays if name != LABELS)
        taps = extract(graph, {name: name for name in wanted}, pooling)
        batches = _batches(data, start, stop, padding, batch_size)
        total = math.ceil((stop - start) / batch_size)
        for inputs, labels in tracked(batches, description, total=total):
            outputs = taps.predict_on_batch(inputs)
            made = {name: _as_stored(values, dtype) for name, values in outputs.items()}
            made[LABELS] = np.asarray(labels)
            yield [{name: made[name] for name in key.arrays} for key in missing]

    entries = store.get_or_compute_all(keys, compute)
    return [StoredFeatures(*pair) for pair in zip(frontiers, entries, strict=True)]


def _as_stored(values: Any, dtype: str | None) -> np.ndarray:
    values = keras.ops.convert_to_numpy(values)
    if dtype is None or not keras.backend.is_float_dtype(values.dtype.name):
        return values
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused
        return values.astype(dtype)


def _batches(
    data: DataSplit, start: int, stop: int, padding: Padding | None, batch_size: int
) -> Iterator[tuple[Any, tf.Tensor]]:
    """Batches of some of the examples; up to the end, of all that there are."""
    examples = data.examples.skip(start)
    if stop < data.size:
        examples = examples.take(stop - start)
    batches = padding.batch(examples, batch_size) if padding else examples.batch(batch_size)
    try:
        yield from batches.prefetch(tf.data.AUTOTUNE)
    except tf.errors.InvalidArgumentError as error:
        if "is refused" in str(error):
            raise DataError(
                f"An example is longer than {padding}. Raise the length, or pass longer='truncate'."
            ) from error
        if "different shapes" in str(error):
            raise DataError(
                "The examples differ in shape. Bring them to one with Padding(length=...), or load "
                "images with an image_size."
            ) from error
        raise
