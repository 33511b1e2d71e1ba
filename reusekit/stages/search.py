"""The search stage: a plan, features computed once as it says, then trials on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

from reusekit.arguments import expanded
from reusekit.backbones import Backbone
from reusekit.digests import digest
from reusekit.errors import ConfigError
from reusekit.exports import Figures
from reusekit.features import FeatureStore
from reusekit.graph import CutPoint
from reusekit.objects import is_url
from reusekit.progress import counted
from reusekit.search import CutSearch, SearchResult, TrialData, TrialRecord
from reusekit.search.figure import objective_over_cost, objective_over_depth
from reusekit.search.results import COSTS
from reusekit.search.space import BEFORE, label
from reusekit.settings import SearchJobSettings, SearchSettings
from reusekit.stages.candidates import Candidates
from reusekit.stages.inputs import Splits
from reusekit.tasks import rules_of
from reusekit.tracking import log_artifact, log_metrics, log_params, log_table, log_trial
from reusekit.workers import HERE, Workers

# What decides where features and results are kept and how fast they come, never what they are.
# More trials are more of the same search; every combination of the choices is another one.
_NOT_SEARCHED = {"store", "disk", "memory", "folder", "keep", "max_trials", "trial_runs"}
# What names a search by all of its values, as those of version 0.1.0 are named. Further settings
# count where they are not at their default, so that a new one leaves earlier searches their names.
_ALWAYS = {
    *("cuts", "max_cuts", "frozen_up_to", "units", "dropout", "optimizers", "learning_rate"),
    *("learning_rates", "batch_sizes", "epochs", "patience", "objective", "limits", "rank"),
    *("best_cuts", "augmented_views", "compute_dtype"),
}
_FILE = ("latency_alone", "bytes")
_ROWS, _MORE_ROWS = 100, 1.1  # a table is logged with as many rows more, or as many times the rows


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made; nothing is left behind."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in made:
            one.rmdir()
    except OSError as error:
        raise ConfigError(
            f"Expected search.folder to be a folder that can be written. Received: {str(folder)!r}"
            f": {error.strerror}."
        ) from error


@dataclass(frozen=True)
class Searched:
    """A finished search.

    Attributes:
        search: The search; it can still be asked for models and tables.
        result: Its trials.
        resumed: How many of these were taken from an earlier run of the same search.
        seconds: What the others took together, features not counted.
    """

    search: CutSearch
    result: SearchResult
    resumed: int
    seconds: float


def plan_search(
    candidates: Candidates,
    settings: SearchSettings,
    store: FeatureStore,
    job: SearchJobSettings,
    workers: Workers = HERE,
) -> CutSearch:
    """Set a search up and print its plan; nothing is computed but to measure.

    The search is kept in a folder that is named by what is searched: backbones, data, settings and
    seed. Where the same search was begun there, it is gone on with; where it was finished, its
    trials are taken from there.

    Args:
        candidates: The backbones to choose from, with their cuts and what to train and to compare
            on; the test split is left alone.
        settings: What the search tries.
        store: Where features are kept.
        job: The seed, whether to run the plain way, and the folder of all runs, in which the
            search's own lies unless the settings name one.
        workers: Where features are computed and trials are trained.

    Raises:
        ConfigError: Nothing keeps within the limits, or a choice is unknown.
    """
    if settings.folder is not None and not is_url(settings.folder):
        _check_folder(expanded(settings.folder, ConfigError))
    models: dict[Any, Any] = {}
    train, validation, cuts, names = models.copy(), models.copy(), models.copy(), models.copy()
    for one in candidates.those:
        assert one.splits is not None  # loaded before
        models[one.name], cuts[one.name] = one.backbone.model, [point.at for point in one.cuts]
        train[one.name], validation[one.name] = one.splits.train, one.splits.validation
        names[one.name] = search_digest(one.backbone, one.cuts, one.splits, settings, job)
    alone = names.get(None)
    folder = Path(job.output, "searches", alone or digest(list(names.items()))[:16])
    search = CutSearch(
        models.get(None, models),
        train.get(None, train),
        validation.get(None, validation),
        settings.space(cuts.get(None, cuts)),
        settings.config(job.seed, job.plain),
        folder=settings.folder or folder,
        store=store,
        cluster=workers,
    )
    print(search.plan or "The ordinary way: each trial alone, the backbone run for every batch.")
    measured = [file for file in search.files.values() if isinstance(file, Figures)]
    if measured:
        seconds, sizes = ({getattr(one, name) for one in measured} for name in _FILE)
        print(
            f"{len(measured)} models measured as {settings.ship}: {1e3 * min(seconds):.3g} to "
            f"{1e3 * max(seconds):.3g} ms for one example on one thread, {min(sizes):,} to "
            f"{max(sizes):,} bytes."
        )
    for at, why in search.left_out.items():
        print(f"Left out: the cut {label(at)} ({why}).")
    return search


def search_digest(
    backbone: Backbone,
    cuts: Sequence[CutPoint],
    splits: Splits,
    settings: SearchSettings,
    job: SearchJobSettings,
) -> str:
    """Return the name of a search, the same in every process."""
    defaults, said = (
        one.model_dump(mode="json", exclude=_NOT_SEARCHED) for one in (SearchSettings(), settings)
    )
    # By its name, as when every task was a classification and it had one by default.
    said["objective"] = settings.objective or rules_of(splits.train.task).objective
    if settings.limits.bytes is None:  # which searches of before did not have
        del said["limits"]["bytes"]
    augmentation = splits.train.augmentation
    searched = {
        "backbone": backbone.digest,
        "cuts": [point.at for point in cuts],
        "train": splits.train.fingerprint,
        "validation": splits.validation.fingerprint,
        "settings": {
            BEFORE.get(name, name): value
            for name, value in said.items()
            if name in _ALWAYS or value != defaults[name]
        },
        "every_combination": settings.max_trials is None,
        "seed": job.seed,
        "plain": job.plain,
        **({} if augmentation is None else {"augment": augmentation.digest}),
    }
    return digest(searched)[:16]


def extract_features(search: CutSearch, folder: Path) -> TrialData | Mapping[str, TrialData]:
    """Log the plan to the active MLflow run, and compute the features that it stores.

    Args:
        search: A planned search.
        folder: Where `plan.json` and `plan.txt` are written.

    Raises:
        CacheError: The features are not finite, or cannot be stored.
    """
    if search.plan is not None:
        search.plan.save(folder / "plan.json")
        (folder / "plan.txt").write_text(f"{search.plan}\n")
        for name in ("plan.json", "plan.txt"):
            log_artifact(folder / name)
    return search.extract()


def search_cut(
    search: CutSearch, folder: Path, fresh: bool = False, trial_runs: int = 200
) -> Searched:
    """Run the trials that are not finished; each is a nested run of the active MLflow run.

    Trials that an earlier run of the same search finished are logged, too, and say so. Tables and
    figures are written to the folder and logged. Past `trial_runs` trials a trial is a row of the
    table `trials.json`, which is logged whenever a tenth more are finished; the best trial is a
    nested run in any case.

    Args:
        search: A planned search.
        folder: Where tables and figures are written.
        fresh: Discard what was found before and search anew.
        trial_runs: How many trials, the first ones, are nested runs.

    Raises:
        ConfigError: The folder of the search holds another one, or one that runs at this moment.
        ReusekitError: No trial succeeded; the first cause is named. Or none can be shipped.
    """
    began = perf_counter()
    resumed: dict[int, bool] = {}  # by the numbers of the trials that are logged
    rows = trial_runs
    with counted("Trials", search.config.max_trials) as step:

        def log(finished: TrialRecord | None = None) -> None:
            nonlocal rows
            # Those of before, with the first that finishes now.
            news = search.tuner.records if finished is None or not resumed else [finished]
            for record in news:
                if record.number not in resumed:
                    resumed[record.number] = record is not finished
                    if record.number < trial_runs:
                        log_trial(record, resumed[record.number])
                    step(f"Trials (last: {record.label}, {record.status})")
            if len(resumed) >= max(rows + _ROWS, rows * _MORE_ROWS):
                rows = len(resumed)
                log_table(search.results(), "trials.json")

        search.run(fresh=fresh, report=log, progress=lambda text: step(f"Trials ({text})", 0))
        log()
    best = search.result.best
    if best.number >= trial_runs:
        log_trial(best, resumed[best.number])
    seconds = perf_counter() - began
    log_metrics({"search_seconds": seconds, "search_resumed_trials": sum(resumed.values())})
    search.measure_latencies()  # so that the result has them
    result = search.result
    log_params({"objective": result.objective})  # which the settings may leave open
    if search.ranking is not None and len(result.cuts) > 1:
        agreements = {
            "ranking": search.rank_correlation(),
            "ranking_by_size": search.rank_correlation("size"),
        }
        for before, agreed in agreements.items():
            told = {f"{before}_kendall": agreed.kendall, f"{before}_weighted": agreed.weighted}
            log_metrics({name: value for name, value in told.items() if math.isfinite(value)})
    _log_tables(search, result, folder)
    _log_figures(search, result, folder)
    return Searched(search, result, sum(resumed.values()), seconds)


def _log_tables(search: CutSearch, result: SearchResult, folder: Path) -> None:
    tables: dict[str, pd.DataFrame] = {
        "cuts": result.cuts_frame(),
        "trials": result.to_frame(),
        "pareto_parameters": result.pareto("parameters"),
        "pareto_latency": result.pareto("latency"),
    }
    for cost in _costs_of_files(result):
        tables[f"pareto_{cost}"] = result.pareto(cost)
    if search.ranking is not None:
        tables["ranking"] = search.ranking
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
        log_table(table, f"{name}.json")


def _log_figures(search: CutSearch, result: SearchResult, folder: Path) -> None:
    names = ", ".join(name or one.graph.model.name for name, one in search.backbones.items())
    title = f"{names} on {search.train.name}"
    measure = result.objective.removeprefix("val_")
    is_share = rules_of(search.validation.task).reported == result.objective
    examples = search.validation.size if is_share else None
    figures = {
        f"{measure}_over_depth": objective_over_depth(result, title, examples),
        f"{measure}_over_parameters": objective_over_cost(result, "parameters", title),
        f"{measure}_over_latency": objective_over_cost(result, "latency", title),
    }
    for cost in _costs_of_files(result):
        figures[f"{measure}_over_{cost}"] = objective_over_cost(result, cost, title)
    for name, figure in figures.items():
        file = folder / f"{name}.png"
        figure.savefig(file, dpi=100)  # which fits the card, where MLflow shows it in full size
        log_artifact(file)


def _costs_of_files(result: SearchResult) -> list[str]:
    return [cost for cost in COSTS if cost.startswith("shipped_")] if result.files else []


def winner(candidates: Candidates, searched: Searched) -> tuple[Backbone, Splits]:
    """Return the backbone of the best trial, and the data as it takes them."""
    best = searched.result.best.spec.backbone
    one = next(one for one in candidates.those if one.name == best)
    assert one.splits is not None  # it was searched on them
    return one.backbone, one.splits
