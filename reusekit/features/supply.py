"""Does what a plan says: the one pass, derivations, views, and sources of batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import keras

from reusekit.data import DataSplit
from reusekit.features.augmented import augmented
from reusekit.features.bottoms import between, from_inputs, mask_of
from reusekit.features.entry import Entry
from reusekit.features.frontier import Frontier, frontier
from reusekit.features.key import LABELS, feature_keys
from reusekit.features.precision import in_compute_dtype
from reusekit.features.source import (
    ComputedSource,
    FeatureSource,
    InputSource,
    StoredSource,
    ViewsSource,
)
from reusekit.features.store import Batch, FeatureStore
from reusekit.features.stored import StoredFeatures, stored_features
from reusekit.graph import Graph

Name = tuple[Any, str | None]
"""A cut and how its features are pooled."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """The way to one cut's features, for training examples and for others.

    Attributes:
        frontier: The cut.
        train: "stored", "tap", "derive", "recompute" or "views".
        validation: The same, but for "views".
        derived: What they are derived from.
        source: What they are computed from for each batch; None for the inputs.
        varies: Whether training examples are augmented, or the features random in inference too.
        in_memory: Whether what is stored is read into memory.
    """

    frontier: Frontier
    train: str
    validation: str
    derived: Name | None
    source: Name | None
    varies: bool
    in_memory: bool


@dataclass(frozen=True, eq=False)
class Supply:
    """The features of a plan.

    Attributes:
        graph: The model.
        store: Where features are kept.
        recipes: For each cut and pooling how its features are come by, shallow to deep.
        options: dtype, padding, preprocessing and compute_dtype as `stored_features` takes them.
        batch_size: Examples a batch of a pass.
        seed: What augmentation follows from.
        views: How many augmented views are stored.
        inputs: How the model's inputs are come by: "stored", "held" in memory, or "read" anew in
            each pass.
        window: How many examples are shuffled at a time where they are read anew.
        entries: What was found in the store; it stays there for as long as this refers to it.
    """

    graph: Graph
    store: FeatureStore
    recipes: Mapping[Name, Recipe]
    options: Mapping[str, Any]
    batch_size: int
    seed: int
    views: int
    inputs: str
    window: int
    entries: Sequence[Entry] = field(repr=False)

    def obtain(self, split: DataSplit, training: bool) -> dict[Name, FeatureSource]:
        """Return a source of batches for each cut and pooling, storing features first."""
        how = {
            name: recipe.train if training else recipe.validation
            for name, recipe in self.recipes.items()
        }
        stored = self._tapped(split, [n for n in how if how[n] in ("stored", "tap")])
        for name in how:
            if how[name] == "derive":
                source = stored[self.recipes[name].derived]  # type: ignore[index]
                stored[name] = self._derived(split, name, source)
        sources: dict[Name, FeatureSource] = {
            name: StoredSource(how[name], features, self.recipes[name].in_memory)
            for name, features in stored.items()
        }
        sources |= self._viewed(split, [name for name in how if how[name] == "views"])
        inputs = None
        for name in how:
            if how[name] == "recompute":
                if inputs is None:
                    inputs = self._inputs(split)
                sources[name] = self._computed(self.recipes[name], training, sources, inputs)
        return {name: sources[name] for name in how}

    @cached_property
    def running(self) -> Graph:
        """The model in the precision that its bottom runs in."""
        compute_dtype = self.options["compute_dtype"]
        return in_compute_dtype(self.graph, compute_dtype) if compute_dtype else self.graph

    def _tapped(
        self, split: DataSplit, names: Sequence[Name], **view: Any
    ) -> dict[Name, StoredFeatures]:
        """Stored features; those that are missing are computed in one pass."""
        if not names:
            return {}
        features = stored_features(
            self.store,
            self.graph,
            [[t.address for t in self.recipes[name].frontier.asked] for name in names],
            split,
            pooling=[pooling for _, pooling in names],
            mask=self.recipes[names[0]].frontier.masked_by,
            carries_mask=True,
            batch_size=self.batch_size,
            **self.options,
            **view,
        )
        return dict(zip(names, features, strict=True))

    def _viewed(self, split: DataSplit, names: Sequence[Name]) -> dict[Name, FeatureSource]:
        views = [
            self._tapped(
                split,
                names,
                view=view,
                seed=self.seed,
                description=f"Extracting features, view {view + 1} of {self.views}",
            )
            for view in range(self.views)
        ]
        return {name: ViewsSource([view[name] for view in views]) for name in names}

    def _derived(self, split: DataSplit, name: Name, source: StoredFeatures) -> StoredFeatures:
        """Compute features from stored ones, and store them."""
        target = self.recipes[name].frontier
        (key,) = feature_keys([target], split, **self.options)

        def compute(start: int, stop: int) -> Iterator[Batch]:
            part = self._between(source.frontier, target)
            for first in range(start, stop, self.batch_size):
                rows = slice(first, min(first + self.batch_size, stop))
                read = {address: array[rows] for address, array in source.arrays.items()}
                fed = source.frontier.restore(read)
                crossing = keras.tree.flatten(fed)
                outputs = keras.tree.flatten(part.predict_on_batch(fed))
                made = dict(
                    zip((t.address for t in source.frontier.crossing), crossing, strict=True)
                )
                made |= read
                made |= dict(zip((t.address for t in target.crossing), outputs, strict=True))
                made[LABELS] = source.labels[rows]
                yield {name: keras.ops.convert_to_numpy(made[name]) for name in key.arrays}

        return StoredFeatures(target, self.store.get_or_compute(key, compute))

    def _between(self, source: Frontier, target: Frontier) -> keras.Model:
        ends = [_of(self.running, one) for one in (source, target)]
        return between(*ends)

    def _inputs(self, split: DataSplit) -> FeatureSource:
        if self.inputs != "stored":
            window = split.size if self.inputs == "held" else self.window
            return InputSource(split, self.options["padding"], window)
        (features,) = stored_features(
            self.store,
            self.graph,
            [[tensor.address for tensor in self.graph.inputs]],
            split,
            padding=self.options["padding"],
            preprocessing=self.options["preprocessing"],
            batch_size=self.batch_size,
            description="Storing the inputs",
        )
        return StoredSource("stored", features, in_memory=False)

    def _computed(
        self,
        recipe: Recipe,
        training: bool,
        sources: Mapping[Name, FeatureSource],
        inputs: FeatureSource,
    ) -> FeatureSource:
        structure = self.graph.input_structure if self.inputs == "stored" else None
        target = _of(self.running, recipe.frontier)
        if training and recipe.varies:
            model, reseed = augmented(
                self.running, list(target.crossing), target.pooling, mask_of(target)
            )
            return ComputedSource(inputs, model, target, structure, (reseed, self.seed))
        if recipe.source is None:
            return ComputedSource(inputs, from_inputs(target), target, structure)
        source = self.recipes[recipe.source].frontier
        return ComputedSource(
            sources[recipe.source], self._between(source, recipe.frontier), target
        )


def inputs_frontier(graph: Graph) -> Frontier:
    """Return the cut at the model's inputs."""
    return frontier(graph, list(graph.inputs))


def _of(graph: Graph, one: Frontier) -> Frontier:
    """Return a cut of one model as a cut of its copy."""
    if one.graph is graph:
        return one
    asked = [tensor.address for tensor in one.asked]
    return frontier(graph, asked, one.pooling, mask_of(one), one.carries_mask)
