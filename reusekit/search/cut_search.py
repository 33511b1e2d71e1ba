"""The whole of a cut search: plan, features, ranking, trials, results, the best model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Unpack

import keras
import keras_tuner
import pandas as pd

from reusekit.arguments import AnyPath, checked
from reusekit.data import DataSplit
from reusekit.errors import ConfigError
from reusekit.exports import Exporter, Figures
from reusekit.features import FeatureStore
from reusekit.graph import Graph
from reusekit.planning import Plan, Resources
from reusekit.planning.planned import JointPlan
from reusekit.planning.planner import check_backend, plan_all
from reusekit.search.backbones import (
    Searchable,
    SearchedBackbones,
    naming,
    ranked_features,
    within_limits,
)
from reusekit.search.config import Elsewhere, SearchConfig
from reusekit.search.hypermodel import CutHyperModel
from reusekit.search.objective import configured_objective
from reusekit.search.oracle import CutGridOracle, CutSweepOracle
from reusekit.search.ranking import (
    RankCorrelation,
    in_order,
    rank_correlation,
    rank_cuts,
    scores_by_cut,
)
from reusekit.search.remote_folder import KeptSearch
from reusekit.search.results import SearchResult, TrialRecord, best_before, listeners
from reusekit.search.searched_backbone import ranked_pooling
from reusekit.search.shipping import MODEL, Shipping
from reusekit.search.sizes import measure_latency
from reusekit.search.space import NamedCut, SearchSpace, Shape
from reusekit.search.trial_data import TrialData
from reusekit.search.tuner import CutTuner
from reusekit.search.whole_model import whole_model
from reusekit.surgery import prepend
from reusekit.tasks import rules_of
from reusekit.training import fold_standardization
from reusekit.training.adaptation import merge_lora
from reusekit.workers import HERE


class CutSearch:
    """Searches how deep to cut a pretrained model, and what to put on and train.

    The frozen part runs over the data once for all trials, as the plan says; trials that see the
    same examples are trained at the same time; and what is written down is enough to go on after a
    kill. `plan`, `ranking`, `space` and `tuner` are made when they are first asked for, and what
    they stand on with them.

    Args:
        backbones: A `Backbone`, a model with a functional graph, or one that was read already. Or
            several, by names, or as a list of such as have names of their own: then the backbone is
            one more choice of trials, and a column of all tables. They are left as they are.
        train: The examples to train on, augmented where they say so; see `DataSplit.augmented`.
            Texts become tokens where the `Backbone` has a tokenizer: as many as `treatment.length`
            says, or 64. For several backbones they are brought to the size that each takes; or
            give a split for each, by its name, of the same examples in the same order.
        validation: The examples by which trials are compared.
        space: The choices of trials; None for heads of the task on every clean cut at features: not
            in the softmax that a classifier ends in, nor in the head of a registered `Backbone`.
            For several backbones `cuts` are lists by name, and of `frozen_up_to` each takes those
            that it has.
        config: All other settings.
        folder: Where trials and their state are kept. The same search goes on there where it was
            stopped; another one is refused. At an address such as `s3://BUCKET/PREFIX` it goes on
            on any machine; while one runs it, another is refused.
        store: Where features are kept; None for `reusekit.features.default_path()`.
        **elsewhere: See `Elsewhere`: `cluster=` has the workers of a cluster do the work.

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
        backbones: Searchable | Sequence[Searchable] | Mapping[str, Searchable],
        train: DataSplit | Mapping[str, DataSplit],
        validation: DataSplit | Mapping[str, DataSplit],
        space: SearchSpace | None = None,
        config: SearchConfig = SearchConfig(),
        folder: AnyPath = "search",
        store: FeatureStore | None = None,
        **elsewhere: Unpack[Elsewhere],
    ) -> None:
        check_backend()
        self._workers = elsewhere.get("cluster") or HERE
        self.backbones = SearchedBackbones(backbones, train, validation, config)
        first = self.backbones.first
        self.train, self.validation = first.train, first.validation
        if config.rank and self.train.task.parts:
            raise ConfigError(
                "Expected rank=None for several tasks at once, of which each would rank the cuts "
                f"in another order. Received: {config.rank!r}."
            )
        self.config = config
        self._kept = KeptSearch(folder)
        self.folder = self._kept.folder
        self.store = store
        self._all_cuts = self.backbones.space(space)
        for name, one in self.backbones.items():
            with naming(name):
                one.check(self._all_cuts.of(name))
        self._rules = rules_of(self.train.task)
        self._objective = configured_objective(
            config, self._all_cuts, self._rules, self.train.mixes_labels
        )
        self._latencies: dict[NamedCut, float] = {}
        self._shipping = None if config.ship is None else Shipping(config.ship, self.folder)

    @property
    def kept_in(self) -> str:
        """The folder or the address at which the same search goes on."""
        return self._kept.name

    @property
    def graph(self) -> Graph:
        """The backbone, read once, where there is only one.

        Raises:
            ConfigError: There are several; see `backbones`.
        """
        if None not in self.backbones:
            raise ConfigError(
                "Expected a search of one backbone. Received: "
                f"{', '.join(map(str, self.backbones))}; search.backbones has the graph of each."
            )
        return self.backbones[None].graph

    def measure_latencies(self) -> dict[NamedCut, float]:
        """Return seconds for one example up to each cut, measured at the first call.

        Of several backbones a cut is the pair of the backbone's name and the address. See
        `measure_latency` for the conditions. Results have them from then on.
        """
        if not self._latencies:
            models = self.backbones.bottoms(self._all_cuts)
            found = measure_latency(list(models.values()))
            self._latencies = dict(zip(models, found, strict=True))
        return self._latencies

    def _limited_latencies(self) -> dict[NamedCut, float]:
        limited = self.config.limits.latency is not None and self._shipping is None
        return self.measure_latencies() if limited else {}

    @cached_property
    def files(self) -> Mapping[Shape, Figures | str]:
        """The figures of whole models as files by their shapes, or why one cannot be a file.

        They are measured at the first call, with heads that are not trained, and kept in the folder
        of the search. None where nothing is shipped.
        """
        if self._shipping is None:
            return {}
        return self.backbones.files(self._all_cuts, self._rules, self._shipping)

    @cached_property
    def _over(self) -> Mapping[NamedCut, tuple[float, str]]:
        return self.backbones.over(self._all_cuts, self._limited_latencies(), self.files)

    @property
    def left_out(self) -> Mapping[NamedCut, str]:
        """The cuts that are not searched since they exceed a limit or cannot be shipped, and why.

        Of several backbones a cut is the pair of the backbone's name and the address.
        """
        return {one: why for one, (_, why) in self._over.items()}

    @cached_property
    def _allowed(self) -> SearchSpace:
        """The space without the cuts that exceed the limits."""
        return within_limits(self._all_cuts, self._over, self.config.ship)

    @cached_property
    def plan(self) -> Plan | JointPlan | None:
        """The work computed once, stored and trained together; None for the plain way."""
        asked = self.backbones.work(self._allowed)
        if self.config.plain:
            return None
        workers = None if self._workers is HERE else max(1, self._workers.count)
        resources = Resources(self.config.disk, self.config.memory, workers=workers)
        made = plan_all(asked, self._features, resources)
        return made.plans.get("", made)

    @checked(ConfigError)
    def plan_of(self, backbone: str | None) -> Plan | None:
        """Return the plan of one backbone; None is the name of an only one.

        Raises:
            ConfigError: There are several, and none of that name is searched.
        """
        if not isinstance(self.plan, JointPlan):
            return self.plan
        plans = self.plan.plans
        if backbone is None or backbone not in plans:
            raise ConfigError(
                f"Expected the name of a backbone, one of {', '.join(plans)}. Received: "
                f"{backbone!r}."
            )
        return plans[backbone]

    @cached_property
    def _features(self) -> FeatureStore:
        return (self.store or FeatureStore()).computed_by(self._workers)

    def extract(self) -> TrialData | Mapping[str, TrialData]:
        """Return features where trials begin, computed at the first call as the plan says.

        Of several backbones those of each by its name.

        Raises:
            CacheError: They are not finite, or cannot be stored.
            DataError: Labels are no classes, or the data set has another size than it says.
        """
        return self._data

    @cached_property
    def _data(self) -> TrialData | Mapping[str, TrialData]:
        plans = {name: self.plan_of(name) for name in self._allowed.backbones}
        kept = [one for plan in plans.values() if plan for one in plan.features if one.is_stored]
        if not all(one.in_memory for one in kept) and self._features.url is None:
            self._workers.check_folder(self._features.path)
        store = None if self.config.plain else self._features
        own_heads = self._all_cuts.heads is not None
        found: dict[Any, TrialData] = self.backbones.data(plans, store, own_heads)
        return found.get(None, found)

    @cached_property
    def ranking(self) -> pd.DataFrame | None:
        """Every cut's score before training, best first; None without `rank`."""
        method = self.config.rank
        if method is None:
            return None
        if method == "size":
            return self._by_size
        found: Any = self.extract()
        features, labels = ranked_features(
            {None: found} if isinstance(found, TrialData) else found,
            self._allowed,
            ranked_pooling(self.config),
        )
        if self._all_cuts.heads is None:
            labels = self._rules.targets(labels, "train")
        return rank_cuts(features.get(None, features), labels, method)

    @cached_property
    def _by_size(self) -> pd.DataFrame:
        """Every cut by the parameters before it: what any other ranking has to beat."""
        return in_order(self.backbones.rows_by_size(self._allowed))

    def _in_ranked_order(self) -> list[NamedCut]:
        """Return the cuts as they are ranked, the best first."""
        assert self.ranking is not None
        return list(scores_by_cut(self.ranking))

    @cached_property
    def space(self) -> SearchSpace:
        """The space that is searched, without cuts beyond the limits or ranked too low."""
        if self.ranking is None:
            return self._allowed
        best = self._in_ranked_order()[: self.config.best_cuts]
        return self._allowed.narrowed([one for one in self._allowed.named_cuts if one in best])

    @cached_property
    def hypermodel(self) -> CutHyperModel:
        """The hypermodel that any tuner of keras-tuner can search."""
        return CutHyperModel(self.extract(), self.space, self.config)

    @cached_property
    def tuner(self) -> CutTuner:
        """The tuner, as far as the search has come."""
        return self._tuner()

    def _tuner(self, oracle: keras_tuner.Oracle | None = None, fresh: bool = False) -> CutTuner:
        together = {
            (*filter(None, [name]), group.at, group.pooling, group.batch_size): group.together
            for name in self.space.backbones
            for group in getattr(self.plan_of(name), "groups", ())
        }
        hypermodel, oracle = self.hypermodel, oracle or self._default_oracle()
        with self._alone():  # it tidies up the folder
            tuner = CutTuner(
                hypermodel,
                oracle,
                self.folder,
                fresh=fresh,
                together=lambda features, batch_size: together.get((*features, batch_size), 1),
                latencies=self._limited_latencies(),
                files=self.files,
            )
            tuner.on_saved = self._kept.put
            self._kept.put()
        return tuner

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes off the folder, and other machines off its address."""
        with self._kept.alone() as fetched:
            if fetched:
                self.__dict__.pop("tuner", None)  # it knows what was there before
            yield

    def _default_oracle(self) -> keras_tuner.Oracle:
        # 0 is no seed to it.
        common = {"objective": self._objective, "seed": self.config.seed + 1}
        if self.config.max_trials is None:
            return CutGridOracle(self.hypermodel.spec, **common)
        order = self.space.named_cuts
        if self.ranking is not None:
            order = [one for one in self._in_ranked_order() if one in order]
        best = best_before(self.config.start_from, self.folder, order)
        return CutSweepOracle(order, self.config.max_trials, best, **common)

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
        with self._alone():
            if self.plan is not None:
                self.plan.save(self.folder / "plan.json")
            if fresh or oracle is not None:
                self.tuner = self._tuner(oracle, fresh)
            with listeners(self.config.max_trials, report, progress) as (tell, tell_progress):
                self.tuner.search(tell, tell_progress, self._workers)
            if self._shipping is not None:
                self._shipping.export_best(
                    self.result.by_objective, self._told_of, self._exporter, self.tuner.keeps
                )
        return self.result

    def _told_of(self, record: TrialRecord) -> Any:
        """Return plain data that the model of a trial follows from."""
        data = self.hypermodel.data_of(record.spec).described()
        return [record.number, record.weights, record.spec.to_dict(), data]

    def _exporter(self, record: TrialRecord, folder: Path) -> Exporter:
        whole = self._whole(record)
        whole.name = MODEL
        made = self.backbones[record.spec.backbone].exporter(whole, folder)
        return made if self._rules.reported else made.tuned()

    @property
    def result(self) -> SearchResult:
        """The results so far."""
        objective = self.tuner.oracle.objective
        records = tuple(self.tuner.records)
        figures = {one.number: self.files.get(one.spec.shape) for one in records}
        result = SearchResult(
            records,
            self.backbones.depths(self._all_cuts),
            self._latencies,
            objective.name,
            objective.direction == "max",
            {number: file for number, file in figures.items() if isinstance(file, Figures)},
        )
        if self._shipping is None:
            return result
        made = self._shipping.exports(result.by_objective, self._told_of, self._rules.maximize)
        return replace(result, exports=made)

    def results(self) -> pd.DataFrame:
        """Return the trials as a table; see `SearchResult.to_frame`."""
        return self.result.to_frame()

    @checked(ConfigError)
    def pareto(self, cost: str = "parameters") -> pd.DataFrame:
        """Return the trials that no other beats in objective and cost."""
        if cost == "latency":
            self.measure_latencies()
        return self.result.pareto(cost)

    @checked(ConfigError)
    def rank_correlation(self, by: Literal["rank", "size"] = "rank") -> RankCorrelation:
        """Return how well the ranking foretold the best result of each cut.

        Args:
            by: "rank" for the ranking of this search, "size" for the baseline: parameters before
                the cut.

        Raises:
            ConfigError: There is no ranking.
        """
        if by == "rank" and self.ranking is None:
            raise ConfigError(
                "Expected a ranking to compare with. Received: a search with rank=None. Give "
                "rank='logme' or another."
            )
        ranking = self._by_size if by == "size" else self.ranking
        assert ranking is not None
        sign = 1 if self.result.maximize else -1
        scores, cuts = scores_by_cut(ranking), self.result.cuts
        reached = [sign * cut.best.metrics[self.result.objective] for cut in cuts]
        return rank_correlation([scores[cut.named_cut] for cut in cuts], reached)

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
        return self._whole(completed[position], folded, merged)

    def _whole(self, record: TrialRecord, folded: bool = True, merged: bool = True) -> keras.Model:
        """Return the whole model of a trial; see `best_model`."""
        spec = record.spec
        whole = trained = self.tuner.trained(record.number)
        if merged and spec.adaptation is not None:
            merge_lora(trained)
            spec = replace(spec, adaptation=None)
        if not self.config.plain:
            bare = replace(self.hypermodel.data_of(spec), plain=True, _trunks={})
            whole = whole_model(spec, trained, self.hypermodel, bare)
        if folded:
            whole = fold_standardization(whole)
        tokenizer = self.backbones[spec.backbone].tokenizer
        if tokenizer is not None:
            whole = prepend(whole, tokenizer)
        if whole is not trained:
            whole.compile(**self.space.head(spec, self.hypermodel.rules).compile_args)
        return whole
