"""The stages of a promotion: a candidate beside the champion on data that neither has seen."""

import json
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf
from mlflow.entities.model_registry import ModelVersion
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from rich.console import Console
from rich.table import Table

from reusekit import tracking
from reusekit.data import DataSplit, Task
from reusekit.data.treatment import treatment_for
from reusekit.errors import ConfigError, DataError, ReusekitError
from reusekit.features.stored import fits
from reusekit.graph import read
from reusekit.progress import bars_wanted, say
from reusekit.settings import DataSettings, PromoteSettings, TrackingSettings
from reusekit.stages.comparison import Comparison, paired_bootstrap
from reusekit.stages.evaluation import predict
from reusekit.stages.inputs import counts_of, open_split
from reusekit.tasks import SingleRules, TaskRules, rules_of
from reusekit.tracking.names import DATA, THRESHOLDS
from reusekit.tracking.network import shown

PLACES = {"load": "data_dir", "from_folder": "folder", "from_table": "table"}
"""The setting that says where the data of a reader lie."""

_FEWEST = 30  # an interval that is resampled from fewer examples says nothing


@dataclass(frozen=True)
class Contest:
    """The candidate and the champion of a comparison.

    Attributes:
        candidate: The version that may get the alias.
        champion: The version that has it; None where none has it yet.
    """

    candidate: ModelVersion
    champion: ModelVersion | None


@dataclass(frozen=True)
class Tested:
    """A version on the held-out split.

    Attributes:
        version: The version.
        split: What it was tested on, of the size that it takes.
        outputs: What it says of each example, in the order of the split's classes, labels or
            numbers.
        labels: What is true of each example, as `TaskRules.targets` returns it.
        rules: The rules of the task, with the thresholds of the version.
        unknown: Why the split could not be compared with what it was trained and chosen on; empty
            where it was.
    """

    version: ModelVersion
    split: DataSplit
    outputs: np.ndarray
    labels: np.ndarray
    rules: TaskRules
    unknown: str

    @property
    def parts(self) -> np.ndarray:
        """Return what each example adds to the measure."""
        return self.rules.parts(self.outputs, self.labels)

    @property
    def goodness(self) -> np.ndarray:
        """Return how good it is about each example."""
        return self.rules.goodness(self.outputs, self.labels)

    @property
    def value(self) -> float:
        """The measure of the task."""
        return self.rules.value(self.outputs, self.labels)


@dataclass(frozen=True)
class Verdict:
    """The decision on a candidate's alias, and its reason.

    Attributes:
        candidate: The candidate, tested.
        champion: The champion, tested; None where there is none.
        comparison: The two of them; None where there is no champion.
        wins: Whether the candidate gets the alias.
        why: The reason, in words.
    """

    candidate: Tested
    champion: Tested | None
    comparison: Comparison | None
    wins: bool
    why: str


def find_contest(settings: PromoteSettings, registry: TrackingSettings) -> Contest:
    """Look up the candidate, and the version that has the alias.

    Args:
        settings: Which version the candidate is.
        registry: The name in the registry, and the alias.

    Raises:
        TrackingError: There is no such name, version or alias; the message names those there are.
        ConfigError: The candidate has the alias already.
    """
    candidate = tracking.find_version(registry.model, settings.candidate)
    champion = tracking.champion(registry.model, registry.promoted)
    if champion is not None and int(champion.version) == int(candidate.version):
        raise ConfigError(
            f"Expected a candidate without the alias {registry.promoted!r}. Received: version "
            f"{candidate.version} of {registry.model}, which has it already. Name another with "
            "--promote.candidate; a model that is trained while there is a champion is registered "
            "without becoming it."
        )
    return Contest(candidate, champion)


def evaluate_version(version: ModelVersion, data: DataSettings) -> Tested:
    """Load a version and let it predict the held-out split.

    Args:
        version: A registered model with one input, or texts alone, and one output, or some by
            name.
        data: The data set, whose split `test` is held out. Images are resized to what the version
            takes.

    Raises:
        TrackingError: The version cannot be loaded.
        ConfigError: It does not fit the data, was trained or chosen on some of them, or they are
            too few.
        DataError: The data cannot be read.
    """
    model = _load(version)
    split = _held_out(version, model, data)
    recorded = tracking.recorded_splits(version)
    unknown = _refuse_known(version, recorded, split, data)
    rules = rules_of(split.task)
    names = next((one.class_names for one in recorded if one.context == "training"), ())
    orders = [
        _class_order(version, of_task(names, before), one.task, split)
        for before, one in rules.each()
    ]
    given, labels = predict(model, split)
    thresholds = json.loads(version.tags.get(THRESHOLDS, "null"))
    parts = [
        _in_order(order, one, part, of_task(thresholds, before))
        for order, (before, one, part) in zip(orders, rules.each(given), strict=True)
    ]
    rules, outputs = rules.gathered(parts)
    return Tested(version, split, outputs, labels, rules, unknown)


