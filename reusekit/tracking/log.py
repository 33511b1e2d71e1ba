"""Logging to the innermost step's run: metrics, parameters, files, tables, models.

The functions mean what MLflow's of the same names mean. While the server is away, what they log is
kept and sent later.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any

import mlflow
import pandas as pd
from mlflow.data.dataset import Dataset
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from reusekit.data import DataSplit
from reusekit.errors import TrackingError
from reusekit.tracking.operations import LogArtifact, LogBatch, LogInput, SendModels
from reusekit.tracking.parameters import FOLDER, file_of, shortened
from reusekit.tracking.recorder import current


def now() -> int:
    """Return the milliseconds since 1970, as MLflow counts time."""
    return int(time() * 1000)


def log_metrics(metrics: Mapping[str, float], step: int = 0) -> None:
    """Log metrics.

    Args:
        metrics: Their values.
        step: The step that they belong to, such as an epoch.
    """
    log_steps({name: {step: value} for name, value in metrics.items()})


def log_steps(metrics: Mapping[str, Mapping[int, float]]) -> None:
    """Log metrics at many steps in one go.

    Args:
        metrics: Of each the values by step.
    """
    time = now()
    values = [
        (name, float(value), time, step)
        for name, by_step in metrics.items()
        for step, value in by_step.items()
    ]
    recording = current()
    recording.recorder.submit(LogBatch(recording.run, metrics=values))


def log_params(params: Mapping[str, Any]) -> None:
    """Log parameters; a value that is too long for MLflow is shortened, and kept as an artifact.

    Args:
        params: Their values.
    """
    recording = current()
    told, whole = shortened(params)
    recording.recorder.submit(LogBatch(recording.run, params=told))
    for name, value in whole.items():
        with TemporaryDirectory() as scratch:
            file = Path(scratch, file_of(name))
            file.write_text(value)
            log_artifact(file, FOLDER)


def describe(text: str) -> None:
    """Say what came of a run, where its page shows it; takes the place of what was said before.

    Args:
        text: Markdown.
    """
    recording = current()
    recording.recorder.submit(LogBatch(recording.run, tags={MLFLOW_RUN_NOTE: text}))


def log_input(dataset: Dataset, context: str) -> None:
    """Log a data set as an input.

    Args:
        dataset: As MLflow knows it.
        context: What it is for, such as `training`.
    """
    recording = current()
    recording.recorder.submit(LogInput(recording.run, dataset.to_dict(), context))


def log_data(split: DataSplit, context: str) -> None:
    """Log a split as an input, named by its content.

    Args:
        split: What is read.
        context: What for: `training`, `validation` or `test`.
    """
    log_input(mlflow.data.from_tfds(split), context)  # type: ignore[attr-defined]  # a plugin's


def log_artifact(local_path: str | Path, artifact_path: str | None = None) -> None:
    """Log a file or a folder as an artifact.

    Args:
        local_path: Where it lies.
        artifact_path: The folder of the artifact store in which it goes.

    Raises:
        TrackingError: There is no such file.
    """
    if not Path(local_path).exists():
        raise TrackingError(f"There is no file {local_path} to be logged.")
    recording = current()
    recording.recorder.submit(LogArtifact(recording.run, str(local_path), artifact_path))


def log_table(data: pd.DataFrame, artifact_file: str) -> None:
    """Log a table, which `mlflow.load_table` finds and the pages of a run show.

    Unlike MLflow's, it takes the place of a table of the same name and is not appended to it, so
    that it can be sent twice.

    Args:
        data: The table.
        artifact_file: Its name among the artifacts, ending in `.json`.

    Raises:
        TrackingError: The name ends otherwise.
    """
    if not artifact_file.endswith(".json"):
        raise TrackingError(f"Expected a table's name to end in .json. Received: {artifact_file}")
    recording = current()
    name = Path(artifact_file)
    folder = None if str(name.parent) == "." else name.parent.as_posix()
    with TemporaryDirectory() as scratch:
        file = Path(scratch, name.name)
        data.to_json(file, orient="split", index=False, date_format="iso")
        recording.recorder.submit(LogArtifact(recording.run, str(file), folder, table=True))


def send_models(folder: Path) -> ModelVersion | None:
    """Log and register the models that `reusekit.tracking.parts.prepare` has written.

    Args:
        folder: Where they lie. Where they are refused, it is moved to what waits.

    Returns:
        The version of the whole model; None where the server is away: the models then wait with
        everything else.

    Raises:
        TrackingError: The registry or the artifact store refuses. The models then wait likewise.
    """
    recording = current()
    operation = SendModels(recording.run, str(folder))
    try:
        return recording.recorder.submit(operation)
    except TrackingError as error:
        try:
            kept = recording.recorder.keep(operation)
            if kept:
                shutil.rmtree(folder)
        except TrackingError as full:
            kept = f"{full} The trained model lies in {folder / 'whole'} and beside it."
        raise TrackingError(f"{error} {kept}") from error
