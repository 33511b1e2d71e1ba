"""The whole of a cut search: plan, features, ranking, trials, results, the best model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import keras
import keras_tuner
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import AnyPath, Seed, checked, expanded
from reusekit.backbones import Backbone
from reusekit.data import DataSplit
from reusekit.errors import ConfigError, CopyError, DataError, nearest
from reusekit.features import FeatureStore, Padding
from reusekit.features.key import tensor_digests
from reusekit.features.randomness import refuse_mixing
from reusekit.features.source import FeatureSource, InputSource
from reusekit.features.stored import check_examples
from reusekit.graph import Graph, cut_points, read, resolve
from reusekit.graph.addresses import At
from reusekit.graph.padding_mask import AUTO
from reusekit.planning import Plan, obtain, plan
from reusekit.planning.planner import check_backend
from reusekit.progress import counted
from reusekit.search.default_cuts import feature_cuts
from reusekit.search.expected import expected_trials
from reusekit.search.hypermodel import CutHyperModel
from reusekit.search.limits import Limits, measure_latency
from reusekit.search.oracle import CutGridOracle, CutSweepOracle
from reusekit.search.progress_file import os_errors_explained
from reusekit.search.ranking import RankCorrelation, rank_correlation, rank_cuts
from reusekit.search.results import SearchResult, TrialRecord
from reusekit.search.sizes import SizeCounter
from reusekit.search.space import SearchSpace
from reusekit.search.spec import TrialSpec
from reusekit.search.trial_data import ArrayFeatures, Place, TrialData, collected
from reusekit.search.tuner import CutTuner
from reusekit.surgery import clone, extract
from reusekit.surgery.certificate import prove_copy
from reusekit.training import attach, fold_standardization

Weights = Mapping[str, Sequence[keras.Variable]]
"""The weights of a model's calls, by address."""