def of_task(values: Any, before: str) -> Any:
    """Return what is on record of a task, of values that go by name where there are several."""
    return values.get(before.removesuffix("_")) if isinstance(values, Mapping) else values


def _in_order(
    order: np.ndarray, rules: SingleRules, given: np.ndarray, thresholds: Sequence[float] | None
) -> tuple[SingleRules, np.ndarray]:
    """Return the rules of a task with a version's thresholds, and its outputs, as the split is."""
    outputs = np.empty_like(given)
    outputs[:, order] = given
    if thresholds is None:
        return rules, outputs
    chosen = np.empty(len(order))
    chosen[order] = thresholds
    return replace(rules, thresholds=tuple(chosen.tolist())), outputs  # type: ignore[call-arg]  # of labels


def judge(
    candidate: Tested, champion: Tested | None, settings: PromoteSettings, seed: int
) -> Verdict:
    """Decide whether a candidate wins by the margin; the first champion needs no rival.

    Args:
        candidate: The candidate, tested.
        champion: The champion, tested on the same examples; None where there is none.
        settings: The margin, and how sure it has to be.
        seed: Decides the resamples.

    Raises:
        ConfigError: The margin is beyond any difference of the measure.
    """
    rules = candidate.rules
    if rules.maximize and not -1 < settings.margin < 1:
        raise ConfigError(
            f"Expected promote.margin, a difference of {rules.measure}, to be above -1 and below "
            f"1. Received: {settings.margin:g}."
        )
    on = f"{len(candidate.labels)} examples of {candidate.split.name}, {candidate.split.split}"
    if champion is None:
        why = f"no version had it before; {rules.measure} {candidate.value:.4f} on {on}"
        return Verdict(candidate, None, None, True, why)
    comparison = paired_bootstrap(
        candidate.parts, champion.parts, rules, settings.confidence, settings.resamples, seed
    )
    wins = comparison.low > settings.margin
    why = (
        f"{comparison}, which is {'' if wins else 'not '}wholly above the margin of "
        f"{settings.margin:g}; compared with version {champion.version.version} on {on}"
    )
    return Verdict(candidate, champion, comparison, wins, why)


def carry_out(
    verdict: Verdict,
    settings: PromoteSettings,
    registry: TrackingSettings,
    folder: Path,
    seed: int,
) -> None:
    """Move the alias if the candidate has won, and record the decision either way.

    A run of kind `evaluation` gets both measures, their difference, its interval, the reason and
    what each version said of every example; the candidate gets a tag with the reason. Where the
    alias cannot be moved, the run is a failed one.

    Args:
        verdict: What was decided.
        settings: By which rule.
        registry: The name and alias that are moved, and the experiment of the run.
        folder: Where `predictions.csv` is written.
        seed: What decided the resamples.

    Raises:
        TrackingError: The alias was moved by another process meanwhile, or cannot be moved.
    """
    number = int(verdict.candidate.version.version)
    champion = None if verdict.champion is None else int(verdict.champion.version.version)
    parameters = {
        "promote": settings.model_dump() | {"candidate": number, "champion": champion},
        "model": registry.model,
        "alias": registry.promoted,
        "seed": seed,
    }
    decision = {
        "reusekit.decision": "promote" if verdict.wins else "refuse",
        "reusekit.why": verdict.why,
    }
    with (
        # Without an outbox: an alias cannot be moved once the server is back, only now.
        tracking.pipeline_run("promote", registry.experiment, parameters),
        tracking.step_run(f"{registry.model} version {number}", "evaluation", tags=decision),
    ):
        tracking.log_data(verdict.candidate.split, "test")
        tracking.log_metrics(_metrics(verdict))
        tracking.log_artifact(_write_predictions(verdict, folder))
        active: Any = mlflow.active_run()
        why = f"{verdict.why}; run {active.info.run_id}"
        if verdict.wins:
            tracking.promote(registry.model, registry.promoted, number, champion, why)
        else:
            tracking.refuse(registry.model, registry.promoted, number, why)


def roll_back(registry: TrackingSettings, reason: str) -> tuple[int, int]:
    """Give the alias back to the version that had it before.

    Args:
        registry: Where the registry is, the name in it, and the alias.
        reason: Why; kept in a tag of the version that loses it.

    Returns:
        The numbers of the version that had it, and of the one that has it now.

    Raises:
        TrackingError: The registry does not answer, or there is nothing to go back to.
    """
    tracking.connect(registry.uri, registry.model)
    return tracking.roll_back(registry.model, registry.promoted, reason)


