"""The whole of a cut search: plan, features, ranking, trials, results, the best model."""

import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import keras
import keras_tuner
import numpy as np
import pandas as pd

from reusekit.arguments import AnyPath, checked, expanded
from reusekit.backbones import Backbone
from reusekit.data import DataSplit
from reusekit.errors import ConfigError, ExportError, ReusekitError, nearest
from reusekit.exports import Export, Exporter, Figures
from reusekit.features import FeatureStore
from reusekit.graph import Graph
from reusekit.objects import is_url
from reusekit.planning import Plan, PlannedGroup, Resources
from reusekit.planning.planned import JointPlan
from reusekit.planning.planner import check_backend, plan_all
from reusekit.progress import counted, say, tracked
from reusekit.search.config import SHIPPED, SearchConfig
from reusekit.search.folder import alone
from reusekit.search.hypermodel import CutHyperModel
from reusekit.search.objective import configured_objective
from reusekit.search.oracle import CutGridOracle, CutSweepOracle
from reusekit.search.ranking import RankCorrelation, in_order, rank_correlation, rank_cuts
from reusekit.search.remote_folder import RemoteFolder
from reusekit.search.results import SearchResult, TrialRecord
from reusekit.search.searched_backbone import SearchedBackbone, cells_of, ranked_pooling
from reusekit.search.shipping import MODEL, Shipping
from reusekit.search.sizes import measure_latency
from reusekit.search.space import BACKBONE, Place, SearchSpace, Shape, label, place
from reusekit.search.trial_data import TrialData, collected
from reusekit.search.tuner import CutTuner, best_trials
from reusekit.search.whole_model import whole_model
from reusekit.surgery import prepend
from reusekit.tasks import rules_of
from reusekit.training import fold_standardization
from reusekit.training.adaptation import merge_lora
from reusekit.workers import HERE, Workers

