"""A split in MLflow: named by content, and found again from what MLflow stored."""

import json

import mlflow
import numpy as np

from reusekit.data import load_split
from reusekit.tracking import log_data
from reusekit.tracking.datasets import TFDSSource


def test_a_logged_split_can_be_loaded_again_as_it_was(tracking):
    few = load_split(
        "sklearn_digits", "train", examples_per_class=5, seed=3, image_size=(16, 16), channels=3
    )
    with mlflow.start_run() as run:
        log_data(few, "training")
    (logged,) = tracking.get_run(run.info.run_id).inputs.dataset_inputs
    assert logged.dataset.name == "sklearn_digits:1.0.0"
    assert logged.dataset.digest == few.fingerprint
    assert {tag.value for tag in logged.tags} == {"training"}
    assert json.loads(logged.dataset.profile) == {"examples": 50}
    assert json.loads(logged.dataset.schema)["classes"] == 10
    again = TFDSSource.from_json(logged.dataset.source).load()
    assert again.fingerprint == few.fingerprint
    np.testing.assert_array_equal(again.arrays()[0], few.arrays()[0])
