"""The features of a data set at some cuts: from the store, or from one pass over the bottom."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import Seed, checked
from reusekit.data import DataSplit
from reusekit.errors import CacheError, DataError, nearest
from reusekit.features.augmented import augmented
from reusekit.features.bottoms import in_compute_dtype, mask_of
from reusekit.features.frontiers import Frontier, frontier
from reusekit.features.key import LABELS, FeatureKey, feature_keys
from reusekit.features.padding import Padding
from reusekit.features.randomness import random_before
from reusekit.features.source import StoredSource, example_batches
from reusekit.features.store import Batch, FeatureStore
from reusekit.graph import Graph, keras_internals, read
from reusekit.graph.addresses import At
from reusekit.graph.padding_mask import AUTO
from reusekit.progress import tracked
from reusekit.surgery import extract

_DTYPES = ("float32", "float16", "bfloat16")


@checked(CacheError)
def stored_features(
    store: FeatureStore,
    model: keras.Model | Graph,
    cuts: Sequence[At],
    data: DataSplit,
    *,
    pooling: str | Sequence[str | None] | None = None,
    dtype: str | None = None,
    padding: Padding | None = None,
    preprocessing: Any = None,
    view: NonNegativeInt | None = None,
    seed: Seed = 0,
    compute_dtype: str | None = None,
    batch_size: PositiveInt = 64,
    mask: Any = AUTO,
    carries_mask: bool = False,
    description: str = "Extracting features",
) -> list[StoredSource]:
    """Return the features at some cuts, computing those not stored together in one pass.

    Args:
        store: Where they are kept.
        model: What is cut; its bottom runs in inference mode, all of it or, for an augmented view,
            all but the augmentation.
        cuts: For each cut an address, a `CutPoint`, a Keras tensor, or a list of these.
        data: What the model is fed, in its fixed order.
        pooling: "avg" or "max" stores the tensors asked for, pooled; None what crosses, whole. A
            sequence says it for each cut.
        dtype: What features are stored as, such as `float16`; None for what the model computes.
            Masks, positions and other integers stay what they are.
        padding: How examples of different lengths are brought to one.
        preprocessing: What is done to the examples that neither the model nor `data.fingerprint`
            says; see `feature_keys`.
        view: The number of an augmented view, from 0: the layers before the cuts that vary the
            data in training do so, and everything that crosses is stored. None varies nothing.
        seed: The random numbers of a view follow from this, its number and `batch_size` alone.
        compute_dtype: "bfloat16" has the bottom compute in that, which is quicker and less exact;
            None in the model's own precision.
        batch_size: Examples a batch of the pass: it decides speed and memory.
        mask: Which positions pooling passes over, as for `rk.extract`.
        carries_mask: Whether the mask is stored with whole maps, too, after all that crosses, also
            where no top needs it.
        description: What the progress bar says.

    Returns:
        A source of batches for each cut. Removing its entry waits until it is let go of.

    Raises:
        CacheError: The features cannot be named or stored, there is nothing before a cut that
            would make a view differ from another, or without a view something is random.
        CopyError: A layer does not come back from its configuration: for a view one that draws
            random numbers, with `compute_dtype` any.
        DataError: The examples differ in shape and there is no padding, one is longer than the
            padding allows, or there are more or fewer than there were.
        AddressError: A cut names no tensor of the model, or several.

    Example:
        >>> import tempfile
        >>> import reusekit as rk
        >>> data = rk.data.load("sklearn_digits", "test[:50]",
        ...                     treatment=rk.data.Treatment(image_size=(32, 32)))
        >>> model = rk.load_backbone("reusekit/glyphnet").model
        >>> store = FeatureStore(tempfile.mkdtemp())
        >>> early, late = stored_features(store, model, ["stem_out", "block7_out"], data)
        >>> late.stored["block7_out"].shape, late.labels.shape
        ((50, 4, 4, 64), (50,))
    """
    check_dtype(dtype)
    graph = read(model, keep_masks=mask is not None)
    check_examples(graph, data, "data", padding)
    poolings = [pooling] * len(cuts) if pooling is None or isinstance(pooling, str) else pooling
    if len(poolings) != len(cuts):
        raise CacheError(
            f"Expected pooling to be one for all cuts, or a list with one for each of the "
            f"{len(cuts)}. Received: {pooling!r}."
        )
    frontiers = [
        frontier(graph, at, one, mask, carries_mask) for at, one in zip(cuts, poolings, strict=True)
    ]
    entropy = None if view is None else (view, seed, batch_size)
    _check_randomness(frontiers, entropy)
    if view is not None:  # what is free may be augmented: it does not follow from the inputs
        frontiers = [replace(one, stored=one.crossing) for one in frontiers]
    keys = feature_keys(frontiers, data, dtype, padding, preprocessing, compute_dtype, entropy)

    pooled = {
        key.digest: (one.pooling, mask_of(one)) for key, one in zip(keys, frontiers, strict=True)
    }

    def compute(missing: Sequence[FeatureKey], start: int, stop: int) -> Iterator[list[Batch]]:
        running = graph if compute_dtype is None else in_compute_dtype(graph, compute_dtype)
        wanted = [(*pooled[key.digest], key.arrays[:-1]) for key in missing]
        bottom, reseed = _taps(running, wanted, augment=view is not None)
        batches = example_batches(data, start, stop, padding, batch_size)
        total = math.ceil((stop - start) / batch_size)
        for number, (inputs, labels) in enumerate(tracked(batches, description, total=total)):
            if view is not None:  # a pass that goes on starts at a whole batch
                reseed(*entropy, start // batch_size + number)  # type: ignore[misc]
            outputs = bottom.predict_on_batch(inputs)
            made = {tap: _as_stored(values, dtype) for tap, values in outputs.items()}
            labels = np.asarray(labels)
            yield [
                {name: made[_tap(name, *how)] for name in names} | {LABELS: labels}
                for *how, names in wanted
            ]

    entries = store.get_or_compute_all(keys, compute)
    return [StoredSource(*pair) for pair in zip(frontiers, entries, strict=True)]


def check_dtype(dtype: str | None) -> None:
    """Raise CacheError unless features can be stored as this dtype, or None."""
    if dtype is not None and dtype not in _DTYPES:
        raise CacheError(
            f"Expected features to be stored as one of {', '.join(_DTYPES)}, or None. "
            f"Received: {dtype!r}. {nearest(str(dtype), _DTYPES)}"
        )


def check_examples(graph: Graph, data: DataSplit, name: str, padding: Padding | None) -> None:
    """Refuse examples that are no pairs of what a model takes and one tensor of labels.

    Args:
        graph: The model.
        data: The examples.
        name: What they are called in the message.
        padding: How examples of different lengths are brought to one.

    Raises:
        DataError: They are something else.
    """
    spec = data.examples.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        received = f"{len(spec)} parts" if isinstance(spec, tuple) else type(spec).__name__
        raise DataError(
            f"Expected {name} as a DataSplit of (input, label) pairs. Received: {received}."
            + " Weights of examples are not supported; class_weight= is, by a tuner of keras-tuner "
            "on `search.hypermodel`." * (received == "3 parts")
        )
    if not data.size:
        raise DataError(f"Expected {name} with examples. Received: none.")
    given, labels = spec
    if not isinstance(labels, tf.TensorSpec):
        raise DataError(
            f"Expected one tensor of labels for each example of {name}. Received: a "
            f"{type(labels).__name__} of {len(tf.nest.flatten(labels))}. Keep one of them, or "
            "stack them in one tensor, with data.examples.map."
        )
    if labels.dtype == tf.string:
        raise DataError(f"Expected numbers as labels of {name}. Received: text.")
    wanted = {tensor.source.name: tensor.shape[1:] for tensor in graph.inputs}
    if isinstance(given, dict) and not isinstance(graph.input_structure, dict):
        optional = [t.source.name for t in graph.inputs if keras_internals.is_optional(t.source)]
        missing = [one for one in wanted if one not in given and one not in optional]
        pairs = [(one, given.get(one), shape) for one, shape in wanted.items()]
    else:
        parts = tf.nest.flatten(given)
        missing = [] if isinstance(given, dict) else list(wanted)[len(parts) :]
        pairs = [(one, parts[0], shape) for one, shape in wanted.items() if len(wanted) == 1]
    if missing:
        raise DataError(
            f"Expected examples of {name} with the model's inputs {', '.join(wanted)}. Received: "
            f"none for {', '.join(missing)}."
        )
    for one, part, shape in pairs:
        if padding is None and isinstance(part, tf.TensorSpec) and not _fits(part.shape, shape):
            raise DataError(
                f"Expected examples of {name} of shape {tuple(shape)}, which the model takes as "
                f"{one!r}. Received: {tuple(part.shape)}. Load images with image_size= and "
                "channels=."
            )


def _fits(given: tf.TensorShape, wanted: Sequence[int | None]) -> bool:
    """Return whether a model takes an example; Keras adds and drops a last axis of 1."""
    if given.rank is None:
        return True
    sizes = list(given)
    if len(sizes) == len(wanted) - 1:
        sizes.append(1)
    elif len(sizes) == len(wanted) + 1 and sizes[-1] in (1, None):
        sizes.pop()
    return tf.TensorShape(sizes).is_compatible_with(wanted)


def _taps(
    graph: Graph, wanted: Sequence[tuple[str | None, str | None, Sequence[str]]], augment: bool
) -> tuple[keras.Model, Callable[..., None] | None]:
    """Return one model for all poolings, so that the bottom runs once.

    Args:
        graph: What is tapped.
        wanted: How tensors are pooled, under which mask, and their addresses.
        augment: Whether the layers that vary the data do so.

    Returns:
        The model, whose output is a dictionary by `_tap`, and what decides its random numbers.
    """
    graph = read(graph, keep_masks=any(mask is not None for _, mask, _ in wanted))
    tensors = {name: graph.names[name] for *_, names in wanted for name in names}
    # Found by the whole model, a mask is given to the part of it that is tapped.
    given = {mask for _, mask, _ in wanted if mask not in (None, AUTO)}
    tensors |= {name: graph.names[name] for name in given}
    reseed = None
    if augment:
        whole, reseed = augmented(graph, tensors, None)
    else:
        whole = extract(graph, tensors)
    outputs: dict[str, Any] = {}
    for pooling, mask in dict.fromkeys(tuple(how) for *how, _ in wanted):
        alike = [names for one, its_mask, names in wanted if (one, its_mask) == (pooling, mask)]
        addresses = dict.fromkeys(name for names in alike for name in names)
        pooled = extract(
            whole,
            {name: whole.output[name] for name in addresses},
            pooling,
            whole.output[mask] if mask in given else mask,
        ).output
        outputs |= {_tap(name, pooling, mask): pooled[name] for name in addresses}
    return keras.Model(whole.input, outputs, name=whole.name), reseed


def _tap(name: str, pooling: str | None, mask: str | None) -> str:
    return f"{pooling or 'whole'}:{mask if pooling else None}:{name}"


def _check_randomness(frontiers: Sequence[Frontier], entropy: tuple[int, ...] | None) -> None:
    """Refuse randomness that does not stop without a view, and a view without randomness."""
    if entropy is not None and min(entropy) < 0:
        raise CacheError(
            f"Expected the number of a view and its seed to be 0 or more. Received: {entropy[:2]}."
        )
    for one in frontiers:
        found = random_before(one.graph, one.crossing)
        cut, always = one.crossing[0].address, ", ".join(map(repr, found.always))
        if entropy is None and always:
            raise CacheError(
                f"Expected features that are the same each time. What crosses at {cut!r} depends "
                f"on {always}, random in inference as well. Cut before, or store a view."
            )
        if entropy is not None and found.unseeded:
            raise CacheError(
                f"Expected a view to be made of random numbers that can be drawn again. What "
                f"crosses at {cut!r} depends on {', '.join(map(repr, found.unseeded))}, which "
                "should draw from a keras.random.SeedGenerator that the layer holds."
            )
        if entropy is not None and not found.augmenting and not always:
            raise CacheError(
                f"Expected a cut after layers that vary the data in training. There are none "
                f"before {cut!r}, so that every view is the same: leave out view={entropy[0]}."
            )


def _as_stored(values: Any, dtype: str | None) -> np.ndarray:
    values = keras.ops.convert_to_numpy(values)
    if dtype is None or not keras.backend.is_float_dtype(values.dtype.name):
        return values
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused
        return values.astype(dtype)
