"""Runs that read well: one parent, a nested run for each trial, phase and evaluation."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import time
from typing import Any, Literal

import keras
import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from reusekit.errors import TrackingError

KIND = "reusekit.kind"
_MOST_IN_A_BATCH = 1000  # MLflow's limit for metrics


@contextmanager
def pipeline_run(
    name: str, experiment: str, parameters: Mapping[str, Any]
) -> Iterator[mlflow.ActiveRun]:
    """The parent run of a pipeline; everything else is nested in it.

    Args:
        name: The run's name.
        experiment: The experiment it belongs to; made where it does not exist.
        parameters: The pipeline's settings, nested as they are; logged with dotted names.

    Yields:
        The run.

    Raises:
        TrackingError: The experiment cannot be used; it may have been deleted.
    """
    try:
        if "MLFLOW_RUN_ID" not in os.environ:  # `mlflow run` has opened the run already
            mlflow.set_experiment(experiment)
    except MlflowException as error:
        raise TrackingError(f"The experiment {experiment!r} cannot be used: {error}") from error
    with mlflow.start_run(run_name=name, tags={KIND: "pipeline"}) as run:
        mlflow.log_params(dotted(parameters))
        yield run


@contextmanager
def step_run(
    name: str,
    kind: Literal["trial", "phase", "evaluation"],
    parameters: Mapping[str, Any] = {},
    tags: Mapping[str, str] = {},
) -> Iterator[mlflow.ActiveRun]:
    """A nested run for one trial, training phase or evaluation; its kind is in a tag.

    Args:
        name: The run's name.
        kind: What it is for.
        parameters: Logged as they are.
        tags: What else is to be found by.

    Yields:
        The run.
    """
    with mlflow.start_run(run_name=name, nested=True, tags={KIND: kind, **tags}) as run:
        if parameters:
            mlflow.log_params(dict(parameters))
        yield run


def log_history(history: Mapping[str, list[float]], once: Mapping[str, float] = {}) -> None:
    """Log a whole training history to the active run at once, each value at its epoch.

    Args:
        history: Each metric's values by epoch, as Keras has them.
        once: Metrics with one value, logged with them: each call of MLflow costs some time.
    """
    now = int(time() * 1000)
    metrics = [
        Metric(name, float(value), now, epoch)
        for name, values in history.items()
        for epoch, value in enumerate(values)
    ]
    metrics += [Metric(name, float(value), now, 0) for name, value in once.items()]
    run_id = mlflow.active_run().info.run_id
    for first in range(0, len(metrics), _MOST_IN_A_BATCH):
        mlflow.MlflowClient().log_batch(run_id, metrics[first : first + _MOST_IN_A_BATCH])


class EpochMetrics(keras.callbacks.Callback):
    """Logs metrics to the active run while a model trains, each epoch at its own step.

    Args:
        first_step: The step of the first epoch: where an earlier phase ended, so that steps of one
            training never overlap.
    """

    def __init__(self, first_step: int = 0) -> None:
        super().__init__()
        self.first_step = first_step

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Log what Keras reports at the end of an epoch."""
        mlflow.log_metrics(dict(logs or {}), step=self.first_step + epoch)


def dotted(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted names.

    Example:
        >>> dotted({"data": {"name": "mnist"}, "seed": 1})
        {'data.name': 'mnist', 'seed': 1}
    """
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
