"""The whole of a cut search: plan, features, ranking, trials, results, the best model."""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import keras
import keras_tuner
import numpy as np
import pandas as pd
import tensorflow as tf

from reusekit.arguments import AnyPath, checked, expanded
from reusekit.backbones import Backbone, sources
from reusekit.data import DataSplit
from reusekit.data.texts import names_of_texts, tokenized
from reusekit.errors import ConfigError, DataError
from reusekit.features import FeatureStore
from reusekit.features.frontiers import Features
from reusekit.features.key import tensor_digests
from reusekit.features.randomness import refuse_mixing
from reusekit.features.source import FeatureSource, input_source
from reusekit.features.stored import check_examples
from reusekit.graph import CutPoint, Graph, cut_points, read, resolve
from reusekit.graph.padding_mask import AUTO
from reusekit.planning import Extraction, Plan, Resources, Trials, obtain, plan
from reusekit.planning.planner import check_augmentation, check_backend
from reusekit.progress import counted
from reusekit.search.config import SearchConfig
from reusekit.search.default_cuts import feature_cuts
from reusekit.search.folder import alone
from reusekit.search.hypermodel import CutHyperModel, check_adaptations
from reusekit.search.objective import configured_objective
from reusekit.search.oracle import CutGridOracle, CutSweepOracle
from reusekit.search.ranking import RankCorrelation, rank_correlation, rank_cuts
from reusekit.search.results import SearchResult, TrialRecord
from reusekit.search.sizes import SizeCounter, Sizes, exceeded, measure_latency
from reusekit.search.space import SearchSpace, TrialSpec
from reusekit.search.tasks import rules_of
from reusekit.search.trial_data import ArrayFeatures, TrialData, collected
from reusekit.search.tuner import CutTuner
from reusekit.search.whole_model import whole_model
from reusekit.surgery import extract, prepend
from reusekit.training import fold_standardization
from reusekit.training.adaptation import merge_lora

_TOKENS = 64
"""Tokens of a text where its treatment says no length."""
_LOOKED_AT = 32
"""Examples that are looked at for the range of their pixels."""