def report_verdict(verdict: Verdict, registry: TrackingSettings, dry_run: bool) -> None:
    """Print both versions, the decision with its reason, and how to go back.

    Args:
        verdict: What was decided.
        registry: The name and the alias.
        dry_run: Whether it was left at that.
    """
    out = Console(highlight=False)
    tested = [one for one in (verdict.candidate, verdict.champion) if one is not None]
    measure = tested[0].rules.measure.replace("_", " ")
    table = Table("version", measure, "better alone", title="On the held-out split")
    for one in tested:
        others = [other.goodness for other in tested if other is not one]
        alone = str(np.count_nonzero(one.goodness > others[0])) if others else "-"
        table.add_row(str(one.version.version), f"{one.value:.4f}", alone)
    out.print(table)
    for one in tested:
        if one.unknown:
            out.print(
                f"Whether version {one.version.version} has seen this split cannot be told. Of "
                f"its training data: {one.unknown.rstrip('.')}.",
                markup=False,
                soft_wrap=True,
            )
    number, alias = verdict.candidate.version.version, f"{registry.model}@{registry.promoted}"
    won = f"{'would become' if dry_run else 'is now'} {alias}"
    lost = f"does not become {alias}"
    out.print(f"Version {number} {won if verdict.wins else lost}: {verdict.why}.", soft_wrap=True)
    if dry_run:
        out.print("A dry run: nothing was written.")
    elif verdict.champion is not None and verdict.wins:
        words = ["python", "pipelines/rollback.py"]
        words += ["--tracking.model", registry.model, "--tracking.alias", registry.promoted]
        words += ["--tracking.uri", shown(registry.uri)] if registry.uri else []
        before = verdict.champion.version.version
        out.print(f"Back to version {before}: {shlex.join(words)}", soft_wrap=True)


def _write_predictions(verdict: Verdict, folder: Path) -> Path:
    """Write what each version says of every example, a column for each label or number."""
    tested = {"candidate": verdict.candidate, "champion": verdict.champion}
    said = {"label": verdict.candidate.labels}
    said |= {who: one.rules.decided(one.outputs) for who, one in tested.items() if one is not None}
    columns = {}
    for before, rules, *parts in verdict.candidate.rules.each(*said.values()):
        for who, values in zip(said, parts, strict=True):
            found = values.reshape(len(values), -1).T
            for name, column in zip(rules.task.names, found, strict=False):
                words = [who, before.removesuffix("_"), name if len(found) > 1 else ""]
                columns[" ".join(filter(None, words))] = column
    file = folder / "predictions.csv"
    pd.DataFrame(columns).to_csv(file, index_label="example")
    return file


def _load(version: ModelVersion) -> keras.Model:
    """Return the model of a version, with one input or texts, and one output or some by name."""
    uri = f"models:/{version.name}/{version.version}"
    if not bars_wanted() and not MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.is_set():
        MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    model = tracking.load_version(version)
    inputs, outputs = (getattr(model, tensors, ()) for tensors in ("inputs", "outputs"))
    alike = len(inputs) == 1 or {tensor.dtype for tensor in inputs} == {"string"}
    if not alike or (len(outputs) != 1 and not isinstance(model.output, dict)):
        raise ConfigError(
            "Expected a model with one input and one output: an image or texts, and a number for "
            "each class, label or number to predict, or a dictionary of several tasks. Received: "
            f"{uri} with {len(inputs)} inputs and {len(outputs)} outputs. Name another version "
            "with --promote.candidate."
        )
    return model


def _held_out(version: ModelVersion, model: keras.Model, data: DataSettings) -> DataSplit:
    """Return the test split, in the shape that a model takes."""
    takes = {tensor.address: tuple(tensor.shape[1:]) for tensor in read(model).inputs}
    first, gives = next(iter(takes)), _widths(model)
    if any(None in shape for shape in takes.values()):
        raise ConfigError(
            "Expected a version with an input size of its own, as every version that a pipeline "
            f"registers has. Received: version {version.version} of {version.name}, which takes "
            "inputs of any size. Name another with --promote.candidate."
        )
    shaped = {} if model.inputs[0].dtype == "string" else treatment_for(takes[first])
    treatment = data.treatment(**shaped, examples_per_class=None)
    split = open_split(data, data.test, treatment)
    wanted: Any = {name: (part.size,) for name, part in split.task.by_name.items()}
    wanted = wanted or (split.classes,)
    spec = split.examples.element_spec[0]
    given = {first: spec} if isinstance(spec, tf.TensorSpec) else spec
    known = given.keys() == takes.keys()
    if not known or gives != wanted or not all(fits(given[n].shape, takes[n]) for n in takes):
        raise ConfigError(
            f"Expected version {version.version} of {version.name} to turn shape "
            f"{split.input_shape} into {wanted}, as the task of {split.name}, a {split.task.kind}, "
            f"asks for. Received: {takes if len(takes) > 1 else takes[first]} into {gives}."
        )
    counts_of(split)
    if split.size < _FEWEST:
        raise ConfigError(
            f"Expected {_FEWEST} examples at least, since fewer tell no two versions apart. "
            f"Received: {split.size} in {split.name}, {split.split}. Choose a larger split as "
            "data.test."
        )
    return split


