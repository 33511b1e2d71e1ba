"""A split in MLflow: named by content, and found again from what MLflow stored."""

import json

import mlflow

from reusekit.tracking import log_data
from reusekit.tracking.datasets import TFDSSource


def test_a_logged_split_can_be_loaded_again(tracking, digits):
    with mlflow.start_run() as run:
        log_data(digits, "training")
    (logged,) = tracking.get_run(run.info.run_id).inputs.dataset_inputs
    assert logged.dataset.name == "sklearn_digits:1.0.0"
    assert logged.dataset.digest == digits.fingerprint
    assert {tag.value for tag in logged.tags} == {"training"}
    assert json.loads(logged.dataset.profile) == {"examples": 897}
    assert json.loads(logged.dataset.schema)["classes"] == 10
    again = TFDSSource.from_json(logged.dataset.source).load()
    assert again.fingerprint == digits.fingerprint
