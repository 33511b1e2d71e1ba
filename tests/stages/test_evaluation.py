"""What an evaluation leaves: numbers, a table of the classes, a picture, and the data it is of."""

import mlflow
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, recall_score

from reusekit.stages.evaluation import Evaluation, record


def test_predictions_are_scored_and_logged_with_the_data_they_are_of(tracking, splits):
    split = splits.train
    labels = split.arrays()[1]
    probabilities = np.random.default_rng(0).dirichlet(np.ones(10), size=len(labels))
    probabilities[::2] = np.eye(10)[labels[::2]]  # every other one is right
    with mlflow.start_run() as parent:
        evaluation = record(probabilities, labels, split, "guessed", {"seed": 0})
    predicted = probabilities.argmax(axis=1)
    assert evaluation.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert evaluation.loss == pytest.approx(log_loss(labels, probabilities))
    (run,) = tracking.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert run.info.run_name == "guessed"
    assert run.data.tags["reusekit.kind"] == "evaluation"
    assert run.data.params == {"seed": "0"}
    assert run.data.metrics == {"accuracy": evaluation.accuracy, "loss": evaluation.loss}
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == split.fingerprint
    table = mlflow.load_table("classes.json", run_ids=[run.info.run_id])
    expected = recall_score(labels, predicted, average=None)
    np.testing.assert_allclose(table["recall"], expected)
    assert "confusion.png" in {file.path for file in tracking.list_artifacts(run.info.run_id)}


def test_few_examples_have_a_wide_interval():
    # pipeline, "Looks": no interval though n = 12
    few, many = Evaluation(0.75, 0.5, 12), Evaluation(0.75, 0.5, 1200)
    assert few.interval == pytest.approx((0.468, 0.911), abs=1e-3)
    assert many.interval == pytest.approx((0.725, 0.774), abs=1e-3)
