"""Trials as runs: a nested run for each, with what it was, what came of it and what it costs."""

from dataclasses import asdict

import mlflow

from reusekit.search import TrialRecord
from reusekit.tracking.runs import log_history, step_run

RESUMED = "reusekit.resumed"
CAUSE = "reusekit.cause"


def log_trial(record: TrialRecord, resumed: bool = False) -> None:
    """Log a finished trial as a nested run of the active run.

    Its specification becomes parameters; its history, the metrics of its best epoch, the seconds it
    took and the sizes of its whole model become metrics. A trial that failed, or whose model is
    over a limit, is a failed run with the cause in the tag `reusekit.cause`.

    Args:
        record: The trial.
        resumed: Whether it ran in an earlier process; said in the tag `reusekit.resumed`.
    """
    spec = {name: value for name, value in record.spec.to_dict().items() if value is not None}
    with step_run(f"trial {record.number:02d} {record.cut}", "trial", spec):
        mlflow.set_tag(RESUMED, str(resumed).lower())
        if record.fit is None:
            mlflow.set_tag(CAUSE, record.error)
            mlflow.end_run("FAILED")
            return
        log_history(record.fit.history)
        best = {f"best_{name}": value for name, value in record.metrics.items() if "val_" in name}
        mlflow.log_metrics(
            best | asdict(record.sizes) | {"seconds": record.fit.seconds, "trained": record.trained}
        )
