"""MLflow: runs, logged sub-models, parameter counts, the registry."""

from reusekit.tracking.datasets import log_data
from reusekit.tracking.models import log_parts, register
from reusekit.tracking.runs import EpochMetrics, log_history, pipeline_run, step_run
from reusekit.tracking.server import connect, ui_command
from reusekit.tracking.trials import log_trial

__all__ = [
    "EpochMetrics",
    "connect",
    "log_data",
    "log_history",
    "log_parts",
    "log_trial",
    "pipeline_run",
    "register",
    "step_run",
    "ui_command",
]
