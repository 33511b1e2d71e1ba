"""The run of an evaluation: numbers, a table of the outputs, a picture, and the data it is of."""

from dataclasses import replace

import mlflow
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import accuracy_score, log_loss, recall_score

from reusekit.data.task import Task
from reusekit.stages.evaluation import record
from reusekit.tasks import rules_of


def test_predictions_are_scored_and_logged_with_the_data_they_are_of(tracking, splits):
    split = splits.train
    labels = split.arrays()[1]
    probabilities = np.random.default_rng(0).dirichlet(np.ones(10), size=len(labels))
    probabilities[::2] = np.eye(10)[labels[::2]]  # every other one is right
    with mlflow.start_run() as parent:
        rules = rules_of(split.task)
        evaluation = record(probabilities, labels, split, "guessed", rules, {"seed": 0})
    predicted = probabilities.argmax(axis=1)
    assert evaluation.value == pytest.approx(accuracy_score(labels, predicted))
    assert evaluation.scores["loss"] == pytest.approx(log_loss(labels, probabilities))
    (run,) = tracking.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert run.info.run_name == "guessed"
    assert run.data.tags["reusekit.kind"] == "evaluation"
    assert run.data.params == {"seed": "0"}
    assert run.data.metrics == evaluation.scores
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == split.fingerprint
    table = mlflow.load_table("classes.json", run_ids=[run.info.run_id])
    expected = recall_score(labels, predicted, average=None)
    np.testing.assert_allclose(table["recall"], expected)
    assert "confusion.png" in {file.path for file in tracking.list_artifacts(run.info.run_id)}


def test_numbers_leave_a_picture_of_their_errors_and_labels_a_table(tracking, splits):
    generator = np.random.default_rng(0)
    made = (
        (Task("regression", ("age", "$height")), generator.normal(size=(20, 2))),
        (Task("multilabel", ("red", "round")), generator.integers(0, 2, (20, 2))),
    )
    left = []
    with mlflow.start_run() as run:
        for task, labels in made:
            examples = tf.data.Dataset.from_tensor_slices((np.zeros((20, 1)), labels))
            split = replace(splits.test, examples=examples, size=20, task=task)
            evaluation = record(np.abs(labels - 0.25), labels, split, task.kind, rules_of(task))
            left.append(evaluation)
        children = mlflow.search_runs(
            [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        )
    artifacts = {
        row["tags.mlflow.runName"]: {a.path for a in tracking.list_artifacts(row["run_id"])}
        for _, row in children.iterrows()
    }
    assert artifacts["regression"] >= {"numbers.json", "residuals.png"}
    assert "labels.json" in artifacts["multilabel"]
    assert not {"confusion.png", "classes.json"} & set.union(*artifacts.values())
    numbers, labels = left
    assert numbers.interval[0] <= numbers.value <= numbers.interval[1]
    assert labels.scores["auc"] == labels.value == 1
