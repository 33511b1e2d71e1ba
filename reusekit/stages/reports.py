"""The report at the end of a job."""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence

import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reusekit.exports import Exports
from reusekit.search import SearchResult
from reusekit.search.space import label
from reusekit.secrets import shown
from reusekit.settings import DataSettings, TrackingSettings
from reusekit.sharing import count_params
from reusekit.stages.baselines import Baseline
from reusekit.stages.evaluation import Evaluation
from reusekit.stages.fine_tuning import FineTuned
from reusekit.stages.job import Job
from reusekit.stages.registration import Scores
from reusekit.stages.search import Searched
from reusekit.tasks import SingleRules
from reusekit.tracking import ui_command

_MOST_SHOWN = 12
"""Classes, labels or numbers that are shown; the evaluation's run has all of them."""


def report(
    job: Job,
    tuned: FineTuned,
    scores: Scores,
    version: ModelVersion | None,
    tracking: TrackingSettings,
    exports: Exports | None = None,
    left_out: Mapping[str, str] = {},
) -> None:
    """Print the cuts, the winner and its baselines, its classes, the time spent, the next steps.

    Args:
        job: The finished job.
        tuned: Its model.
        scores: How good that is, and what it is compared with.
        version: Its version in the registry; None where the tracking server is away.
        tracking: Where that is.
        exports: The model as a file, where it is shipped as one.
        left_out: Backbones that could not be had, by source, with the reason.
    """
    test, searched = scores.test, scores.searched
    # As wide as it is where it goes into a pipe, which has no width of its own.
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    if searched is not None:
        out.print(_cuts(searched.result))
        for one, why in searched.search.left_out.items():
            out.print(f"Left out: the cut {escape(label(one))} ({escape(why)}).", soft_wrap=True)
        if searched.result.exports:
            out.print(_shipped(searched.result))
    out.print(_comparison(tuned, test, scores.baselines))
    for before, rules in tuned.rules.each():
        out.print(_outputs(test.tables[before], rules, before))
    out.print(job.clock.table())
    if searched is not None:
        out.print(_search(searched), soft_wrap=True)
    counts = count_params(tuned.whole)
    best = None if searched is None else searched.result.best.spec.backbone
    of = "" if best is None else f" of [bold]{escape(best)}[/bold]"
    out.print(
        f"Cut{of} at [bold]{escape(tuned.cut)}[/bold]: {counts.total:,} parameters "
        f"({counts.trainable:,} trainable, {counts.frozen:,} frozen, {counts.state:,} statistics).",
        soft_wrap=True,
    )
    if len(tuned.phases) == 1:
        out.print("All of the bottom stayed frozen: there was nothing to unfreeze before the cut.")
    for source, why in left_out.items():
        out.print(f"Left out: {escape(source)}. {escape(why)}", soft_wrap=True)
    for phase in tuned.phases:
        if not phase.kept:
            out.print(f"Phase {phase.name} made its objective no better and was undone.")
    if exports is not None:
        out.print(f"{escape(str(exports))}\nThe file: {escape(exports[0].path)}", soft_wrap=True)
    out.print(
        f"{_registered(version, tracking, job.settings.get('data'))}\n"
        f"Tables and figures: {escape(str(job.folder))}\n"
        f"See the run: {ui_command(job.tracking_uri)}",
        soft_wrap=True,
    )


def _registered(version: ModelVersion | None, tracking: TrackingSettings, data: object) -> str:
    """Return the registered name and how to load it, or that it waits."""
    if version is None:
        return (
            f"[bold]{tracking.model}[/bold] is not registered yet: its parts wait, with the other "
            "records, for the tracking server."
        )
    had = version.aliases
    where = f"@{had[0]}" if had else f"/{version.version}"
    named = f", alias [bold]{had[0]}[/bold]" if had else ""
    lines = [
        f"Registered: [bold]{version.name}[/bold] version {version.version}{named}. Load it with",
        f'  mlflow.keras.load_model("models:/{version.name}{where}")',
    ]
    if tracking.promoted not in had:
        words = ["python", "pipelines/promote.py", "--tracking.model", version.name]
        words += ["--promote.candidate", str(version.version)]
        words += ["--tracking.uri", shown(tracking.uri)] if tracking.uri else []
        words += test_data(data)
        lines.append(f"Compare it with the {tracking.promoted}: {shlex.join(words)}")
    return "\n".join(lines)


def test_data(data: object) -> list[str]:
    """Return the options of a command that finds the same test split; none without settings."""
    if not isinstance(data, DataSettings):
        return []
    of_training = {
        "train", "validation", "examples_per_class", "augment", "class_weights", "sequence_length",
    }  # fmt: skip
    told = data.model_dump(mode="json", exclude_defaults=True, exclude=of_training)
    pairs = (
        (f"--data.{name}", value if isinstance(value, str) else json.dumps(value))
        for name, value in told.items()
    )
    return [word for pair in pairs for word in pair]


