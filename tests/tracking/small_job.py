"""A job that writes all that reusekit writes to MLflow, and what is there of it afterwards."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import numpy as np
import pandas as pd

from reusekit.search import TrialRecord
from reusekit.search.space import TrialSpec
from reusekit.tracking import (
    EpochMetrics,
    log_artifact,
    log_history,
    log_input,
    log_metrics,
    log_params,
    log_table,
    log_trial,
    pipeline_run,
    step_run,
)
from reusekit.training import Fit


def run_job(
    outbox: Path | None,
    happens: Callable[[str], None] = lambda moment: None,
    experiment: str = "weak",
) -> None:
    """Run the job.

    Args:
        outbox: As for `pipeline_run`.
        happens: Called with the names of the moments at which something may happen: `begun`,
            `epoch 0`, `epoch 1`, `epoch 2`, `trials`, `files`, `end`.
        experiment: Where to.
    """
    with pipeline_run("job", experiment, {"seed": 1, "data": {"name": "noise"}}, outbox):
        happens("begun")
        for context in ("training", "test"):
            data = mlflow.data.from_numpy(np.arange(3.0), name=context)
            log_input(data, context)
        with step_run("phase head", "phase", {"rate": 0.1}, {"reusekit.note": "warm"}):
            callback = EpochMetrics(first_step=2)
            for epoch in range(3):
                happens(f"epoch {epoch}")
                callback.on_epoch_end(epoch, {"loss": 1 / (epoch + 1), "bad": float("nan")})
            log_params({"kept": True})
        happens("trials")
        history = {"val_loss": [0.5, 0.25], "val_accuracy": [0.5, 0.75]}
        log_trial(TrialRecord(0, SPEC, {}, "completed", Fit(history, 1, 0.5)))
        log_trial(TrialRecord(1, SPEC, {}, "failed", error="it was never finite"), resumed=True)
        with step_run("test", "evaluation"):
            log_metrics({"accuracy": 0.75, "loss": 0.25})
            log_history({"lift": [1.0, 2.0]}, {"area": 0.9})
        happens("files")
        with TemporaryDirectory() as folder:
            notes = Path(folder) / "notes"
            notes.mkdir()
            for name in ("one.txt", "two.txt"):
                (notes / name).write_text(name)
            log_artifact(notes / "one.txt")
            log_artifact(notes, "folder")
        for name in ("cuts.json", "tables/trials.json"):
            log_table(pd.DataFrame({"cut": ["a", "b"], "accuracy": [0.5, 0.75]}), name)
        log_metrics({"test_accuracy": 0.75})
        happens("end")


SPEC = TrialSpec("block3_out", "block2_out", learning_rate=1e-3)

_EXPECTED_TAGS = ("reusekit.kind", "reusekit.note", "reusekit.resumed", "reusekit.cause")


def what_is_there(
    client: mlflow.MlflowClient, experiment: str = "weak", artifacts: Path | None = None
) -> list[dict]:
    """All runs of an experiment, with all that is in them, in an order of their own.

    Args:
        client: Of the database.
        experiment: The name.
        artifacts: Where a server keeps its artifacts; None for runs that were made without one.
    """
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], order_by=["attributes.start_time"])
    names = {run.info.run_id: run.info.run_name for run in runs}
    return sorted(
        (_told(client, run, names, artifacts) for run in runs),
        key=lambda told: (told["name"], str(told)),
    )


def _told(
    client: mlflow.MlflowClient,
    run: mlflow.entities.Run,
    names: dict[str, str],
    artifacts: Path | None,
) -> dict:
    run_id, tags = run.info.run_id, run.data.tags
    assert run.info.end_time is None or run.info.start_time <= run.info.end_time
    assert tags["mlflow.source.name"]
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "parent": names.get(tags.get("mlflow.parentRunId")),
        "params": run.data.params,
        "tags": {name: tags[name] for name in _EXPECTED_TAGS if name in tags},
        "tables": tags.get("mlflow.loggedArtifacts"),
        "metrics": {
            # As text, since no number equals itself that is none.
            name: sorted((m.step, str(m.value)) for m in client.get_metric_history(run_id, name))
            for name in run.data.metrics
        },
        "inputs": sorted(
            (one.dataset.name, one.dataset.digest, *(tag.value for tag in one.tags))
            for one in run.inputs.dataset_inputs
        ),
        "files": _files(run, artifacts),
    }


def _files(run: mlflow.entities.Run, artifacts: Path | None) -> dict[str, str]:
    """The run's artifacts, read where the store keeps them."""
    kept = run.info.artifact_uri
    root = Path(kept) if artifacts is None else artifacts / kept.removeprefix("mlflow-artifacts:/")
    return {
        str(file.relative_to(root)): file.read_text() for file in root.rglob("*") if file.is_file()
    }
