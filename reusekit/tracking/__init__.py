"""MLflow: runs, logged sub-models, parameter counts, the registry."""

from reusekit.tracking.backbones import find_registered_version
from reusekit.tracking.card import CardScore, ModelCard, model_card
from reusekit.tracking.combined import combine
from reusekit.tracking.exports import log_exports, log_shipped
from reusekit.tracking.ledger import Ledger, take_ledgers
from reusekit.tracking.linked import send
from reusekit.tracking.log import (
    EpochMetrics,
    describe,
    log_artifact,
    log_data,
    log_history,
    log_input,
    log_metrics,
    log_params,
    log_table,
    log_tags,
    send_models,
)
from reusekit.tracking.pages import link_findings
from reusekit.tracking.parts import ROLES, Registration, prepare
from reusekit.tracking.prediction import predict, predict_files, predict_table
from reusekit.tracking.promotion import promote, refuse, roll_back
from reusekit.tracking.registry import (
    RecordedSplit,
    champion,
    find_version,
    recorded_splits,
    set_alias,
)
from reusekit.tracking.report import find_run, report_page
from reusekit.tracking.runs import log_trial, pipeline_run, step_run
from reusekit.tracking.saved import requirements
from reusekit.tracking.server import connect, ui_command
from reusekit.tracking.stored import load_version
from reusekit.tracking.usage import Usage

__all__ = [
    "ROLES",
    "CardScore",
    "EpochMetrics",
    "Ledger",
    "ModelCard",
    "RecordedSplit",
    "Registration",
    "Usage",
    "champion",
    "combine",
    "connect",
    "describe",
    "find_registered_version",
    "find_run",
    "find_version",
    "link_findings",
    "load_version",
    "log_artifact",
    "log_data",
    "log_exports",
    "log_history",
    "log_input",
    "log_metrics",
    "log_params",
    "log_shipped",
    "log_table",
    "log_tags",
    "log_trial",
    "model_card",
    "pipeline_run",
    "predict",
    "predict_files",
    "predict_table",
    "prepare",
    "promote",
    "recorded_splits",
    "refuse",
    "report_page",
    "requirements",
    "roll_back",
    "send",
    "send_models",
    "set_alias",
    "step_run",
    "take_ledgers",
    "ui_command",
]
