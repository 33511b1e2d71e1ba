"""Exports of a registered version, as MLflow keeps them: files, figures, a section of its card."""

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from reusekit.data import DataSplit
from reusekit.errors import TrackingError
from reusekit.exports import Export, Exports
from reusekit.tracking.card import with_exports
from reusekit.tracking.log import log_artifact, log_data, log_table, now
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
        for one in exports:
            log_artifact(one.path, "exports")
        log_table(exports.to_frame().drop(columns="path"), "exports.json")
        active = mlflow.active_run()
        assert active is not None  # without an outbox
        run_id = active.info.run_id
        model_id = logged_model_id(original_of(version, client))
        time = now()
        client.log_batch(
            run_id,
            [
                Metric(f"export.{one.name}.{figure}", float(value), time, 0, model_id=model_id)
                for one in exports
                for figure, value in _figures(one).items()
                if value is not None
            ],
        )
        if model_id is not None:
            client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        card = with_exports(version.description or "", exports, run_id)
        client.update_model_version(version.name, version.version, card)
    return run_id


def _figures(one: Export) -> dict[str, float | None]:
    return {
        "bytes": one.file.bytes,
        "latency": one.file.latency,
        "latency_one_thread": one.file.latency_one_thread,
        one.measure or "measure": one.file.value,
        "lost": one.lost,
        "agreement": one.agreement,
        "max_difference": one.max_difference,
    }


def _experiment_of(version: ModelVersion) -> str | None:
    """Return the experiment that a version comes from; None where its run is gone."""
    client = MlflowClient()
    try:
        run = client.get_run(version.run_id or "")
        return client.get_experiment(run.info.experiment_id).name
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise TrackingError(f"The run of {version.name} cannot be had: {error}") from error
        return None
