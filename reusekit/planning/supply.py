"""Sources of batches as a plan says: from the store, from one pass, or from the bottom."""

from collections.abc import Sequence

import keras

from reusekit.arguments import checked
from reusekit.data import DataSplit
from reusekit.errors import ConfigError
from reusekit.features.bottoms import in_compute_dtype
from reusekit.features.frontiers import Features, frontier
from reusekit.features.source import (
    ComputedSource,
    FeatureSource,
    StoredSource,
    ViewsSource,
    input_source,
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
    extraction = plan.extraction
    if training and split.augmentation is not None and not all(f.varies for f in plan.features):
        raise ConfigError(
            "Expected a plan made for augmented training examples. Received: one that stores what "
            f"is not augmented, and {split.augmentation}. Make the plan again, with these examples."
        )
    graph = read(model, keep_masks=extraction.mask is not None)
    planned = {(one.at, one.pooling): one for one in plan.features}
    how = {name: one.how if training else one.validation for name, one in planned.items()}

    def stored(ways: Sequence[str], view: int | None = None) -> dict[Features, StoredSource]:
        """Return what is stored; what is missing is computed in one pass."""
        names = [name for name in how if how[name] in ways]
        cuts, pooling = [at for at, _ in names], [each for _, each in names]
        if not names:
            return {}
        found = stored_features(
            store, graph, cuts, split, pooling=pooling, view=view, extraction=extraction
        )
        return dict(zip(names, found, strict=True))

    sources: dict[Features, FeatureSource] = {}
    for name, found in stored(("stored", "tap")).items():
        found.in_memory, sources[name] = planned[name].in_memory, found
    views = [stored(("views",), view) for view in range(extraction.augmented_views)]
    for name in views[0] if views else ():
        sources[name] = ViewsSource([view[name] for view in views])
    computed = [name for name in how if name not in sources]
    if computed:
        running = in_compute_dtype(graph, extraction.compute_dtype)
        window = split.size if plan.window is None else plan.window
        inputs = input_source(split, extraction.padding, window, training)
    for name in computed:
        mask = extraction.mask
        if running is not graph:  # a copy is not told what the model is
            mask = frontier(graph, *name, mask, carries_mask=True).pooled_under
        target = frontier(running, *name, mask, carries_mask=True)
        seed = extraction.seed if training and planned[name].varies else None
        sources[name] = ComputedSource(inputs, target, seed)
    return {name: sources[name] for name in how}