class CutSearch:
    """Searches how deep to cut a pretrained model, and what to put on and train.

    The frozen part runs over the data once for all trials, as the plan says; trials that see the
    same examples are trained at the same time; and what is written down is enough to go on after a
    kill. Each step is done when it is first asked for: `plan`, `ranking`, `run`, `result`.

    Args:
        model: The backbone: a `Backbone`, a model with a functional graph, or one that was read
            already. It is left as it is.
        train: The examples to train on.
        validation: The examples by which trials are compared.
        space: What trials may vary; None for classifiers on every clean cut at features: not in the
            softmax that a classifier ends in, nor in the head of a registered `Backbone`.
        directory: Where trials and their state are kept. The same search goes on there where it was
            stopped; another one is refused.
        store: Where features are kept; None for `reusekit.features.default_path()`.
        objective: The metric by which trials are compared and stopped: "val_accuracy", "val_loss",
            another metric of the heads, or a `keras_tuner.Objective`.
        limits: What the whole model may cost. Cuts that exceed it are left out.
        max_trials: How many trials; None for every combination of the choices.
        oracle: An oracle of keras-tuner to choose the trials instead.
        epochs: At most that many passes over the training examples a trial.
        patience: Stop a trial after that many epochs without a better value of the objective; the
            best epoch is kept.
        seed: Decides the trials, their initial weights and the order of batches.
        pooling: How features are pooled for the heads: "avg", "max", "token" (the first of a
            sequence), or None to leave it to the heads.
        mask: Which positions pooling passes over, as for `rk.extract`.
        rank: "logme" or "ridge" scores every cut before any training. The first trials go from the
            best score to the worst.
        best_cuts: With `rank`, how many of the best cuts are searched; None for all.
        keep: The weights of how many trials are kept.
        ask: How many trials the oracle is asked for at a time; see `CutTuner`.
        plain: Run the ordinary way, for comparison: each trial alone, the frozen bottom run for
            every batch of every epoch. Needs no store.
        fresh: Discard what the directory holds.
        disk, memory, augmented_views, dtype, padding, preprocessing, compute_dtype: As
            `reusekit.plan` takes them.
        report: Called with the record of each trial when it is finished.
        progress: Called with a text after each epoch. Where neither is given, `run` shows a bar on
            a terminal.

    Attributes:
        max_trials: As it was given.
        report, progress: As they were given; others may be set until `run` is called.

    Raises:
        ConfigError: No clean cut, no cut within the limits, or a bad argument.
        CacheError, DataError, AddressError: As planning and extracting raise them.
        ReusekitError: Every trial failed.

    Example:
        >>> import tempfile
        >>> import reusekit as rk
        >>> from reusekit.data import load_split
        >>> train = load_split("sklearn_digits", "train[:60]", image_size=(32, 32))
        >>> validation = load_split("sklearn_digits", "validation[:40]", image_size=(32, 32))
        >>> space = SearchSpace(["stem_out", "block7_out"], units=[0], dropout=[0.0],
        ...                     learning_rates=[0.01, 0.1])
        >>> folder = tempfile.mkdtemp()
        >>> search = CutSearch(rk.load_backbone("reusekit/glyphnet").model, train, validation,
        ...                    space, f"{folder}/search", FeatureStore(f"{folder}/features"),
        ...                    epochs=3)
        >>> search.run().best.cut
        'block7_out'
        >>> len(search.results()), search.best_model().output_shape
        (4, (None, 10))
    """

    @checked(ConfigError)
    def __init__(
        self,
        model: keras.Model | Graph | Backbone,
        train: DataSplit,
        validation: DataSplit,
        space: SearchSpace | None = None,
        directory: AnyPath = "search",
        store: FeatureStore | None = None,
        *,
        objective: str | keras_tuner.Objective = "val_accuracy",
        limits: Limits = Limits(),  # noqa: B008  (immutable)
        max_trials: PositiveInt | None = None,
        oracle: keras_tuner.Oracle | None = None,
        epochs: PositiveInt = 60,
        patience: NonNegativeInt = 10,
        seed: Seed = 0,
        pooling: str | None = "avg",
        mask: At = AUTO,
        rank: Literal["logme", "ridge"] | None = None,
        best_cuts: PositiveInt | None = None,
        keep: NonNegativeInt = 1,
        ask: PositiveInt | None = None,
        plain: bool = False,
        fresh: bool = False,
        disk: NonNegativeInt | None = None,
        memory: NonNegativeInt | None = None,
        augmented_views: NonNegativeInt = 0,
        dtype: str | None = None,
        padding: Padding | None = None,
        preprocessing: Any = None,
        compute_dtype: str | None = None,
        report: Callable[[TrialRecord], None] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        check_backend()
        self._old_head = None
        if isinstance(model, Backbone):
            model, self._old_head = model.model, model.head
        self.graph = read(model, keep_masks=mask is not None)
        for name, split in (("train", train), ("validation", validation)):
            check_examples(self.graph, split, name, padding)
        self.train, self.validation, self.mask = train, validation, mask
        self.folder, self.plain = expanded(directory, ConfigError), plain
        self.pooling, self.seed, self.limits = pooling, seed, limits
        self._points = {
            point.at: point for point in cut_points(self.graph, max_width=None) if point.tensors
        }
        self._all_cuts = space or SearchSpace(self._clean_cuts(), learning_rates=[1e-3, 1e-2, 1e-1])
        for at in (*self._all_cuts.cuts, *self._all_cuts.freeze):
            resolve(self.graph, at)  # refuses what is no address
        refuse_mixing(self.graph, list(self._all_cuts.cuts))
        self._store, self.max_trials, self._oracle = store, max_trials, oracle
        self._objective = _objective(objective, self._all_cuts, train.classes)
        self._rank, self._best_cuts = rank, best_cuts
        self._training = {"epochs": epochs, "patience": patience, "seed": seed}
        self._stored: dict[str, Any] = {
            "dtype": dtype,
            "padding": padding,
            "preprocessing": preprocessing,
            "compute_dtype": compute_dtype,
        }
        self._budgets: dict[str, Any] = {
            "disk": disk,
            "memory": memory,
            "augmented_views": augmented_views,
        }
        self._tuning: dict[str, Any] = {"fresh": fresh, "keep": keep, "ask": ask}
        self.report, self.progress = report, progress
        if best_cuts is not None and rank is None:
            raise ConfigError("best_cuts needs a ranking: give rank='logme' or rank='ridge'.")
        if plain and rank is not None:
            raise ConfigError(
                f"Expected no ranking with plain=True, which has no features to rank cuts by. "
                f"Received: rank={rank!r}."
            )

    def _clean_cuts(self) -> list[str]:
        found = list(feature_cuts(self.graph, self.train.classes, self._old_head))
        if not found:
            raise ConfigError(
                f"{self.graph.model.name!r} has no clean cut. Give a space with cuts of your own; "
                "rk.cut_points(model, max_width=None) lists every tensor."
            )
        return found

    @cached_property
    def latencies(self) -> dict[str, float]:
        """Seconds for one example up to each cut; measured where there is a limit, else on demand.

        See `measure_latency` for the conditions.
        """
        cuts = list(self._all_cuts.cuts)
        models = [extract(self.graph, at, self.pooling, self.mask) for at in cuts]
        return dict(zip(cuts, measure_latency(models), strict=True))

    @cached_property
    def _allowed(self) -> SearchSpace:
        """The space without the cuts that exceed the limits."""
        space, counter = self._all_cuts, SizeCounter(self._bare)
        latencies = self.latencies if self.limits.latency is not None else {}
        over: dict[str, str] = {}
        for at in space.cuts:
            exceeded = self.limits.exceeded(counter.bottom(at), latencies.get(at))
            if exceeded:
                over[at] = exceeded
        cuts = [at for at in space.cuts if at not in over]
        if not cuts:
            at, why = next(iter(over.items()))
            raise ConfigError(f"No cut keeps within the limits. Of {at!r} the {why}.")
        return replace(space, cuts=cuts)

    @cached_property
    def _bare(self) -> TrialData:
        return TrialData({}, {}, self.train.classes, self.pooling, self.graph, mask=self.mask)

    @cached_property
    def plan(self) -> Plan | None:
        """The work computed once, stored and trained together; None for the plain way."""
        ranked = [(at, self._pooled) for at in self._allowed.cuts] if self._rank else []
        expected = expected_trials(
            self._allowed,
            self._bare,
            self._points,
            self._training["epochs"],
            self.max_trials,
            ranked,
        )
        if self.plain:
            return None
        return plan(
            self.graph,
            expected,
            self.train,
            self.validation,
            self._features,
            seed=self.seed,
            mask=self.mask,
            **self._stored,
            **self._budgets,
        )

    @cached_property
    def _features(self) -> FeatureStore:
        return self._store or FeatureStore()

    @property
    def _pooled(self) -> str:
        """The pooling of the features that rank the cuts."""
        return self.pooling or "avg"

    @cached_property
    def data(self) -> TrialData:
        """The features of training and validation examples, where trials begin."""
        train: Mapping[Place, FeatureSource]
        validation: Mapping[Place, FeatureSource]
        if self.plain:
            at: Place = (self.graph.inputs[0].address, None)
            train, validation = (
                {at: InputSource(split, self._stored["padding"], split.size)}
                for split in (self.train, self.validation)
            )
        else:
            assert self.plan is not None  # it is for the plain way alone
            in_memory = {(f.at, f.pooling) for f in self.plan.features if f.in_memory}
            train, validation = (
                {place: _held(place, source, in_memory) for place, source in found.items()}
                for found in (
                    obtain(self.plan, self.graph, self._features, split, training)
                    for split, training in ((self.train, True), (self.validation, False))
                )
            )
        if self._all_cuts.heads is None:
            for name, held in (("train", train), ("validation", validation)):
                _check_classes(next(iter(held.values())).labels, name, self.train.classes)
        return replace(
            self._bare,
            train=train,
            validation=validation,
            plain=self.plain,
            identity=self._identity,
        )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """The facts a resumed search must share with the one before, beside its choices."""
        digests = tensor_digests(self.graph, self.graph.outputs)
        return {
            "model": sorted(digests.values()),
            **{
                name: [split.name, split.split, split.fingerprint]
                for name, split in (("train", self.train), ("validation", self.validation))
            },
            "pooling": self.pooling,
            **({} if self.mask == AUTO else {"mask": str(self.mask)}),
            "stored": {name: str(value) for name, value in self._stored.items() if value},
            "augmented_views": self._budgets["augmented_views"],
            "plain": self.plain,
        }

    @cached_property
    def ranking(self) -> pd.DataFrame | None:
        """Every cut's score before training, best first; None without `rank`."""
        if self._rank is None:
            return None
        features = {at: collected(self.data.train[at, self._pooled]) for at in self._allowed.cuts}
        labels = next(iter(self.data.train.values())).labels
        return rank_cuts(features, labels, self._rank)

    @cached_property
    def space(self) -> SearchSpace:
        """The space that is searched, without cuts beyond the limits or ranked too low."""
        if self.ranking is None:
            return self._allowed
        best = list(self.ranking.sort_values("rank")["cut"])[: self._best_cuts]
        return replace(self._allowed, cuts=[at for at in self._allowed.cuts if at in best])

    @cached_property
    def hypermodel(self) -> CutHyperModel:
        """The hypermodel that any tuner of keras-tuner can search."""
        return CutHyperModel(self.data, self.space, **self._training, objective=self._objective)

    @cached_property
    def tuner(self) -> CutTuner:
        """The tuner, as far as the search has come."""
        together = {}
        if self.plan is not None:
            together = {(g.at, g.pooling, g.batch_size): g.together for g in self.plan.groups}
        hypermodel, oracle = self.hypermodel, self._oracle or self._default_oracle()
        with self._alone():  # it tidies up the folder
            return CutTuner(
                hypermodel,
                oracle,
                self.folder,
                together=lambda place, batch_size: together.get((*place, batch_size), 1),
                limits=self.limits,
                latencies=self.latencies if self.limits.latency is not None else None,
                report=lambda record: self.report and self.report(record),
                progress=lambda text: self.progress and self.progress(text),
                **self._tuning,
            )

    def _default_oracle(self) -> keras_tuner.Oracle:
        common = {"objective": self._objective, "seed": self.seed + 1}  # 0 is no seed to it
        if self.max_trials is None:
            return CutGridOracle(self.hypermodel.spec, **common)
        order = list(self.space.cuts)
        if self.ranking is not None:
            order = [at for at in self.ranking.sort_values("rank")["cut"] if at in order]
        return CutSweepOracle(order, self.max_trials, **common)

    def run(self) -> SearchResult:
        """Run all trials that are not finished, and return what was found.

        Raises:
            ConfigError: The directory holds another search, or one that runs at this moment.
            ReusekitError: Every trial failed; the first cause is named.
        """
        with self._alone():
            if self.plan is not None:
                self.plan.save(self.folder / "plan.json")
            with self._shown():
                self.tuner.search()
        return self.result

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Show how far the search is where nobody else is told of it."""
        if self.report is not None or self.progress is not None:
            yield
            return
        with counted("Trials", self.max_trials) as step:
            self.report = lambda record: step(f"Trials (last: {record.cut}, {record.status})")
            self.progress = lambda text: step(f"Trials ({text})", 0)
            try:
                yield
            finally:
                self.report = self.progress = None

    @cached_property
    def _lock(self) -> FileLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The folder {self.folder} of a search cannot be made: {error.strerror}. Choose "
                "another one."
            ) from error
        return FileLock(self.folder / "running.lock", blocking=False)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes off the folder."""
        with os_errors_explained(self.folder):
            try:
                self._lock.acquire()
            except Timeout as error:
                raise ConfigError(
                    f"A search in {self.folder} is running. Wait for it, or choose another folder."
                ) from error
            try:
                yield
            finally:
                self._lock.release()

    @property
    def result(self) -> SearchResult:
        """The results so far."""
        objective = self.tuner.oracle.objective
        depths = {at: self._points[at].depth for at in self._all_cuts.cuts}
        return SearchResult(
            tuple(self.tuner.records),
            depths,
            self.__dict__.get("latencies", {}),  # where they were asked for
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
            _ = self.latencies
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
    def best_model(self, place: int = 0, folded: bool = True) -> keras.Model:
        """Return the whole model of a good trial: from the backbone's inputs to the head's outputs.

        Its weights are its own. What the trial froze is frozen; it is compiled with the head's loss
        and metrics.

        Args:
            place: 0 for the best trial, 1 for the next, and so on; `keep` says how many there are.
            folded: Whether the features' mean and variance, which a head with `standardize` removes
                first, are folded into its first dense layer, equal up to rounding (about 6e-8).
                False keeps them, for training that goes on.

        Raises:
            ReusekitError: The weights of that trial were not kept.
        """
        completed = self.result.completed
        if not 0 <= place < len(completed):
            raise ConfigError(
                f"Expected a place from 0 to {len(completed) - 1}. Received: {place}."
            )
        spec = completed[place].spec
        whole = trained = self.tuner.trained(completed[place].number)
        if not self.plain:
            whole = self._joined(spec, trained)
        if folded:
            whole = fold_standardization(whole)
        if whole is not trained:
            whole.compile(**self.space.head(spec, self.train.classes).compile_args)
        return whole

    def _joined(self, spec: TrialSpec, trained: keras.Model) -> keras.Model:
        """Return a trial's trained part behind a copy of what it froze."""
        bottom = clone(self.data.frozen(spec), weights="copy")
        for layer in bottom.layers:
            layer.trainable = False
        joined = attach(bottom, trained)
        trunk = self.data.trunk(spec)
        if trunk is None:
            return joined
        # Cut inside a nested model, the two halves of it do not make that model again.
        data = replace(self._bare, plain=True, _trunks={})
        backbone = _weights(data.trunk(spec))
        if backbone.keys() <= _weights(joined).keys():
            return joined
        hypermodel = CutHyperModel(data, self.space, **self._training, objective=self._objective)
        whole = hypermodel.build_for(spec)
        pairs = _counterparts(_weights(trunk), _weights(trained), backbone, _weights(whole))
        for old, new in pairs:
            new.assign(old)
        try:
            prove_copy(joined, whole)
        except CopyError:
            return joined  # what is frozen used a weight that was trained: it is two weights now
        return whole


def _weights(model: keras.Model) -> Weights:
    """Return the weights of each call that has any, by its address."""
    return {call.address: call.variables for call in read(model).calls if call.variables}


def _counterparts(
    trunk: Weights, trained: Weights, backbone: Weights, whole: Weights
) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Yield each weight that a trial trained, and the one of a whole model that stands for it.

    Args:
        trunk: The part of the backbone that it trained, before it was copied.
        trained: What it trained: a copy of that part, and a head.
        backbone: All of the backbone up to the cut, with the same weights as `trunk`.
        whole: A copy of that, and the same head.
    """
    at = {id(weight): (at, i) for at, those in backbone.items() for i, weight in enumerate(those)}
    for address, weights in trunk.items():
        for weight, old in zip(weights, trained[address], strict=True):
            place, number = at[id(weight)]
            yield old, whole[place][number]
    heads = [
        [weight for address, those in every.items() if address not in part for weight in those]
        for every, part in ((trained, trunk), (whole, backbone))
    ]
    yield from zip(*heads, strict=True)


def _held(place: Place, source: FeatureSource, in_memory: set[Place]) -> FeatureSource:
    features = source.arrays() if place in in_memory else None
    if features is None or isinstance(features, tuple):
        return source
    return ArrayFeatures(features, source.labels)


def _check_classes(labels: np.ndarray, name: str, classes: int) -> None:
    """Raise DataError where labels are no classes, as classifiers take them."""
    if labels.dtype.kind not in "biuf" or labels.size != len(labels):
        raise DataError(
            f"Expected one class for each example of {name}, as a number. Received: labels of "
            f"shape {labels.shape[1:]} and type {labels.dtype}. Give a space with heads that take "
            "them."
        )
    flat = labels.reshape(-1)
    bad = np.flatnonzero((flat < 0) | (flat >= classes) | (flat % 1 != 0))
    if len(bad):
        raise DataError(
            f"Expected classes from 0 to {classes - 1} as labels of {name}. Received: "
            f"{flat[bad[0]]} at position {bad[0]}, and {len(bad):,} such labels in all."
        )


def _objective(
    wanted: str | keras_tuner.Objective, space: SearchSpace, classes: int
) -> keras_tuner.Objective:
    """Return the metric by which trials are compared, with its direction.

    Raises:
        ConfigError: It is no metric of the heads, or nobody knows whether more of it is better.
    """
    heads = space.heads.values() if space.heads else [space.head(TrialSpec("", ""), classes)]
    reported = [_reported(head.compile_args) for head in heads]
    name = wanted if isinstance(wanted, str) else getattr(wanted, "name", None)
    for names in reported:
        if name is not None and names is not None and name.removeprefix("val_") not in names:
            valid = [f"val_{each}" for each in names]
            raise ConfigError(
                f"Expected the objective to be a metric of the heads, one of {', '.join(valid)}. "
                f"Received: {name!r}. {nearest(name, valid)}"
            )
    if isinstance(wanted, keras_tuner.Objective):
        return wanted
    try:
        return keras_tuner.Oracle(objective=wanted).objective
    except ValueError as error:
        raise ConfigError(
            f"Expected an objective of which it is known whether more is better. Received: "
            f"{wanted!r}. Give keras_tuner.Objective({wanted!r}, 'max'), or 'min'."
        ) from error


def _reported(compile_args: dict[str, Any]) -> list[str] | None:
    """Return the names of what a head reports; None where they follow from several outputs."""
    metrics = [compile_args.get(key) or [] for key in ("metrics", "weighted_metrics")]
    if not all(isinstance(each, list) for each in metrics):
        return None
    named = (each if isinstance(each, str) else each.name for part in metrics for each in part)
    return ["loss", *named]
