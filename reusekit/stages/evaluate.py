"""The evaluation stage: how good a model is on data that nothing was chosen by."""

from dataclasses import dataclass

import keras
import mlflow
import numpy as np

from reusekit.data import DataSplit
from reusekit.stages.inputs import INFERENCE_BATCH
from reusekit.tracking import step_run


@dataclass(frozen=True)
class Evaluation:
    """How good a model is.

    Attributes:
        accuracy: Share of the examples whose class is the most probable one.
        loss: Mean cross-entropy, in nats.
    """

    accuracy: float
    loss: float


def evaluate(model: keras.Model, split: DataSplit, name: str = "test") -> Evaluation:
    """Measure a model of class probabilities, in a nested run of the active run.

    Args:
        model: From inputs to class probabilities.
        split: What to measure it on.
        name: The nested run's name.

    Returns:
        Its accuracy and loss.
    """
    predictions = [
        (model.predict_on_batch(inputs), labels)
        for inputs, labels in split.batches(INFERENCE_BATCH)
    ]
    probabilities = np.concatenate([p for p, _ in predictions])
    labels = np.concatenate([np.asarray(y) for _, y in predictions])
    evaluation = score(probabilities, labels)
    with step_run(name, "evaluation"):
        mlflow.log_metrics({"accuracy": evaluation.accuracy, "loss": evaluation.loss})
    return evaluation


def score(probabilities: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Accuracy and cross-entropy of class probabilities, shape (examples, classes).

    Example:
        >>> score(np.array([[0.5, 0.5], [0.1, 0.9]]), np.array([0, 0])).accuracy
        0.5
    """
    of_label = probabilities[np.arange(len(labels)), labels]
    return Evaluation(
        accuracy=float(np.mean(probabilities.argmax(axis=1) == labels)),
        loss=float(-np.mean(np.log(np.clip(of_label, 1e-7, 1.0)))),
    )
