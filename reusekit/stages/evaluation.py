"""The evaluation stage: how good a model is on data that nothing was chosen by."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import pandas as pd

from reusekit.data import DataSplit
from reusekit.search.figure import accuracy_interval
from reusekit.stages.confusion import class_table, draw_confusion
from reusekit.stages.inputs import INFERENCE_BATCH
from reusekit.tracking import log_artifact, log_data, log_metrics, log_table, step_run


@dataclass(frozen=True)
class Evaluation:
    """The quality of a model.

    Attributes:
        accuracy: Share of the examples whose class is the most probable one.
        loss: Mean cross-entropy, in nats.
        examples: Of how many examples.
        classes: A row for each class, as `class_table` has it; None where it was not asked for.

    Example:
        >>> "{:.2f} to {:.2f}".format(*Evaluation(0.75, 0.6, 12).interval)
        '0.47 to 0.91'
    """

    accuracy: float
    loss: float
    examples: int = 0
    classes: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, for examples like these."""
        if not self.examples:
            return 0.0, 1.0
        return accuracy_interval(self.accuracy, self.examples)


def evaluate(
    model: keras.Model, split: DataSplit, name: str = "test", outside: bool = True
) -> Evaluation:
    """Measure a model of class probabilities, in a nested run of the active run.

    Args:
        model: From inputs to class probabilities.
        split: What to measure it on.
        name: The nested run's name.
        outside: Whether the active run itself shows the classes, too, since people look there.

    Returns:
        Its accuracy and loss.
    """
    probabilities, labels = predict(model, split)
    evaluation = record(probabilities, labels, split, name)
    if outside:
        predicted = probabilities.argmax(axis=1)
        _log_classes(evaluation.classes, labels, predicted, split, name)
    return evaluation


def predict(model: keras.Model, split: DataSplit) -> tuple[np.ndarray, np.ndarray]:
    """Predict a split: probabilities (examples, classes), and the true labels."""
    batches = [
        (model.predict_on_batch(inputs), np.asarray(labels))
        for inputs, labels in split.batches(INFERENCE_BATCH)
    ]
    probabilities, labels = zip(*batches, strict=True)
    return np.concatenate(probabilities), np.concatenate(labels)


def record(
    probabilities: np.ndarray,
    labels: np.ndarray,
    split: DataSplit,
    name: str,
    parameters: Mapping[str, Any] = {},
) -> Evaluation:
    """Score predictions and log them as a nested run of the active run.

    The run has the data as its input, accuracy and loss, a table with precision and recall of each
    class, and a picture of which class was taken for which.

    Args:
        probabilities: Shape (examples, classes).
        labels: True classes, shape (examples,).
        split: What they were predicted of.
        name: The nested run's name.
        parameters: Of what predicted; logged as they are.
    """
    evaluation = score(probabilities, labels)
    predicted = probabilities.argmax(axis=1)
    evaluation = replace(evaluation, classes=class_table(labels, predicted, split.class_names))
    with step_run(name, "evaluation", parameters):
        log_data(split, "test")
        log_metrics({"accuracy": evaluation.accuracy, "loss": evaluation.loss})
        _log_classes(evaluation.classes, labels, predicted, split, name)
    return evaluation


def _log_classes(
    classes: pd.DataFrame, labels: np.ndarray, predicted: np.ndarray, split: DataSplit, name: str
) -> None:
    """Log how well each class was found, and which was taken for which."""
    log_table(classes, "classes.json")
    title = f"{name}: {split.size} examples of {split.name}, {split.split}"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "confusion.png"
        draw_confusion(labels, predicted, split.class_names, title).savefig(file, dpi=120)
        log_artifact(file)


def score(probabilities: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Return accuracy and cross-entropy of class probabilities, shape (examples, classes).

    Example:
        >>> score(np.array([[0.5, 0.5], [0.1, 0.9]]), np.array([0, 0])).accuracy
        0.5
    """
    of_label = probabilities[np.arange(len(labels)), labels]
    return Evaluation(
        accuracy=float(np.mean(probabilities.argmax(axis=1) == labels)),
        loss=float(-np.mean(np.log(np.clip(of_label, 1e-7, 1.0)))),
        examples=len(labels),
    )