def _search(searched: Searched) -> str:
    """Return how the trials were run, how long they took, and their folder."""
    search, ran = searched.search, len(searched.result.trials) - searched.resumed
    way = "the ordinary way" if search.config.plain else "as planned"
    lines = [f"Ran {ran} trials {way} in {searched.seconds:.1f} s."]
    if searched.resumed:
        lines.append(f"{searched.resumed} trials had been run before: --fresh runs them anew.")
    failed = [trial for trial in searched.result.trials if trial.status != "completed"]
    if failed:
        lines.append(f"{len(failed)} trials were not completed. The first cause: {failed[0].error}")
    if search.ranking is not None and len(searched.result.cuts) > 1:
        agreed, by_size = search.rank_correlation(), search.rank_correlation("size")
        lines.append(
            f"The ranking before training ({search.config.rank}) agrees with what the cuts reached "
            f"to {agreed.kendall:.2f} (Kendall's tau), one by size to {by_size.kendall:.2f}."
        )
    lines.append(f"The search is kept in {search.kept_in}; the same command goes on there.")
    return "\n".join(lines)


def _cuts(result: SearchResult) -> Table:
    table = Table(title="Cuts, shallow to deep")
    several = any(cut.backbone is not None for cut in result.cuts)
    for name in ("backbone", "cut") if several else ("cut",):
        table.add_column(name, no_wrap=True)
    objective = result.objective.replace("val_", "validation ").replace("_", " ")
    for name in ("FLOPs before", objective, "parameters", "trials", "training s"):
        table.add_column(name, justify="right")
    for cut in result.cuts:
        table.add_row(
            *([escape(str(cut.backbone))] if several else []),
            escape(cut.at),
            f"{cut.depth:.0%}",
            f"{cut.best.metrics[result.objective]:.3f}",
            f"{cut.best.sizes.parameters:,}",
            str(len(cut.trials)),
            f"{cut.seconds:.1f}",
            style="bold green" if cut.named_cut == result.best.named_cut else None,
        )
    return table


def _shipped(result: SearchResult) -> Table:
    """Return the trials that were exported, the best file first."""
    first = next(iter(result.exports.values()))
    measure = (first.measure or "measure").replace("_", " ")
    table = Table(title=f"The best trials as {first.name}, on {first.examples:,} examples")
    columns = ("bytes", "ms, one thread", f"{measure} of Keras", f"{measure} of the file")
    for name in ("trial", "cut", *columns):
        table.add_column(name, justify="left" if name == "cut" else "right")
    by_number = {trial.number: trial for trial in result.trials}
    for number, one in result.exports.items():
        measured = result.files.get(number, one.file)  # by which limits were decided
        table.add_row(
            str(number),
            escape(by_number[number].label),
            f"{measured.bytes:,}",
            f"{1e3 * measured.latency_alone:.3g}",
            *("-" if v is None else f"{v:.4g}" for v in (one.keras.value, one.file.value)),
            style="bold green" if number == result.best.number else None,
        )
    return table


def _comparison(tuned: FineTuned, test: Evaluation, baselines: Sequence[Baseline]) -> Table:
    measure = test.measure.replace("_", " ").capitalize()
    table = Table(title=f"{measure} on {test.examples:,} test examples")
    table.add_column("model", no_wrap=True)
    table.add_column("test", justify="right")
    table.add_column("validation", justify="right")
    table.add_column("chosen on the validation split")
    rows = [("transfer", test, tuned.validation, tuned.choice)]
    rows += [(b.name, b.test, b.validation, b.choice) for b in baselines]
    number = tuned.rules.numbers
    for name, measured, validation, chosen in rows:
        style = "bold green" if name == "transfer" else None
        table.add_row(
            escape(name),
            "{:{n}} ({:{n}} to {:{n}})".format(measured.value, *measured.interval, n=number),
            f"{validation:{number}}",
            escape(chosen),
            style=style,
        )
    table.caption = "In brackets: 95 % confidence, by the number of test examples."
    return table


def _outputs(table: pd.DataFrame, rules: SingleRules, before: str = "") -> Table:
    """Return the classes, labels or numbers that a model is worst at, of one task."""
    column, rises = rules.worst
    worst = table[table["examples"] > 0].sort_values(column, ascending=rises, kind="stable")
    kind, *columns = (str(name).replace("_", " ") for name in worst.columns)
    shown = f"The {_MOST_SHOWN} worst rows" if len(worst) > _MOST_SHOWN else "All"
    title = f"{shown} by {escape(before.replace('_', ' '))}{kind} on the test examples, worst first"
    found = Table(title=title)
    found.add_column(kind, no_wrap=True)
    for name in columns:
        found.add_column(name, justify="right")
    for row in worst.head(_MOST_SHOWN).itertuples(index=False):
        found.add_row(*map(_cell, row))
    return found


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) >= 1000 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
