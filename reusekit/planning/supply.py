"""Sources of batches as a plan says: from the store, from one pass, or from the bottom."""

from collections.abc import Sequence
from typing import Any

import keras

from reusekit.arguments import checked
from reusekit.data import DataSplit
from reusekit.errors import ConfigError
from reusekit.features.augmented import augmented
from reusekit.features.bottoms import from_inputs, in_compute_dtype, mask_of
from reusekit.features.frontiers import Features, Frontier, frontier
from reusekit.features.source import (
    ComputedSource,
    FeatureSource,
    InputSource,
    StoredSource,
    ViewsSource,
)
from reusekit.features.store import FeatureStore
from reusekit.features.stored import stored_features
from reusekit.graph import Graph, read
from reusekit.planning.planned import Plan


@checked(ConfigError)
def obtain(
    plan: Plan,
    model: keras.Model | Graph,
    store: FeatureStore,
    split: DataSplit,
    training: bool = False,
) -> dict[Features, FeatureSource]:
    """Return a source of batches for each cut and pooling of a plan; stores what it says first.

    Args:
        plan: What `rk.plan` has made, or `Plan.load` has read.
        model: The backbone that it was made for.
        store: Where features are kept.
        split: The examples: those that the plan was made for, or others.
        training: Whether they are trained on; only then are they augmented.

    Raises:
        CacheError, DataError: As `stored_features` does.
        AddressError: The model has no such cut.

    Example:
        >>> import tempfile
        >>> import reusekit as rk
        >>> from reusekit.planning import Trials
        >>> data = rk.data.load("sklearn_digits", "test[:20]",
        ...                     treatment=rk.data.Treatment(image_size=(32, 32)))
        >>> model = rk.load_backbone("reusekit/glyphnet").model
        >>> store = FeatureStore(tempfile.mkdtemp())
        >>> made = rk.plan(model, [Trials("block7_out", "avg")], data, data, store)
        >>> obtain(made, model, store, data)["block7_out", "avg"].arrays().shape
        (20, 64)
    """
    graph = read(model, keep_masks=plan.extraction.mask is not None)
    how = {(one.at, one.pooling): one.how if training else one.validation for one in plan.features}
    there = [name for name in how if how[name] in ("stored", "tap")]
    stored = _stored(plan, graph, store, split, there)
    sources: dict[Features, FeatureSource] = {}
    views = _views(plan, graph, store, split, [name for name in how if how[name] == "views"])
    inputs, running = None, graph
    for one in plan.features:
        name = (one.at, one.pooling)
        if name in stored:
            found = stored[name]
            sources[name] = StoredSource(found.frontier, found.entry, how[name], one.in_memory)
        elif name in views:
            sources[name] = views[name]
        else:
            if inputs is None:
                window = plan.extraction.window
                window = split.size if window is None else window
                inputs = InputSource(split, plan.extraction.padding, window)
                if plan.extraction.compute_dtype is not None:
                    running = in_compute_dtype(graph, plan.extraction.compute_dtype)
            target = frontier(graph, *name, plan.extraction.mask, carries_mask=True)
            if running is not graph:
                target = frontier(running, *name, mask_of(target), carries_mask=True)
            seed = plan.extraction.seed if training and one.varies else None
            sources[name] = _computed(target, inputs, seed)
    return sources


def _stored(
    plan: Plan,
    graph: Graph,
    store: FeatureStore,
    split: DataSplit,
    names: Sequence[Features],
    **view: Any,
) -> dict[Features, StoredSource]:
    """Return what is stored; what is missing is computed in one pass."""
    if not names:
        return {}
    features = stored_features(
        store,
        graph,
        [at for at, _ in names],
        split,
        pooling=[pooling for _, pooling in names],
        mask=plan.extraction.mask,
        carries_mask=True,
        batch_size=plan.extraction.batch_size,
        **plan.extraction.naming,
        **view,
    )
    return dict(zip(names, features, strict=True))


def _views(
    plan: Plan, graph: Graph, store: FeatureStore, split: DataSplit, names: Sequence[Features]
) -> dict[Features, FeatureSource]:
    seed, count = plan.extraction.seed, plan.extraction.views
    views = []
    for view in range(count):
        about = f"Extracting features, view {view + 1} of {count}"
        views.append(
            _stored(plan, graph, store, split, names, view=view, seed=seed, description=about)
        )
    return {name: ViewsSource([view[name] for view in views]) for name in names}


def _computed(target: Frontier, inputs: FeatureSource, seed: int | None) -> FeatureSource:
    """Return a source that runs the bottom for every batch; with a seed it augments."""
    if seed is None:
        return ComputedSource(inputs, from_inputs(target), target)
    wanted = list(target.crossing)
    model, reseed = augmented(target.graph, wanted, target.pooling, mask_of(target))
    return ComputedSource(inputs, model, target, random=(reseed, seed))
