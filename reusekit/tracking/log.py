"""Logging to the innermost step's run: metrics, parameters, data, files, tables, models.

The functions mean what MLflow's of the same names mean. While the server is away, what they log is
kept and sent later.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import time
from typing import Any
from urllib.parse import quote

import keras
import mlflow
import pandas as pd
from mlflow.data.dataset import Dataset
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from reusekit.data import DataSplit
from reusekit.errors import TrackingError
from reusekit.tracking.operations import LogArtifact, LogBatch, LogInput, SendModels
from reusekit.tracking.recorder import current

_LONGEST = 6000  # characters of a parameter that MLflow takes
_SHOWN = 500  # characters of a longer one, which is as much as its pages show well


def now() -> int:
    """Return the milliseconds since 1970, as MLflow counts time."""
    return int(time() * 1000)


def log_metrics(metrics: Mapping[str, float], step: int = 0) -> None:
    """Log metrics at a step, such as an epoch."""
    _log_steps({name: {step: value} for name, value in metrics.items()})


def log_history(history: Mapping[str, list[float]], once: Mapping[str, float] = {}) -> None:
    """Log a whole training history at once, each value at its epoch.

    Args:
        history: Each metric's values by epoch, as Keras has them.
        once: Metrics with one value, logged with them: each call of MLflow costs some time.
    """
    by_epoch = {name: dict(enumerate(values)) for name, values in history.items()}
    _log_steps(by_epoch | {name: {0: value} for name, value in once.items()})


def _log_steps(metrics: Mapping[str, Mapping[int, float]]) -> None:
    time = now()
    values = [
        (name, float(value), time, step)
        for name, by_step in metrics.items()
        for step, value in by_step.items()
    ]
    current().write(LogBatch, metrics=values)


class EpochMetrics(keras.callbacks.Callback):
    """Logs metrics while a model trains, each epoch at its own step.

    Args:
        first_step: The step of the first epoch: where an earlier phase ended, so that steps of one
            training never overlap.
    """

    def __init__(self, first_step: int = 0) -> None:
        super().__init__()
        self.first_step = first_step

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Log what Keras reports at the end of an epoch."""
        log_metrics(logs or {}, step=self.first_step + epoch)


def log_params(params: Mapping[str, Any]) -> None:
    """Log parameters, any values as text.

    One that is too long for MLflow is shortened and says where the whole of it is: in an artifact
    of the folder `parameters`.

    Args:
        params: Their values.
    """
    whole = {name: str(value) for name, value in params.items()}
    long = {name: f"{quote(name, safe=' ')}.txt" for name in whole if len(whole[name]) > _LONGEST}
    shortened = {
        name: f"{whole[name][:_SHOWN]}... ({len(whole[name]):,} characters; whole in "
        f"parameters/{file})"
        for name, file in long.items()
    }
    current().write(LogBatch, params=whole | shortened)
    with TemporaryDirectory() as scratch:
        for name, file in long.items():
            path = Path(scratch, file)
            path.write_text(whole[name])
            log_artifact(path, "parameters")


def describe(text: str) -> None:
    """Describe the outcome of a run in Markdown on its page, in place of what stood there."""
    current().write(LogBatch, tags={MLFLOW_RUN_NOTE: text})


def log_tags(tags: Mapping[str, str]) -> None:
    """Set tags of the current run."""
    current().write(LogBatch, tags=dict(tags))


def log_input(dataset: Dataset, context: str) -> None:
    """Log a data set of MLflow's as an input, with its use, such as `training`."""
    current().write(LogInput, dataset=dataset.to_dict(), context=context)


def log_data(split: DataSplit, context: str) -> None:
    """Log a split as an input, named by its content, for `training`, `validation` or `test`.

    Of texts that became tokens it is the texts that are logged.
    """
    log_input(mlflow.data.from_tfds(split.raw or split), context)  # type: ignore[attr-defined]  # a plugin's


def log_artifact(local_path: str | Path, artifact_path: str | None = None) -> None:
    """Log a file or a folder as an artifact.

    Args:
        local_path: Where it lies.
        artifact_path: The folder of the artifact store in which it goes.

    Raises:
        TrackingError: There is no such file.
    """
    if not Path(local_path).exists():
        raise TrackingError(
            f"Expected a file or folder to log. Received: {local_path}, which is not there. Check "
            "its path."
        )
    current().write(LogArtifact, path=str(local_path), folder=artifact_path)


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
    name = Path(artifact_file)
    folder = None if str(name.parent) == "." else name.parent.as_posix()
    with TemporaryDirectory() as scratch:
        file = Path(scratch, name.name)
        data.to_json(file, orient="split", index=False, date_format="iso")
        current().write(LogArtifact, path=str(file), folder=folder, table=True)


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
            kept = f"{full} See {folder / 'whole'} for the trained model, and beside it."
        raise TrackingError(f"{error} {kept}") from error