Searchable: TypeAlias = keras.Model | Graph | Backbone
"""A backbone, or a model, read or not."""


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
        **elsewhere: `cluster`, a `reusekit.cluster.Cluster` whose workers compute features and
            train groups of trials; None, or none, does it in this process. The numbers are the same
            where workers have as many threads, and the same kind of processor.

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
        **elsewhere: Any,
    ) -> None:
        check_backend()
        self._workers = _workers(**elsewhere)
        self.backbones: dict[str | None, SearchedBackbone] = {}
        for name, backbone in _by_name(backbones).items():
            own = _of(train, name, "train"), _of(validation, name, "validation")
            with _naming(name):
                self.backbones[name] = SearchedBackbone(backbone, *own, config, name)
        _check_alike(self.backbones)
        first = next(iter(self.backbones.values()))
        self.train, self.validation = first.train, first.validation
        if self.train.task != self.validation.task:
            raise ConfigError(
                "Expected training and validation examples of one task, with the same names in the "
                f"same order. Received: {reprlib.repr(self.train.task)} and "
                f"{reprlib.repr(self.validation.task)}."
            )
        if config.rank and self.train.task.parts:
            raise ConfigError(
                "Expected rank=None for several tasks at once, of which each would rank the cuts "
                f"in another order. Received: {config.rank!r}."
            )
        self.config = config
        self._remote = RemoteFolder(str(folder)) if is_url(folder) else None
        self.folder = self._remote.folder if self._remote else expanded(folder, ConfigError)
        self.store = store
        self._all_cuts = self._space_of_all(space)
        for name, one in self.backbones.items():
            with _naming(name):
                one.check(self._all_cuts.of(name))
        self._rules = rules_of(self.train.task)
        self._objective = configured_objective(
            config, self._all_cuts, self._rules, self.train.mixes_labels
        )
        self._latencies: dict[Place, float] = {}
        self._shipping = None if config.ship is None else Shipping(config.ship, self.folder)

    @property
    def kept_in(self) -> str:
        """The folder or the address at which the same search goes on."""
        return str(self.folder) if self._remote is None else self._remote.url

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

    def _space_of_all(self, space: SearchSpace | None) -> SearchSpace:
        """Return the choices with those of each backbone by its name, where there are several."""
        alone = None in self.backbones
        if space is None:
            cuts: Any = {name: one.clean_cuts() for name, one in self.backbones.items()}
            cuts = cuts[None] if alone else cuts
            return SearchSpace(cuts=cuts, learning_rates=[1e-3, 1e-2, 1e-1])
        cuts = space.cuts
        by_name = isinstance(cuts, Mapping)
        if alone and (by_name or isinstance(space.frozen_up_to, Mapping)):
            raise ConfigError(
                "Expected cuts and frozen_up_to as lists of addresses for a single backbone. "
                f"Received: {space.cuts!r} and {space.frozen_up_to!r}."
            )
        if alone:
            return space
        names = list(map(str, self.backbones))
        if not by_name or set(space.cuts) != set(names):
            raise ConfigError(
                f"Expected cuts by the names of the backbones, {', '.join(names)}. Received: "
                f"{reprlib.repr(space.cuts)}."
            )
        frozen: Any = space.frozen_up_to
        if not isinstance(frozen, Mapping):
            frozen = self._shared_out(frozen)
        elif set(frozen) - set(names):
            raise ConfigError(
                f"Expected frozen_up_to by the names of the backbones, {', '.join(names)}. "
                f"Received: {reprlib.repr(frozen)}."
            )
        return space.changed(
            cuts={name: cuts[name] for name in names},
            frozen_up_to={name: frozen[name] for name in names if frozen.get(name)},
        )

    def _shared_out(self, addresses: Sequence[str]) -> dict[Any, list[str]]:
        """Return the addresses that each backbone has."""
        found = {
            name: [at for at in addresses if at in one.graph.names]
            for name, one in self.backbones.items()
        }
        for at in addresses:
            if not any(at in those for those in found.values()):
                known = [address for one in self.backbones.values() for address in one.graph.names]
                raise ConfigError(
                    f"Expected frozen_up_to to be addresses that a backbone has. Received: {at!r}. "
                    f"{nearest(at, known)}"
                )
        return found

    def measure_latencies(self) -> dict[Place, float]:
        """Return seconds for one example up to each cut, measured at the first call.

        Of several backbones a cut is the pair of the backbone's name and the address. See
        `measure_latency` for the conditions. Results have them from then on.
        """
        if not self._latencies:
            models = {
                place(at, name): model
                for name, one in self.backbones.items()
                for at, model in one.bottoms(self._all_cuts.of(name)).items()
            }
            found = measure_latency(list(models.values()))
            self._latencies = dict(zip(models, found, strict=True))
        return self._latencies

    def _limited_latencies(self) -> dict[Place, float]:
        limited = self.config.limits.latency is not None and self._shipping is None
        return self.measure_latencies() if limited else {}

    @cached_property
    def files(self) -> Mapping[Shape, Figures | str]:
        """The figures of whole models as files by their shapes, or why one cannot be a file.

        They are measured at the first call, with heads that are not trained, and kept in the folder
        of the search. None where nothing is shipped.
        """
        found: dict[Shape, Figures | str] = {}
        for name, one in self.backbones.items() if self._shipping else ():
            assert self._shipping is not None
            with _naming(name):
                shapes = list(one.shapes(self._all_cuts, self._rules))
                told = f"Measuring {name or one.graph.model.name} as {self._shipping.name}"
                for shape, follows_from, exporter in tracked(shapes, told):
                    found[shape] = self._shipping.measured(follows_from, exporter)
        return found

    @cached_property
    def _over(self) -> Mapping[Place, tuple[float, str]]:
        latencies, found = self._limited_latencies(), {}
        for one in self.backbones.values():
            found.update(one.over(self._all_cuts, latencies, self.files))
        return found

    @property
    def left_out(self) -> Mapping[Place, str]:
        """The cuts that are not searched since they exceed a limit or cannot be shipped, and why.

        Of several backbones a cut is the pair of the backbone's name and the address.
        """
        return {one: why for one, (_, why) in self._over.items()}

    @cached_property
    def _allowed(self) -> SearchSpace:
        """The space without the cuts that exceed the limits."""
        kept = [one for one in _places(self._all_cuts) if one not in self._over]
        if not kept:
            nearest_one, (times, why) = min(self._over.items(), key=lambda one: one[1][0])
            if times == math.inf:
                raise ConfigError(
                    f"Expected a cut that can be shipped as {self.config.ship!r}. Received: none. "
                    f"{why}"
                )
            raise ConfigError(
                "Expected limits within which a cut keeps. Received: limits that each one "
                f"exceeds, nearest {label(nearest_one)!r} ({why}). Raise them, or search a smaller "
                "backbone."
            )
        return _narrowed(self._all_cuts, kept)

    @cached_property
    def plan(self) -> Plan | JointPlan | None:
        """The work computed once, stored and trained together; None for the plain way."""
        space = self._allowed
        cells = {name: cells_of(space.of(name)) for name in _names(space)}
        asked = {}
        for name, count in cells.items():
            with _naming(name):
                share = count / sum(cells.values())
                asked[name or ""] = self.backbones[name].asked(space.of(name), share)
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
        found: dict[Any, TrialData] = {}
        plans = filter(None, map(self.plan_of, _names(self._allowed)))
        kept = [one for plan in plans for one in plan.features if one.is_stored]
        if not all(one.in_memory for one in kept) and self._features.url is None:
            self._workers.check_folder(self._features.path)
        for name in _names(self._allowed):
            plan = self.plan_of(name)
            store = None if plan is None else self._features
            with _naming(name):
                own_heads = self._all_cuts.heads is not None
                found[name] = self.backbones[name].data(plan, store, own_heads)
        return found.get(None, found)

    @cached_property
    def ranking(self) -> pd.DataFrame | None:
        """Every cut's score before training, best first; None without `rank`."""
        method = self.config.rank
        if method is None:
            return None
        if method == "size":
            return self._by_size
        found, pooling = self.extract(), ranked_pooling(self.config)
        by_name: dict[Any, TrialData] = {None: found} if isinstance(found, TrialData) else {**found}
        features = {
            name: {at: collected(data.train[at, pooling]) for at in self._allowed.of(name).cuts}
            for name, data in by_name.items()
        }
        labels = next(iter(next(iter(by_name.values())).train.values())).labels
        if self._all_cuts.heads is None:
            labels = self._rules.targets(labels, "train")
        return rank_cuts(features.get(None, features), labels, method)

    @cached_property
    def _by_size(self) -> pd.DataFrame:
        """Every cut by the parameters before it: what any other ranking has to beat."""
        return in_order(
            [
                {
                    **({} if name is None else {BACKBONE: name}),
                    "cut": at,
                    "score": float(self.backbones[name].points[at].params_before),
                    "seconds": 0.0,
                }
                for name in _names(self._allowed)
                for at in self._allowed.of(name).cuts
            ]
        )

    def _in_ranked_order(self) -> list[Place]:
        """Return the cuts as they are ranked, the best first."""
        assert self.ranking is not None
        return list(_scores(self.ranking))

    @cached_property
    def space(self) -> SearchSpace:
        """The space that is searched, without cuts beyond the limits or ranked too low."""
        if self.ranking is None:
            return self._allowed
        best = self._in_ranked_order()[: self.config.best_cuts]
        return _narrowed(self._allowed, [one for one in _places(self._allowed) if one in best])

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
            (*_begins(name, group), group.batch_size): group.together
            for name in _names(self.space)
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
            if self._remote is not None:
                tuner.on_saved = self._remote.put
                self._remote.put()
        return tuner

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes off the folder, and other machines off its address."""
        with alone(self.folder):
            if self._remote is None:
                yield
                return
            try:
                with self._remote.held() as fetched:
                    if fetched:
                        self.__dict__.pop("tuner", None)  # it knows what was there before
                    yield
            except ConfigError as error:
                raise ConfigError(str(error).replace(str(self.folder), self._remote.url)) from error

    def _default_oracle(self) -> keras_tuner.Oracle:
        # 0 is no seed to it.
        common = {"objective": self._objective, "seed": self.config.seed + 1}
        if self.config.max_trials is None:
            return CutGridOracle(self.hypermodel.spec, **common)
        order = _places(self.space)
        if self.ranking is not None:
            order = [one for one in self._in_ranked_order() if one in order]
        best = self._best_before(order)
        return CutSweepOracle(order, self.config.max_trials, best, **common)

    def _best_before(self, cuts: Sequence[Place]) -> dict[Place, Mapping[str, Any]]:
        """Return the best values of each cut in the search to start from, the best cut first."""
        if self.config.start_from is None:
            return {}
        folder = expanded(self.config.start_from, ConfigError)
        if folder.resolve() == self.folder.resolve():
            raise ConfigError(
                "Expected start_from to be another folder than that of the search, which goes on "
                f"with its own trials. Received: {str(folder)!r}."
            )
        found: dict[Place, Mapping[str, Any]] = {}
        for record in best_trials(folder):
            found.setdefault(record.place, record.values)
        best = {one: values for one, values in found.items() if one in cuts}
        if not best:
            raise ConfigError(
                f"Expected start_from to be a search with completed trials of these cuts: "
                f"{reprlib.repr(list(map(label, cuts)))}. Received: {str(folder)!r}, with trials "
                f"of {', '.join(map(label, found)) or 'none'}."
            )
        say(f"Each cut is tried first as it was best in {folder}: {', '.join(map(label, best))}.")
        return best

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
            with _told(self.config.max_trials, report, progress) as (tell, tell_progress):
                self.tuner.search(tell, tell_progress, self._workers)
            self._export_best()
        return self.result

    def _export_best(self) -> None:
        """Export the best trials where models are shipped.

        Raises:
            ExportError: None of them can be.
        """
        if self._shipping is None:
            return
        best, why = self.result.by_objective[:SHIPPED], ""
        for record in tracked(best, f"Exporting as {self._shipping.name}"):
            made = self._shipping.exported(self._told_of(record))
            if made is None and not self.tuner.keeps(record.number):
                made = "Its weights were not kept. Search anew (fresh=True), with the same ship."
            if made is None:
                exporter = partial(self._exporter, record)
                made = self._shipping.exported(self._told_of(record), exporter)
            if isinstance(made, str):
                why = made
                say(f"warning: trial {record.number} cannot be shipped. {made}")
        if best and not self.result.exports:
            raise ExportError(
                f"Expected one of the best {len(best)} trials to be shipped. Received: none that "
                f"can be. {why}"
            )

    def _told_of(self, record: TrialRecord) -> Any:
        """Return plain data that the model of a trial follows from."""
        data = self.hypermodel.data_of(record.spec).described()
        return [record.number, record.weights, record.spec.to_dict(), data]

    def _exporter(self, record: TrialRecord, folder: Path) -> Exporter:
        whole = self._whole(record)
        whole.name = MODEL
        made = self.backbones[record.spec.backbone].exporter(whole, folder)
        return made if self._rules.reported else made.tuned()

    def _exports(self, best: Sequence[TrialRecord]) -> dict[int, Export]:
        """Return the exports of trials as far as they were made, the best file first."""
        found: dict[int, Export] = {}
        for record in best if self._shipping else ():
            assert self._shipping is not None
            made = self._shipping.exported(self._told_of(record))
            if isinstance(made, Export):
                found[record.number] = made
        values: dict[int, Any] = {number: one.file.value for number, one in found.items()}
        if None in values.values():  # a head of another task, whose file has no measure
            return found
        order = sorted(values, key=lambda number: values[number], reverse=self._rules.maximize)
        return {number: found[number] for number in order}

    @property
    def result(self) -> SearchResult:
        """The results so far."""
        objective = self.tuner.oracle.objective
        records = tuple(self.tuner.records)
        figures = {one.number: self.files.get(one.spec.shape) for one in records}
        result = SearchResult(
            records,
            {
                place(at, name): one.points[at].depth
                for name, one in self.backbones.items()
                for at in self._all_cuts.of(name).cuts
            },
            self._latencies,
            objective.name,
            objective.direction == "max",
            {number: file for number, file in figures.items() if isinstance(file, Figures)},
        )
        return replace(result, exports=self._exports(result.by_objective[:SHIPPED]))

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
        scores, cuts = _scores(ranking), self.result.cuts
        reached = [sign * cut.best.metrics[self.result.objective] for cut in cuts]
        return rank_correlation([scores[cut.place] for cut in cuts], reached)

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


def _workers(cluster: Workers | None = None) -> Workers:
    """Return where work is done, given what `CutSearch` takes beside its seven arguments."""
    if cluster is not None and not isinstance(cluster, Workers):
        raise ConfigError(
            f"Expected cluster to be a reusekit.cluster.Cluster, or None. Received: {cluster!r}."
        )
    return cluster or HERE


def _by_name(
    backbones: Searchable | Sequence[Searchable] | Mapping[str, Searchable],
) -> Mapping[str | None, Searchable]:
    """Return backbones by their names; None is that of an only one."""
    if isinstance(backbones, Backbone | Graph | keras.Model):
        return {None: backbones}
    found = backbones
    if not isinstance(found, Mapping):
        pairs = [(_name_of(one), one) for one in found]
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"Expected backbones with names of their own. Received: {twice!r} twice. Give a "
                "dictionary, with a name for each."
            )
        found = dict(pairs)
    if not found or "" in found:
        raise ConfigError(f"Expected one backbone or several, by names. Received: {found!r}.")
    by_name: Any = dict(found)
    return by_name


def _name_of(backbone: Searchable) -> str:
    return backbone.model.name if isinstance(backbone, Graph) else backbone.name


def _of(split: DataSplit | Mapping[str, DataSplit], name: str | None, what: str) -> DataSplit:
    """Return the split of a backbone."""
    if isinstance(split, DataSplit):
        return split
    if name is None or name not in split:
        raise ConfigError(
            f"Expected {what} to be a DataSplit, or of several backbones one for each by its name. "
            f"Received: {', '.join(split) or 'none'}."
        )
    return split[name]


def _check_alike(backbones: Mapping[str | None, SearchedBackbone]) -> None:
    """Refuse other examples for one backbone than for another."""
    (first_name, first), *others = backbones.items()
    for name, one in others:
        for what in ("train", "validation"):
            split, other = getattr(first, what), getattr(one, what)
            keyed = split.keys is not None and other.keys is not None
            if (
                split.task != other.task
                or split.size != other.size
                or (keyed and not np.array_equal(split.keys, other.keys))
            ):
                raise ConfigError(
                    f"Expected the same {what} examples in the same order, of one task, for every "
                    f"backbone. Received: others for {name!r} than for {first_name!r}."
                )


@contextmanager
def _naming(name: str | None) -> Iterator[None]:
    """Say in an error of which backbone it is, where there are several."""
    try:
        yield
    except ReusekitError as error:
        if name is None:
            raise
        raise type(error)(f"Backbone {name!r}: {error}") from error


def _names(space: SearchSpace) -> list[str | None]:
    """Return the names of the backbones in a space; None is that of an only one."""
    return list(space.cuts) if isinstance(space.cuts, Mapping) else [None]


def _places(space: SearchSpace) -> list[Place]:
    """Return the cuts of all backbones in a space."""
    return [place(at, name) for name in _names(space) for at in space.of(name).cuts]


def _narrowed(space: SearchSpace, places: Sequence[Place]) -> SearchSpace:
    """Return the space with some of its cuts alone; of a backbone without any nothing is left."""
    kept = {
        name: [at for at in space.of(name).cuts if place(at, name) in places]
        for name in _names(space)
    }
    kept = {name: cuts for name, cuts in kept.items() if cuts}
    frozen = space.frozen_up_to
    if isinstance(frozen, Mapping):
        frozen = {name: those for name, those in frozen.items() if name in kept}
    return space.changed(cuts=kept.get(None, kept), frozen_up_to=frozen)


def _scores(ranking: pd.DataFrame) -> dict[Place, float]:
    """Return the score of each cut, the best first."""
    ranked = ranking.sort_values("rank")
    names = ranked[BACKBONE] if BACKBONE in ranked else [None] * len(ranked)
    rows = zip(ranked["cut"], names, ranked["score"], strict=True)
    return {place(at, name): score for at, name, score in rows}


def _begins(name: str | None, group: PlannedGroup) -> tuple[str | None, ...]:
    """Return where the trials of a planned group begin, as `CutHyperModel.begin` has it."""
    return (group.at, group.pooling) if name is None else (name, group.at, group.pooling)


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
            lambda record: step(f"Trials (last: {record.label}, {record.status})"),
            lambda text: step(f"Trials ({text})", 0),
        ]
