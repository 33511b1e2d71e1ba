"""Trials as runs: a nested run for each, with what it was, what came of it and what it costs."""

from reusekit.search import TrialRecord
from reusekit.tracking.runs import log_history, step_run

RESUMED = "reusekit.resumed"
CAUSE = "reusekit.cause"
_LONGEST = 5000  # characters of a tag that every store of MLflow takes


def log_trial(record: TrialRecord, resumed: bool = False) -> None:
    """Log a finished trial as a nested run of the run that is written to.

    Its specification becomes parameters; its history, the metrics of its best epoch, the seconds it
    took and the sizes of its whole model become metrics. A trial that failed, or whose model is
    over a limit, is a failed run with the cause in the tag `reusekit.cause`.

    Args:
        record: The trial.
        resumed: Whether it ran in an earlier process; said in the tag `reusekit.resumed`.
    """
    spec = {name: value for name, value in record.spec.to_dict().items() if value is not None}
    tags = {RESUMED: str(resumed).lower()}
    if record.error is not None:
        tags[CAUSE] = record.error[:_LONGEST]
    name = f"trial {record.number:02d} {record.cut}"
    seconds = 0 if record.fit is None else record.fit.seconds
    with step_run(name, "trial", spec, tags, seconds) as step:
        if record.fit is None:
            step.status = "FAILED"
            return
        best = {
            f"best_{metric}": value
            for metric, value in record.metrics.items()
            if metric.startswith("val_")
        }
        costs = {
            # By the names that they have on logged models.
            "parameters.total": record.sizes.parameters,
            "parameters.trainable": record.trained,
            "flops": record.sizes.flops,
            "bytes": record.sizes.bytes,
            "seconds": seconds,
        }
        log_history(record.fit.history, best | costs)
