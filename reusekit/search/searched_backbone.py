"""A backbone of a search: its graph, the examples as it takes them, its cuts and its features."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reusekit.backbones import Backbone, sources
from reusekit.data import DataSplit
from reusekit.data.texts import names_of_texts, tokenized
from reusekit.data.treatment import treatment_for
from reusekit.errors import ConfigError, DataError
from reusekit.exports import Exporter, Figures
from reusekit.features import FeatureStore
from reusekit.features.frontiers import Features
from reusekit.features.key import tensor_digests
from reusekit.features.randomness import refuse_mixing
from reusekit.features.source import FeatureSource, input_source
from reusekit.features.stored import check_examples
from reusekit.graph import Graph, ancestors, cut_points, read, resolve
from reusekit.graph.padding_mask import AUTO
from reusekit.planning import Extraction, Plan, Trials, obtain
from reusekit.planning.planner import Asked, check_augmentation
from reusekit.search.config import SearchConfig
from reusekit.search.default_cuts import feature_cuts
from reusekit.search.hypermodel import check_adaptations
from reusekit.search.sizes import SizeCounter, Sizes, exceeded
from reusekit.search.space import NamedCut, SearchSpace, Shape, TrialSpec
from reusekit.search.trial_data import ArrayFeatures, TrialData
from reusekit.surgery import extract, prepend
from reusekit.tasks import TaskRules, rules_of
from reusekit.training import attach
from reusekit.training.heads import Head

_TOKENS = 64
"""Tokens of a text where its treatment says no length."""
_SCOPE = re.compile(r"[a-zA-Z0-9.][\w.\\/>-]*", re.ASCII)
"""The names that TensorFlow takes for the outermost scope of a graph."""
_LOOKED_AT = 32
"""Examples that are looked at for the range of their pixels."""


class SearchedBackbone:
    """A backbone of a search: its graph, the examples as it takes them, its cuts and its features.

    Args:
        backbone: A `Backbone`, a model with a functional graph, or one that was read already.
        train: The examples to train on.
        validation: The examples by which trials are compared.
        config: The settings of the search.
        name: Its name where a search has several. Examples are then brought to its size.

    Attributes:
        graph: The backbone, read once.
        tokenizer: From texts to the tokens that it takes; None where it is given none.
        train: The examples to train on, as it takes them.
        validation: Those to compare on.
        name: Its name where a search has several.
        points: Its cut points by address.
        bare: What trials know of it, without any features.

    Raises:
        ConfigError, DataError: The examples are not what it takes.
    """

    def __init__(
        self,
        backbone: keras.Model | Graph | Backbone,
        train: DataSplit,
        validation: DataSplit,
        config: SearchConfig,
        name: str | None = None,
    ) -> None:
        model, self._old_head, self.tokenizer = backbone, None, None
        if isinstance(backbone, Backbone):
            model, self._old_head = backbone.model, backbone.head
            names = names_of_texts(train)
            if backbone.tokenizer and names and names == names_of_texts(validation):
                self.tokenizer = backbone.tokenizer(train.treatment.length or _TOKENS, names)
                train, validation = (tokenized(one, self.tokenizer) for one in (train, validation))
        self.graph = read(model, keep_masks=config.mask is not None)
        if name is not None and self.tokenizer is None:  # tokens are of the right length
            train, validation = (_as_taken(self.graph, one) for one in (train, validation))
        for part, split in (("train", train), ("validation", validation)):
            check_examples(self.graph, split, part, config.padding)
        if isinstance(backbone, Backbone):
            _check_range(backbone, train)
        check_augmentation(train, validation, config.augmented_views)
        self.train, self.validation, self.config, self.name = train, validation, config, name
        self.points = {
            point.at: point for point in cut_points(self.graph, max_width=None) if point.tensors
        }
        self.bare = TrialData({}, {}, train.task, config.pooling, self.graph, mask=config.mask)

    def clean_cuts(self) -> list[str]:
        """Return the clean cuts at features.

        Raises:
            ConfigError: There is none.
        """
        found = list(feature_cuts(self.graph, self.train.classes, self._old_head))
        if not found:
            raise ConfigError(
                f"Expected a backbone with a clean cut. Received: {self.graph.model.name!r}, which "
                "has none. Give a space with cuts of your own, of those that rk.cut_points(model, "
                "max_width=None) lists."
            )
        return found

    def check(self, space: SearchSpace) -> None:
        """Refuse choices that are no addresses, or that the model cannot have."""
        for at in (*space.cuts, *space.begins):
            resolve(self.graph, at)
        check_adaptations(space, self.bare)
        refuse_mixing(self.graph, list(space.cuts))
        _check_names(self.graph, list(space.cuts))

    def over(
        self,
        space: SearchSpace,
        latencies: Mapping[NamedCut, float],
        files: Mapping[Shape, Figures | str],
    ) -> dict[NamedCut, tuple[float, str]]:
        """Return the cuts of which every model exceeds the limits, or cannot be a file.

        Args:
            space: The choices of the search.
            latencies: Seconds up to each cut, where they are limited.
            files: Figures of models as files, or why there are none, where models are shipped.

        Returns:
            How many times the limit the smallest model is, and that in words.
        """
        counter, limits = SizeCounter(self.bare), self.config.limits
        found: dict[NamedCut, list[tuple[float, str] | None]] = {}
        for spec in space.shapes(self.name):
            file, sizes = files.get(spec.shape), counter.bottom(spec.cut)
            if isinstance(file, str):
                over: tuple[float, str] | None = (math.inf, file)
            else:
                over = exceeded(limits, sizes, latencies.get(spec.named_cut), file)
            found.setdefault(spec.named_cut, []).append(over)
        return {at: min(filter(None, those)) for at, those in found.items() if all(those)}

    def shapes(
        self, space: SearchSpace, rules: TaskRules
    ) -> Iterator[tuple[Shape, Any, Callable[[], Exporter]]]:
        """Yield each shape that whole models may have, and how to export one that is untrained.

        Args:
            space: The choices of the search.
            rules: The rules of the task, of which heads are.

        Yields:
            The shape, plain data that its figures as a file follow from, and what makes an
            exporter.
        """
        cuts = space.of(self.name).cuts
        digests = tensor_digests(self.graph, [self.graph.names[at] for at in cuts])
        for spec in space.shapes(self.name):
            head = space.head(spec, rules)
            told = [digests[self.graph.names[spec.cut]], repr(head), self.config.pooling]
            taken = str(self.train.examples.element_spec[0])
            follows_from = [*told, str(self.config.mask), self.tokenizer is not None, taken]
            yield spec.shape, follows_from, partial(self._untrained, spec, head)

    def _untrained(self, spec: TrialSpec, head: Head) -> Exporter:
        data = replace(self.bare, plain=True, _trunks={})
        bottom = data.trunk(spec)
        assert bottom is not None  # it begins at the inputs
        model = attach(bottom, head, data.head_mask(spec))
        return self.exporter(model if self.tokenizer is None else prepend(model, self.tokenizer))

    def exporter(self, model: keras.Model, folder: str | Path = ".") -> Exporter:
        """Return the exporter of a whole model, with the examples as that takes them."""
        train, validation = self.train, self.validation
        if self.tokenizer is not None:
            train, validation = train.raw or train, validation.raw or validation
        return Exporter(model, validation, train, folder)

    def bottoms(self, space: SearchSpace) -> dict[str, keras.Model]:
        """Return the model up to each cut."""
        config = self.config
        return {at: extract(self.graph, at, config.pooling, config.mask) for at in space.cuts}

    def asked(self, space: SearchSpace, share: float = 1) -> Asked:
        """Return the work to plan for.

        Args:
            space: Its choices.
            share: The share of all trials that are its own.
        """
        config = self.config
        extraction = Extraction(
            dtype=config.dtype,
            padding=config.padding,
            preprocessing=config.preprocessing,
            compute_dtype=config.compute_dtype,
            mask=config.mask,
            seed=config.seed,
            augmented_views=config.augmented_views,
        )
        trials = self._expected_trials(space, share)
        return Asked(self.graph, trials, self.train, self.validation, extraction)

    def _expected_trials(self, space: SearchSpace, share: float) -> list[Trials]:
        """Return the trials that a search will come to, as far as a plan needs to know.

        Their number is spread evenly over the space. Where cuts are ranked, their features are
        wanted whether a trial begins there or not.
        """
        data, config = self.bare, self.config
        counter = SizeCounter(data)
        trained: dict[tuple[Features, int], list[Sizes]] = {}
        for cut in space.cuts:
            for up_to, adaptation in space.parts(cut):
                spec = data.placed(TrialSpec(cut, up_to, adaptation=adaptation))
                size = Sizes()
                if spec.trains_backbone:
                    size = counter.bottom(cut) - counter.bottom(spec.frozen_up_to)
                if spec.adaptation is not None:
                    # Weights alone: without gradients and what an optimizer keeps of each.
                    size = replace(size, parameters=size.parameters // 4, flops=size.flops * 2 // 3)
                for batch_size in space.batch_sizes:
                    trained.setdefault((data.begin(spec), batch_size), []).append(size)
        cells = cells_of(space)
        # The combinations there are beside cuts, trained parts and batch sizes.
        heads = list(space.heads.values()) if space.heads else []
        hidden = [getattr(head, "units", 0) for head in heads] or list(space.units)
        combinations = len(heads) or len(space.units) * len(space.dropout)
        combinations *= len(space.optimizers) * len(space.learning_rates or [None])
        total = config.max_trials * share if config.max_trials else cells * combinations
        expected = [
            Trials(
                *features,
                count=max(1, round(total * len(sizes) / cells)),
                epochs=config.epochs,
                batch_size=batch_size,
                parameters=max(size.parameters for size in sizes)
                + self._head_parameters(features, hidden),
                flops=max(size.flops for size in sizes),
            )
            for (features, batch_size), sizes in trained.items()
        ]
        there = {(one.at, one.pooling) for one in expected}
        wanted = config.rank not in (None, "size")
        ranked = [(at, ranked_pooling(config)) for at in space.cuts] if wanted else []
        return expected + [Trials(*one, epochs=1) for one in ranked if one not in there]

    def _head_parameters(self, features: Features, hidden: Sequence[Any]) -> int:
        """Return the mean number of weights of heads, given the widths of their hidden layers."""
        points, size = self.points, self.bare.task.size
        channels = (features[0] in points and points[features[0]].shape[-1]) or 1
        weights = 0
        for units in hidden:
            between = [units] if isinstance(units, int) else units
            widths = [channels, *(int(one) for one in between if one), size]
            weights += sum(a * b for a, b in pairwise(widths))
        return weights // len(hidden)

    def sources(
        self, plan: Plan | None, store: FeatureStore | None, training: bool
    ) -> Mapping[Features, FeatureSource]:
        """Return features where trials begin, computed as a plan says.

        Args:
            plan: The plan; None for the plain way.
            store: Where features are kept; None for the plain way.
            training: Whether of the training examples, or of those to compare on.

        Raises:
            CacheError: They are not finite, or cannot be stored.
            DataError: The data set has another size than it says.
        """
        split = self.train if training else self.validation
        if plan is None or store is None:
            at: Features = (self.graph.inputs[0].address, None)
            return {at: input_source(split, self.config.padding, split.size, training)}
        in_memory = {(one.at, one.pooling) for one in plan.features if one.in_memory}
        found = obtain(plan, self.graph, store, split, training)
        return {one: _held(one, source, in_memory) for one, source in found.items()}

    def data(
        self,
        train: Mapping[Features, FeatureSource],
        validation: Mapping[Features, FeatureSource],
        own_heads: bool,
    ) -> TrialData:
        """Return features as trials take them.

        Args:
            train: Those of the training examples.
            validation: Those of the examples to compare on.
            own_heads: Whether heads are not those of the task, so that labels may be anything.

        Raises:
            DataError: Labels are no classes.
        """
        if not own_heads:
            rules = rules_of(self.train.task)
            for name, held in (("train", train), ("validation", validation)):
                rules.targets(next(iter(held.values())).labels, name)
        return replace(
            self.bare,
            train=train,
            validation=validation,
            plain=self.config.plain,
            identity=self._identity(),
        )

    def _identity(self) -> dict[str, Any]:
        """Return the facts that a resumed search shares with the one before, beside its choices."""
        digests, config = tensor_digests(self.graph, self.graph.outputs), self.config
        stored = ("dtype", "padding", "preprocessing", "compute_dtype")
        said = {name: getattr(config, name) for name in stored}
        augmentation = self.train.augmentation
        return {
            "model": sorted(digests.values()),
            **{
                name: [split.name, split.split, split.fingerprint]
                for name, split in (("train", self.train), ("validation", self.validation))
            },
            "pooling": config.pooling,
            **({} if config.mask == AUTO else {"mask": str(config.mask)}),
            "stored": {name: str(value) for name, value in said.items() if value},
            "augmented_views": config.augmented_views,
            **({} if augmentation is None else {"augment": augmentation.digest}),
            "plain": config.plain,
        }


def cells_of(space: SearchSpace) -> int:
    """Return the combinations of cut, trained part and batch size that a space has."""
    return len(space.cuts) * len(space.parts("")) * len(space.batch_sizes)


def ranked_pooling(config: SearchConfig) -> str:
    """Return the pooling of the features that rank the cuts."""
    return config.pooling or "avg"


def _check_names(graph: Graph, at: Sequence[str]) -> None:
    """Refuse names of a model and its layers that TensorFlow takes for no scope of a graph.

    Raises:
        ConfigError: One of those that are run has a space, for instance.
    """
    calls = ancestors(graph, resolve(graph, at))
    layers = {call.operation.name for call in calls if isinstance(call.operation, keras.Layer)}
    scopes = {graph.model.name: graph.model.name} | {name: f"x/{name}" for name in sorted(layers)}
    for name, scope in scopes.items():
        if not _SCOPE.fullmatch(scope):
            valid = re.sub(r"[^a-zA-Z0-9.]+", "_", name).strip("_") or "renamed"
            raise ConfigError(
                "Expected names of a model and its layers of letters from a to z, digits, and _ . "
                "- or / (the model's not beginning with _), since TensorFlow takes no others. "
                f"Received: {name!r}. Set its name to {valid!r}."
            )


def _as_taken(graph: Graph, split: DataSplit) -> DataSplit:
    """Return the examples in the size that a model of one input takes, where they have another."""
    spec = split.examples.element_spec[0]
    if len(graph.inputs) != 1 or not isinstance(spec, tf.TensorSpec) or split.reopened is None:
        return split
    shape = tuple(graph.model.inputs[0].shape[1:])
    if tuple(spec.shape) == shape:
        return split
    wanted = treatment_for(shape)
    if len(shape) == 3 and None in shape[:2]:
        del wanted["image_size"]
    if wanted.get("channels") not in (None, 1, 3):
        return split
    return split.treated(split.treatment.changed(**wanted))


def _check_range(backbone: Backbone, data: DataSplit) -> None:
    """Refuse pixels in memory of another range than a pretrained model's preprocessing takes."""
    spec = data.examples.element_spec[0]
    own = backbone.preprocessing is not None or backbone.source in sources()
    if data.origin or backbone.weights is None or not own:
        return
    if not isinstance(spec, tf.TensorSpec) or spec.shape.rank != 3:
        return
    pixels = np.asarray(next(iter(data.examples.batch(_LOOKED_AT)))[0])
    low, high = pixels.min(), pixels.max()
    if low < 0 or not 1 < high <= 255:
        raise DataError(
            f"Expected pixels from 0 to 255, since {backbone.name} scales them itself. Received: "
            f"from {low:g} to {high:g} in the first {len(pixels)} examples of train."
        )


def _held(name: Features, source: FeatureSource, in_memory: set[Features]) -> FeatureSource:
    arrays = source.arrays() if name in in_memory else None
    if arrays is None or isinstance(arrays, tuple):
        return source
    return ArrayFeatures(arrays, source.labels, source.weights)
