"""The search stage: every cut's features in one pass, then trials on them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np

from reusekit.backbones import Backbone
from reusekit.data import DataSplit
from reusekit.errors import ReusekitError
from reusekit.features import extract_features
from reusekit.graph import CutPoint
from reusekit.progress import counted
from reusekit.search import (
    CutHyperModel,
    CutResult,
    CutSweepOracle,
    CutTuner,
    SearchResult,
    SearchSpace,
    TrialData,
    TrialRecord,
    accuracy_over_depth,
)
from reusekit.search.results import ranked
from reusekit.settings import HeadSettings, SearchSettings
from reusekit.stages.inputs import INFERENCE_BATCH, Splits
from reusekit.surgery import extract
from reusekit.tracking import log_history, step_run


def extract_pooled(backbone: Backbone, cuts: Sequence[CutPoint], splits: Splits) -> TrialData:
    """Tap all cuts in one pass over training and validation data, averaged over space.

    Args:
        backbone: What is cut.
        cuts: Where.
        splits: What to run it on; the test split is left alone.

    Returns:
        For each cut features of shape (examples, channels), with labels.

    Raises:
        ReusekitError: The features are not finite.
    """
    taps = extract(backbone.model, {point.at: point.at for point in cuts}, pooling="avg")

    def run(split: DataSplit, name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        batches = split.batches(INFERENCE_BATCH)
        return extract_features(taps, batches, split.size, description=f"Features of {name}")

    train, train_labels = run(splits.train, "train")
    validation, validation_labels = run(splits.validation, "validation")
    classes = splits.train.classes
    return TrialData(train, train_labels, validation, validation_labels, classes)


def search_cut(
    data: TrialData,
    cuts: Sequence[CutPoint],
    settings: SearchSettings,
    folder: Path,
    seed: int,
) -> SearchResult:
    """Search cut, head and learning rate; each trial is a nested run of the active MLflow run.

    The figure of accuracy over depth and the tables are written to the folder and logged.

    Args:
        data: Features of every cut.
        cuts: What to choose from, shallow to deep.
        settings: What the search tries.
        folder: Where trials, tables and figure are written.
        seed: Decides the trials, their initial weights and the order of batches.

    Returns:
        All trials, by cut.

    Raises:
        ReusekitError: No trial succeeded; the first cause is named.
    """
    space = SearchSpace(
        cuts=[point.at for point in cuts],
        units=settings.units,
        dropout=settings.dropout,
        learning_rate=settings.learning_rate,
    )
    hypermodel = CutHyperModel(
        data, space, settings.epochs, settings.patience, settings.batch_size, seed
    )
    oracle = CutSweepOracle(
        space.cuts,
        settings.max_trials,
        objective="val_accuracy",
        seed=seed + 1,  # keras-tuner takes 0 for no seed
    )
    with counted("Trials", settings.max_trials) as advance:
        tuner = CutTuner(hypermodel, oracle, folder / "search", _tracked(advance))
        try:
            tuner.search()
        except RuntimeError as error:  # keras-tuner gives up after three failures in a row
            raise ReusekitError(f"Three trials in a row failed: {tuner.failures[-1]}") from error
    if not tuner.records:
        raise ReusekitError(f"Every trial failed. The first cause: {tuner.failures[0]}")
    result = _by_cut(tuner.records, cuts)

    result.to_frame().to_csv(folder / "cuts.csv", index=False)
    result.trials_frame().to_csv(folder / "trials.csv", index=False)
    figure = accuracy_over_depth(result, "Validation accuracy over cut depth")
    figure.savefig(folder / "accuracy_over_depth.png", dpi=150)
    mlflow.log_figure(figure, "accuracy_over_depth.png")
    mlflow.log_table(result.to_frame(), "cuts.json")
    mlflow.log_table(result.trials_frame(), "trials.json")
    return result


def _tracked(advance):
    """Watch trials: a nested run for each, and a step of the progress bar."""

    @contextmanager
    def watch(number: int, values: Mapping[str, object]) -> Iterator:
        def finished(record: TrialRecord) -> None:
            log_history(record.fit.history)
            mlflow.log_metrics(
                {"best_val_accuracy": record.accuracy, "seconds": record.fit.seconds}
            )
            advance(f"Trials (last: {record.cut} {record.accuracy:.3f})")

        with step_run(f"trial {number:02d} {values['cut']}", "trial", values):
            yield finished

    return watch


def _by_cut(records: Sequence[TrialRecord], cuts: Sequence[CutPoint]) -> SearchResult:
    results = []
    for point in cuts:
        trials = ranked(record for record in records if record.cut == point.at)
        if trials:
            results.append(CutResult(point.at, point.depth, point.params_before, tuple(trials)))
    return SearchResult(tuple(results))


def head_of(trial: TrialRecord, settings: SearchSettings) -> HeadSettings:
    """The settings that train the head of a trial once more."""
    return HeadSettings(
        units=trial.values["units"],
        dropout=trial.values["dropout"],
        learning_rate=trial.values["learning_rate"],
        epochs=settings.epochs,
        patience=settings.patience,
        batch_size=settings.batch_size,
    )