def _widths(model: keras.Model) -> Any:
    """Return the shape of a model's output without the batch axis, of several by name."""
    if len(model.outputs) == 1:  # a Sequential has no `output`
        return tuple(model.outputs[0].shape[1:])
    return {name: tuple(tensor.shape[1:]) for name, tensor in model.output.items()}


def _class_order(
    version: ModelVersion, names: Sequence[str] | None, task: Task, split: DataSplit
) -> np.ndarray:
    """Return the number among a task's classes of each class of a version, shape (classes,).

    A data set may list its classes in another order today than when the version was trained. Where
    the version's classes are not on record, they are taken to be those of the split.
    """
    if not names or tuple(names) == task.names:
        return np.arange(task.size)
    if len(set(names)) < len(names) or set(names) != set(task.names):
        strange = sorted(set(names) ^ set(task.names)) or list(names)
        raise ConfigError(
            f"Expected version {version.version} of {version.name} to be trained on the classes of "
            f"{split.name}, once each. Received: one trained on other classes: "
            f"{reprlib.repr(strange)} differ. Name data with the same classes, or train the "
            "version anew."
        )
    return np.array([task.names.index(name) for name in names])


def _refuse_known(
    version: ModelVersion,
    recorded: Sequence[tracking.RecordedSplit],
    split: DataSplit,
    data: DataSettings,
) -> str:
    """Refuse a split that a version was trained or chosen on; return why that cannot be told."""
    fingerprint = version.tags.get(DATA)
    shared = "training" if fingerprint == split.fingerprint else None
    unknown = "" if any(one.context == "training" for one in recorded) else "it is not on record"
    for one in recorded:
        if one.context not in ("training", "validation") or shared is not None:
            continue
        try:
            seen = _read_again(one, data)
        except ReusekitError as error:  # an older version of the data set, for instance
            unknown = f"{one.name}, {one.split}, cannot be read again: {error}"
            continue
        if seen.fingerprint != one.source.fingerprint:  # shares draw other parts of more examples
            unknown = f"{one.name}, {one.split}, has other examples now than when it was trained"
            if seen.name != one.name:  # parts of another folder or table, which nobody was shown
                unknown = f"{one.name}, {one.split}, is not where the settings say: {seen.name}"
                continue
        if seen.overlaps(split):
            shared = one.context
        elif equal := split.equal_examples(seen):
            say(
                f"warning: the content of {equal:,} of {split.size:,} examples of data.test="
                f"{data.test!r} is in the {one.context} data of version {version.version}, too."
            )
    if shared is not None:
        raise ConfigError(
            f"Expected a split that version {version.version} of {version.name} has not seen. "
            f"Received: data.test={data.test!r}, which shares examples with its {shared} data. "
            "Choose another as data.test."
        )
    return unknown


def _read_again(recorded: tracking.RecordedSplit, data: DataSettings) -> DataSplit:
    """Read a recorded split where the data lie now.

    Raises:
        DataError: It cannot be read there.
    """
    place = PLACES.get(recorded.source.reader)
    if place is None:
        return recorded.source.load_as_it_is()  # which says that it was in memory
    where = getattr(data, place)
    if where is None and place != "data_dir":
        raise DataError(f"Expected data.{place} to say where they lie. Received: None.")
    return recorded.source.load_as_it_is(**{"path" if place == "folder" else place: where})


def _metrics(verdict: Verdict) -> dict[str, float]:
    if verdict.comparison is None:
        return {f"candidate_{verdict.candidate.rules.measure}": verdict.candidate.value}
    measure = verdict.comparison.measure
    return {
        f"candidate_{measure}": verdict.comparison.candidate,
        f"champion_{measure}": verdict.comparison.champion,
        "difference": verdict.comparison.difference,
        "difference_low": verdict.comparison.low,
        "difference_high": verdict.comparison.high,
    }