class CutSearch:
    """Searches how deep to cut a pretrained model, and what to put on and train.

    The frozen part runs over the data once for all trials, as the plan says; trials that see the
    same examples are trained at the same time; and what is written down is enough to go on after a
    kill. `plan`, `ranking`, `space` and `tuner` are made when they are first asked for, and what
    they stand on with them.

    Args:
        backbone: A `Backbone`, a model with a functional graph, or one that was read already. It is
            left as it is.
        train: The examples to train on, augmented where they say so; see `DataSplit.augmented`.
            Texts become tokens where the `Backbone` has a tokenizer: as many as `treatment.length`
            says, or 64.
        validation: The examples by which trials are compared.
        space: The choices of trials; None for heads of the task on every clean cut at features: not
            in the softmax that a classifier ends in, nor in the head of a registered `Backbone`.
        config: All other settings.
        folder: Where trials and their state are kept. The same search goes on there where it was
            stopped; another one is refused.
        store: Where features are kept; None for `reusekit.features.default_path()`.

    Raises:
        ConfigError: No clean cut, no cut within the limits, or a bad argument.
        CacheError, DataError, AddressError: As planning and extracting raise them.
        ReusekitError: Every trial failed.

    Example:
        >>> import tempfile
        >>> import reusekit as rk
        >>> train = rk.data.load("sklearn_digits", "train[:60]",
        ...                      treatment=rk.data.Treatment(image_size=(32, 32)))
        >>> validation = rk.data.load("sklearn_digits", "validation[:40]",
        ...                           treatment=rk.data.Treatment(image_size=(32, 32)))
        >>> space = SearchSpace(["stem_out", "block7_out"], units=[0], dropout=[0.0],
        ...                     learning_rates=[0.01, 0.1])
        >>> folder = tempfile.mkdtemp()
        >>> search = CutSearch(rk.load_backbone("reusekit/glyphnet"), train, validation, space,
        ...                    SearchConfig(epochs=3), folder=f"{folder}/search",
        ...                    store=FeatureStore(f"{folder}/features"))
        >>> search.run().best.cut
        'block7_out'
        >>> len(search.results()), search.best_model().output_shape
        (4, (None, 10))
    """

    @checked(ConfigError)
    def __init__(
        self,
        backbone: keras.Model | Graph | Backbone,
        train: DataSplit,
        validation: DataSplit,
        space: SearchSpace | None = None,
        config: SearchConfig = SearchConfig(),
        folder: AnyPath = "search",
        store: FeatureStore | None = None,
    ) -> None:
        check_backend()
        model, old_head, self._tokenizer = backbone, None, None
        if isinstance(backbone, Backbone):
            model, old_head = backbone.model, backbone.head
            names = names_of_texts(train)
            if backbone.tokenizer and names and names == names_of_texts(validation):
                self._tokenizer = backbone.tokenizer(train.treatment.length or _TOKENS, names)
                train, validation = (tokenized(one, self._tokenizer) for one in (train, validation))
        self.graph = read(model, keep_masks=config.mask is not None)
        for name, split in (("train", train), ("validation", validation)):
            check_examples(self.graph, split, name, config.padding)
        if isinstance(backbone, Backbone):
            _check_range(backbone, train)
        if train.task != validation.task:
            raise ConfigError(
                "Expected training and validation examples of one task, with the same names in the "
                f"same order. Received: {reprlib.repr(train.task)} and "
                f"{reprlib.repr(validation.task)}."
            )
        if config.rank and train.task.parts:
            raise ConfigError(
                "Expected rank=None for several tasks at once, of which each would rank the cuts "
                f"in another order. Received: {config.rank!r}."
            )
        self.train, self.validation, self.config = train, validation, config
        self.folder, self.store = expanded(folder, ConfigError), store
        self._points = {
            point.at: point for point in cut_points(self.graph, max_width=None) if point.tensors
        }
        if space is None:
            cuts = _clean_cuts(self.graph, train.classes, old_head)
            space = SearchSpace(cuts=cuts, learning_rates=[1e-3, 1e-2, 1e-1])
        for at in (*space.cuts, *space.begins):
            resolve(self.graph, at)  # refuses what is no address
        self._bare = TrialData({}, {}, train.task, config.pooling, self.graph, mask=config.mask)
        check_adaptations(space, self._bare)
        refuse_mixing(self.graph, list(space.cuts))
        check_augmentation(train, validation, config.augmented_views)
        self._all_cuts = space
        self._rules = rules_of(train.task)
        self._objective = configured_objective(config, space, self._rules, train.mixes_labels)
        self._latencies: dict[str, float] = {}

    def measure_latencies(self) -> dict[str, float]:
        """Return seconds for one example up to each cut, measured at the first call.

        See `measure_latency` for the conditions. Results have them from then on.
        """
        if not self._latencies:
            cuts, config = list(self._all_cuts.cuts), self.config
            models = [extract(self.graph, at, config.pooling, config.mask) for at in cuts]
            self._latencies = dict(zip(cuts, measure_latency(models), strict=True))
        return self._latencies

    def _limited_latencies(self) -> dict[str, float]:
        return {} if self.config.limits.latency is None else self.measure_latencies()

    @cached_property
    def _allowed(self) -> SearchSpace:
        """The space without the cuts that exceed the limits."""
        space, counter = self._all_cuts, SizeCounter(self._bare)
        latencies, over = self._limited_latencies(), {}
        for at in space.cuts:
            found = exceeded(self.config.limits, counter.bottom(at), latencies.get(at))
            if found:
                over[at] = found
        cuts = [at for at in space.cuts if at not in over]
        if not cuts:
            at, why = next(iter(over.items()))
            raise ConfigError(f"No cut keeps within the limits. Of {at!r} the {why}.")
        return space.changed(cuts=cuts)

    @cached_property
    def plan(self) -> Plan | None:
        """The work computed once, stored and trained together; None for the plain way."""
        config = self.config
        expected = _expected_trials(self._allowed, self._bare, self._points, config)
        if config.plain:
            return None
        extraction = Extraction(
            dtype=config.dtype,
            padding=config.padding,
            preprocessing=config.preprocessing,
            compute_dtype=config.compute_dtype,
            mask=config.mask,
            seed=config.seed,
            augmented_views=config.augmented_views,
        )
        resources = Resources(disk=config.disk, memory=config.memory)
        splits = self.train, self.validation
        return plan(self.graph, expected, *splits, self._features, extraction, resources)

    @cached_property
    def _features(self) -> FeatureStore:
        return self.store or FeatureStore()

    def extract(self) -> TrialData:
        """Return features where trials begin, computed at the first call as the plan says.

        Raises:
            CacheError: They are not finite, or cannot be stored.
            DataError: Labels are no classes, or the data set has another size than it says.
        """
        return self._data

    @cached_property
    def _data(self) -> TrialData:
        train: Mapping[Features, FeatureSource]
        validation: Mapping[Features, FeatureSource]
        if self.plan is None:
            at: Features = (self.graph.inputs[0].address, None)
            train, validation = (
                {at: input_source(split, self.config.padding, split.size, training)}
                for split, training in ((self.train, True), (self.validation, False))
            )
        else:
            in_memory = {(f.at, f.pooling) for f in self.plan.features if f.in_memory}
            train, validation = (
                {one: _held(one, source, in_memory) for one, source in found.items()}
                for found in (
                    obtain(self.plan, self.graph, self._features, split, training)
                    for split, training in ((self.train, True), (self.validation, False))
                )
            )
        if self._all_cuts.heads is None:
            for name, held in (("train", train), ("validation", validation)):
                self._rules.targets(next(iter(held.values())).labels, name)
        return replace(
            self._bare,
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

    @cached_property
    def ranking(self) -> pd.DataFrame | None:
        """Every cut's score before training, best first; None without `rank`."""
        if self.config.rank is None:
            return None
        train, pooling = self.extract().train, _ranked_pooling(self.config)
        features = {at: collected(train[at, pooling]) for at in self._allowed.cuts}
        labels = next(iter(train.values())).labels
        if self._all_cuts.heads is None:
            labels = self._rules.targets(labels, "train")
        return rank_cuts(features, labels, self.config.rank)

    @cached_property
    def space(self) -> SearchSpace:
        """The space that is searched, without cuts beyond the limits or ranked too low."""
        if self.ranking is None:
            return self._allowed
        best = list(self.ranking.sort_values("rank")["cut"])[: self.config.best_cuts]
        return self._allowed.changed(cuts=[at for at in self._allowed.cuts if at in best])

    @cached_property
    def hypermodel(self) -> CutHyperModel:
        """The hypermodel that any tuner of keras-tuner can search."""
        return CutHyperModel(self.extract(), self.space, self.config)

    @cached_property
    def tuner(self) -> CutTuner:
        """The tuner, as far as the search has come."""
        return self._tuner()

    def _tuner(self, oracle: keras_tuner.Oracle | None = None, fresh: bool = False) -> CutTuner:
        together = {}
        if self.plan is not None:
            together = {(g.at, g.pooling, g.batch_size): g.together for g in self.plan.groups}
        hypermodel, oracle = self.hypermodel, oracle or self._default_oracle()
        with alone(self.folder):  # it tidies up the folder
            return CutTuner(
                hypermodel,
                oracle,
                self.folder,
                fresh=fresh,
                together=lambda features, batch_size: together.get((*features, batch_size), 1),
                latencies=self._limited_latencies(),
            )

    def _default_oracle(self) -> keras_tuner.Oracle:
        # 0 is no seed to it.
        common = {"objective": self._objective, "seed": self.config.seed + 1}
        if self.config.max_trials is None:
            return CutGridOracle(self.hypermodel.spec, **common)
        order = list(self.space.cuts)
        if self.ranking is not None:
            order = [at for at in self.ranking.sort_values("rank")["cut"] if at in order]
        return CutSweepOracle(order, self.config.max_trials, **common)

    @checked(ConfigError)
    def run(
        self,
        *,
        oracle: keras_tuner.Oracle | None = None,
        fresh: bool = False,
        report: Callable[[TrialRecord], None] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> SearchResult:
        """Run all trials that are not finished, and return what was found.

        Args:
            oracle: An oracle of keras-tuner to choose the trials; it brings its own objective and
                its own number of trials.
            fresh: Whether to discard what the folder holds.
            report: Called with the record of each trial when it is finished.
            progress: Called with a text after each epoch. Where neither is given, a bar is shown on
                a terminal.

        Raises:
            ConfigError: The folder holds another search, or one that runs at this moment.
            ReusekitError: Every trial failed; the first cause is named.
        """
        with alone(self.folder):
            if self.plan is not None:
                self.plan.save(self.folder / "plan.json")
            if fresh or oracle is not None:
                self.tuner = self._tuner(oracle, fresh)
            with _told(self.config.max_trials, report, progress) as told:
                self.tuner.search(*told)
        return self.result

    @property
    def result(self) -> SearchResult:
        """The results so far."""
        objective = self.tuner.oracle.objective
        return SearchResult(
            tuple(self.tuner.records),
            {at: self._points[at].depth for at in self._all_cuts.cuts},
            self._latencies,
            objective.name,
            objective.direction == "max",
        )

    def results(self) -> pd.DataFrame:
        """Return the trials as a table; see `SearchResult.to_frame`."""
        return self.result.to_frame()

    @checked(ConfigError)
    def pareto(self, cost: str = "parameters") -> pd.DataFrame:
        """Return the trials that no other beats in objective and cost."""
        if cost == "latency":
            self.measure_latencies()
        return self.result.pareto(cost)

    def rank_correlation(self) -> RankCorrelation:
        """Return how well the ranking foretold the best result of each cut.

        Raises:
            ConfigError: There is no ranking.
        """
        if self.ranking is None:
            raise ConfigError("There is no ranking: give rank='logme' or rank='ridge'.")
        sign = 1 if self.result.maximize else -1
        scores = dict(zip(self.ranking["cut"], self.ranking["score"], strict=True))
        cuts = self.result.cuts
        reached = [sign * cut.best.metrics[self.result.objective] for cut in cuts]
        return rank_correlation([scores[cut.at] for cut in cuts], reached)

    @checked(ConfigError)
    def best_model(
        self, position: int = 0, folded: bool = True, merged: bool = True
    ) -> keras.Model:
        """Return the whole model of a good trial: from the backbone's inputs to the head's outputs.

        Where the search was given texts and made tokens of them, it takes texts.

        Its weights are its own. The part that the trial froze is frozen; the model is compiled with
        the head's loss and metrics.

        Args:
            position: 0 for the best trial, 1 for the next, and so on; `keep` says how many there
                are.
            folded: Whether the features' mean and variance, which a head with `standardize` removes
                first, are folded into its first dense layer, equal up to rounding (about 6e-8).
                False keeps them, for training that goes on.
            merged: Whether LoRA is merged into the weights that it adds to, which is proved on one
                batch.

        Raises:
            ReusekitError: The weights of that trial were not kept.
            ConfigError: No such position; or LoRA cannot be kept, since the cut lies inside a
                nested model.
        """
        completed = self.result.completed
        if not 0 <= position < len(completed):
            raise ConfigError(
                f"Expected position from 0 to {len(completed) - 1}. Received: {position}."
            )
        spec = completed[position].spec
        whole = trained = self.tuner.trained(completed[position].number)
        if merged and spec.adaptation is not None:
            merge_lora(trained)
            spec = replace(spec, adaptation=None)
        if not self.config.plain:
            bare = replace(self._data, plain=True, _trunks={})
            whole = whole_model(spec, trained, self.hypermodel, bare)
        if folded:
            whole = fold_standardization(whole)
        if self._tokenizer is not None:
            whole = prepend(whole, self._tokenizer)
        if whole is not trained:
            whole.compile(**self.space.head(spec, self._data.rules).compile_args)
        return whole


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


def _clean_cuts(graph: Graph, classes: int, old_head: str | None) -> list[str]:
    found = list(feature_cuts(graph, classes, old_head))
    if not found:
        raise ConfigError(
            f"{graph.model.name!r} has no clean cut. Give a space with cuts of your own; "
            "rk.cut_points(model, max_width=None) lists every tensor."
        )
    return found


def _ranked_pooling(config: SearchConfig) -> str:
    """Return the pooling of the features that rank the cuts."""
    return config.pooling or "avg"


def _held(name: Features, source: FeatureSource, in_memory: set[Features]) -> FeatureSource:
    arrays = source.arrays() if name in in_memory else None
    if arrays is None or isinstance(arrays, tuple):
        return source
    return ArrayFeatures(arrays, source.labels, source.weights)


def _expected_trials(
    space: SearchSpace,
    data: TrialData,
    points: Mapping[str, CutPoint],
    config: SearchConfig,
) -> list[Trials]:
    """Return the trials that a search will come to, as far as a plan needs to know.

    Their number is spread evenly over the space. Where cuts are ranked, their features are wanted
    whether a trial begins there or not.

    Args:
        space: The choices of the trials.
        data: Knows the backbone and where trials begin; needs no features.
        points: The cut points of the backbone by address.
        config: The settings of the search.
    """
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
                size = replace(size, parameters=size.parameters // 4)
            for batch_size in space.batch_sizes:
                trained.setdefault((data.begin(spec), batch_size), []).append(size)
    cells = len(space.cuts) * len(space.parts("")) * len(space.batch_sizes)
    # The combinations there are beside cuts, trained parts and batch sizes.
    heads = len(space.heads) if space.heads else len(space.units) * len(space.dropout)
    combinations = heads * len(space.optimizers) * len(space.learning_rates or [None])
    total = config.max_trials or cells * combinations
    expected = [
        Trials(
            *features,
            count=max(1, round(total * len(sizes) / cells)),
            epochs=config.epochs,
            batch_size=batch_size,
            parameters=max(size.parameters for size in sizes)
            + _channels(points, features) * data.task.size,
            flops=max(size.flops for size in sizes),
        )
        for (features, batch_size), sizes in trained.items()
    ]
    there = {(one.at, one.pooling) for one in expected}
    ranked = [(at, _ranked_pooling(config)) for at in space.cuts] if config.rank else []
    return expected + [Trials(*one, epochs=1) for one in ranked if one not in there]


def _channels(points: Mapping[str, CutPoint], features: Features) -> int:
    return (features[0] in points and points[features[0]].shape[-1]) or 1


@contextmanager
def _told(
    trials: int | None,
    report: Callable[[TrialRecord], None] | None,
    progress: Callable[[str], None] | None,
) -> Iterator[Sequence[Callable[[Any], None]]]:
    """Yield the listener to the progress of a search: a bar where there is no other."""
    if report is not None or progress is not None:
        yield [one or (lambda told: None) for one in (report, progress)]
        return
    with counted("Trials", trials) as step:
        yield [
            lambda record: step(f"Trials (last: {record.cut}, {record.status})"),
            lambda text: step(f"Trials ({text})", 0),
        ]
