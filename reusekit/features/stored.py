"""The features of a data set at some cuts: from the store, or from one pass over the bottom."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from pydantic import NonNegativeInt

from reusekit.arguments import checked
from reusekit.data import DataSplit
from reusekit.errors import CacheError, DataError
from reusekit.features.batches import Padding, example_batches
from reusekit.features.bottoms import Bottom
from reusekit.features.frontiers import Frontier, frontier
from reusekit.features.key import (
    EXAMPLES,
    LABELS,
    WEIGHTS,
    Extraction,
    FeatureKey,
    feature_keys,
    label_array,
)
from reusekit.features.known import known_examples, merged
from reusekit.features.randomness import random_before, refuse_stateful
from reusekit.features.source import StoredSource
from reusekit.features.store import Batch, FeatureStore
from reusekit.graph import Graph, keras_internals, read
from reusekit.graph.addresses import At
from reusekit.progress import tracked
from reusekit.workers import HERE, two_at_a_time

_SMALL = 2**21
"""Bytes of a batch of inputs of which two are computed at a time."""


@checked(CacheError)
def stored_features(
    store: FeatureStore,
    model: keras.Model | Graph,
    cuts: Sequence[At],
    data: DataSplit,
    *,
    pooling: str | Sequence[str | None] | None = None,
    view: NonNegativeInt | None = None,
    extraction: Extraction = Extraction(),
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
        view: The number of an augmented view, from 0: the layers before the cuts that vary the
            data in training do so, after the data's own augmentation. None varies nothing.
        extraction: How features are computed.

    Returns:
        A source of batches for each cut. Removing its entry waits until it is let go of.

    Raises:
        CacheError: The features cannot be named or stored, there is nothing before a cut that
            would make a view differ from another, or without a view something is random.
        CopyError: A layer does not come back from its configuration: for a view one that draws
            random numbers, with a compute dtype any.
        DataError: The examples are not what the model takes, differ in shape and there is no
            padding, or there are more or fewer than there were.
        AddressError: A cut names no tensor of the model, or several.
        ConfigError: A layer before a cut is stateful.

    Example:
        >>> import tempfile
        >>> import reusekit as rk
        >>> data = rk.data.load("sklearn_digits", "test[:50]",
        ...                     treatment=rk.data.Treatment(image_size=(32, 32)))
        >>> model = rk.load_backbone("reusekit/glyphnet").model
        >>> store, half = FeatureStore(tempfile.mkdtemp()), Extraction(dtype="float16")
        >>> cuts = ["stem_out", "block7_out"]
        >>> early, late = stored_features(store, model, cuts, data, extraction=half)
        >>> late.stored["block7_out"].shape, late.labels.shape
        ((50, 4, 4, 64), (50,))
    """
    graph = read(model, keep_masks=extraction.mask is not None)
    check_examples(graph, data, "data", extraction.padding)
    poolings = [pooling] * len(cuts) if pooling is None or isinstance(pooling, str) else pooling
    if len(poolings) != len(cuts):
        raise CacheError(
            f"Expected pooling to be one for all cuts, or a list with one for each of the "
            f"{len(cuts)}. Received: {pooling!r}."
        )
    mask = (extraction.mask, extraction.carries_mask)
    frontiers = [frontier(graph, at, one, *mask) for at, one in zip(cuts, poolings, strict=True)]
    for one in frontiers:
        _check_randomness(one, view, data)
    keys = feature_keys(frontiers, data, extraction, view)
    of = {key.digest: one for key, one in zip(keys, frontiers, strict=True)}
    said = "Extracting features" + (f", view {view + 1}" if view is not None else "")

    contents, size = data.contents if view is None else None, extraction.batch_size

    def compute(missing: Sequence[FeatureKey], start: int, stop: int) -> Iterator[list[Batch]]:
        known = [one.opened() for one in known_examples(store, missing)]
        if contents is None or not any(one.entries for one in known):
            for made, told in run_over(data, missing, start, stop):
                low, start = start, start + len(next(iter(told.values())))
                if contents is not None:
                    told[EXAMPLES] = contents.keys[low:start]
                yield [one | told for one in made]
            return
        # Computed anew for all of the cuts where it is for one.
        lacking = start + np.flatnonzero(np.any([one.lacking[start:] for one in known], axis=0))
        others = data  # of which none is read where none is lacking
        if len(lacking):
            others = replace(data, examples=contents.taken(lacking), size=len(lacking))
        computed = (made for made, _ in run_over(others, missing, 0, len(lacking)))
        told_of = _named(*contents.told) | {EXAMPLES: contents.keys}
        rows = range(start, stop, size)
        for low, made in zip(rows, merged(known, computed, lacking, rows), strict=True):
            told = {name: values[low : low + size] for name, values in told_of.items()}
            yield [one | told for one in made]

    def run_over(
        split: DataSplit, missing: Sequence[FeatureKey], start: int, stop: int
    ) -> Iterator[tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]]:
        """Yield what is stored of each batch for each key, and what is told of its examples."""
        if start == stop:
            return
        wanted = tuple(of[key.digest] for key in missing)
        bottom = Bottom(graph, wanted, extraction, view)
        lengths = bottom.lengths
        # A pass that goes on starts at a whole batch; of texts, so that they are sorted among the
        # same ones, at a whole window.
        begin = start if lengths is None else start - start % lengths.window(size)
        batches = example_batches(split, begin, stop, extraction.padding, size)
        told_of: deque[Sequence[Any]] = deque()

        def inputs_of() -> Iterator[tuple[int, Any]]:
            for number, (inputs, *told) in enumerate(batches, begin // size):
                if view is not None and data.augmentation is not None:
                    drawn = view, extraction.seed, size, number
                    inputs, *_ = data.augmentation(drawn, inputs, *told)
                told_of.append(told)
                yield number, inputs

        run = partial(store.workers.map, bottom)
        if store.workers is HERE and view is None and lengths is None and _small(split, size):
            run = partial(two_at_a_time, bottom)  # one would leave processors idle
        computed = run(inputs_of()) if lengths is None else lengths.computed(run, inputs_of(), size)
        tracking = tracked(computed, said, total=math.ceil((stop - begin) / size))
        for position, made in enumerate(tracking, begin // size):
            told = told_of.popleft()
            if position >= start // size:
                yield made, _named(*told)

    entries = store.get_or_compute_all(keys, compute)
    return [StoredSource(*pair) for pair in zip(frontiers, entries, strict=True)]


def _small(data: DataSplit, size: int) -> bool:
    """Return whether batches are so small that two take little memory at a time."""
    specs = tf.nest.flatten(data.examples.element_spec[0])
    known = all(spec.shape.is_fully_defined() for spec in specs)
    return known and size * sum(np.prod(s.shape) * s.dtype.size for s in specs) <= _SMALL


def check_examples(graph: Graph, data: DataSplit, name: str, padding: Padding | None) -> None:
    """Raise DataError for examples that are not what a model takes, a label, perhaps a weight."""
    spec = data.examples.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3):
        received = f"{len(spec)} parts" if isinstance(spec, tuple) else type(spec).__name__
        raise DataError(
            f"Expected {name} as a DataSplit of (input, label) or (input, label, weight). "
            f"Received: {received}."
        )
    if not data.size:
        raise DataError(f"Expected {name} with examples. Received: none.")
    given, labels, *weights = spec
    for weight in weights:
        if not isinstance(weight, tf.TensorSpec) or weight.shape.rank or weight.dtype == tf.string:
            raise DataError(
                f"Expected one number as the weight of each example of {name}. Received: {weight}."
            )
    tasks = data.task.by_name
    several = bool(tasks) and isinstance(labels, dict) and labels.keys() == tasks.keys()
    told = list(labels.values()) if several else [labels]
    if bool(tasks) != several or not all(isinstance(one, tf.TensorSpec) for one in told):
        kind = f"a dictionary of {', '.join(tasks)}" if tasks else "one tensor"
        raise DataError(
            f"Expected {kind} as labels for each example of {name}. Received: a "
            f"{type(labels).__name__} of {len(tf.nest.flatten(labels))}. Keep one of them, or "
            "stack them in one tensor, with data.examples.map; several tasks at once have a "
            "reusekit.data.task.Task.joint."
        )
    if any(one.dtype == tf.string for one in told):
        raise DataError(f"Expected numbers as labels of {name}. Received: text.")
    wanted = {tensor.keras_tensor.name: tensor for tensor in graph.inputs}
    if isinstance(given, dict) and not isinstance(graph.input_structure, dict):
        optional = [
            t.keras_tensor.name for t in graph.inputs if keras_internals.is_optional(t.keras_tensor)
        ]
        missing = [one for one in wanted if one not in given and one not in optional]
        pairs = [(one, given.get(one), tensor) for one, tensor in wanted.items()]
    else:
        parts = tf.nest.flatten(given)
        missing = [] if isinstance(given, dict) else list(wanted)[len(parts) :]
        pairs = [(one, parts[0], tensor) for one, tensor in wanted.items() if len(wanted) == 1]
    if missing:
        raise DataError(
            f"Expected examples of {name} with the model's inputs {', '.join(wanted)}. Received: "
            f"none for {', '.join(missing)}."
        )
    for one, part, tensor in pairs:
        if not isinstance(part, tf.TensorSpec):
            continue
        shape, kind = tensor.shape[1:], "text" if tensor.dtype == "string" else "numbers"
        if (part.dtype == tf.string) != (kind == "text"):
            raise DataError(
                f"Expected examples of {name} of {kind}, which the model takes as {one!r}. "
                f"Received: {part.dtype.name}."
            )
        if padding is None and not fits(part.shape, shape):
            raise DataError(
                f"Expected examples of {name} of shape {tuple(shape)}, which the model takes as "
                f"{one!r}. Received: {tuple(part.shape)}."
                + " Load images with image_size= and channels=."
                * (len(shape) == 3)
            )


def fits(given: tf.TensorShape, wanted: Sequence[int | None]) -> bool:
    """Return whether a model takes an example; Keras adds and drops a last axis of 1."""
    if given.rank is None:
        return True
    sizes = list(given)
    if len(sizes) == len(wanted) - 1:
        sizes.append(1)
    elif len(sizes) == len(wanted) + 1 and sizes[-1] in (1, None):
        sizes.pop()
    return tf.TensorShape(sizes).is_compatible_with(wanted)


def _check_randomness(one: Frontier, view: int | None, data: DataSplit) -> None:
    """Refuse randomness that does not stop without a view, and a view without randomness."""
    refuse_stateful(one.graph, one.crossing)
    found, cut = random_before(one.graph, one.crossing), one.crossing[0].address
    always, unseeded = (", ".join(map(repr, each)) for each in (found.always, found.unseeded))
    if view is None and always:
        raise CacheError(
            f"Expected features that are the same each time. Received: a cut at {cut!r}, which "
            f"depends on {always}, random in inference as well. Cut before, or store a view."
        )
    if view is not None and unseeded:
        raise CacheError(
            "Expected a view to be made of random numbers that can be drawn again. Received: a "
            f"cut at {cut!r}, which depends on {unseeded}. Have them draw from a "
            "keras.random.SeedGenerator that the layer holds."
        )
    if view is not None and data.mixes_labels:
        raise CacheError(
            "Expected no view of examples that are mixed, each anew with another in every pass. "
            f"Received: view={view} of {data.augmentation}."
        )
    if view is not None and not found.augmenting and not always and data.augmentation is None:
        raise CacheError(
            "Expected a cut after layers that vary the data in training. Received: a cut at "
            f"{cut!r}, with none before it, so that every view is the same. Leave out view={view}."
        )


def _named(labels: Any, *weights: Any) -> dict[str, np.ndarray]:
    """Return labels and weights as arrays, by the names that the store knows them by."""
    by_task = labels.items() if isinstance(labels, dict) else ()
    named = {label_array(task): part for task, part in by_task} or {LABELS: labels}
    named |= dict(zip([WEIGHTS], weights, strict=False))
    return {name: np.asarray(part) for name, part in named.items()}
