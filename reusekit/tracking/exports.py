"""Exports of a registered version, as MLflow keeps them: files, figures, a section of its card."""

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from reusekit.data import DataSplit
from reusekit.errors import TrackingError
from reusekit.exports import Exports
from reusekit.tracking.card import with_exports
from reusekit.tracking.log import log_artifact, log_data, log_metrics, log_table, now
from reusekit.tracking.pages import set_card
from reusekit.tracking.registry import asking, logged_model_id, original_of
from reusekit.tracking.runs import pipeline_run


def log_exports(version: ModelVersion, exports: Exports, check: DataSplit) -> str:
    """Log exports in a run of their own, as metrics of the model, and on the version's card.

    Args:
        version: The version that they were made of.
        exports: The exports.
        check: The examples on which they were compared.

    Returns:
        The id of the run.

    Raises:
        TrackingError: The registry refuses.
    """
    client, name = MlflowClient(), f"export {version.name} version {version.version}"
    asked = {"model": version.name, "version": version.version}
    with (
        pipeline_run(name, _experiment_of(version), asked),
        asking(f"log the exports of version {version.version} of {version.name}"),
    ):
        log_data(check, "test")
        log_files(exports)
        active = mlflow.active_run()
        assert active is not None  # without an outbox
        run_id = active.info.run_id
        model_id = logged_model_id(original_of(version, client))
        time = now()
        client.log_batch(
            run_id,
            [
                Metric(name, value, time, 0, model_id=model_id)
                for name, value in figures_of(exports).items()
            ],
        )
        if model_id is not None:
            client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        _show(version, exports, run_id)
    return run_id


def _show(version: ModelVersion, exports: Exports, run_id: str) -> None:
    """Show exports on the card of a version."""
    client = MlflowClient()
    card = client.get_model_version(version.name, version.version).description or ""
    set_card(client, version, with_exports(card, exports, run_id))


def log_shipped(version: ModelVersion | None, exports: Exports) -> None:
    """Log exports to the active run, and show them on the card of the version that they are of.

    Args:
        version: The version; None where it waits for the server.
        exports: The exports.

    Raises:
        TrackingError: The registry refuses.
    """
    log_files(exports)
    log_metrics(figures_of(exports))
    active = mlflow.active_run()
    if version is not None and active is not None:
        with asking(f"show the exports of version {version.version} of {version.name}"):
            _show(version, exports, active.info.run_id)


def log_files(exports: Exports) -> None:
    """Log the files of exports, and their table, to the active run."""
    for one in exports:
        log_artifact(one.path, "exports")
    log_table(exports.to_frame().drop(columns="path"), "exports.json")


def figures_of(exports: Exports) -> dict[str, float]:
    """Return the figures of exports by the names of their metrics."""
    found: dict[str, float | None] = {}
    for one in exports:
        figures = {
            "bytes": one.file.bytes,
            "latency": one.file.latency,
            "latency_one_thread": one.file.latency_one_thread,
            one.measure or "measure": one.file.value,
            "lost": one.lost,
            "agreement": one.agreement,
            "max_difference": one.max_difference,
        }
        found |= {f"export.{one.name}.{name}": value for name, value in figures.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _experiment_of(version: ModelVersion) -> str | None:
    """Return the experiment that a version comes from; None where its run is gone."""
    client = MlflowClient()
    try:
        run = client.get_run(version.run_id or "")
        return client.get_experiment(run.info.experiment_id).name
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise TrackingError(
                f"Expected the run of {version.name} to be had. Received: {error}"
            ) from error
        return None
