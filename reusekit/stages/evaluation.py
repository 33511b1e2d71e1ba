"""The evaluation stage: the quality of a model on data by which nothing was chosen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import pandas as pd

from reusekit.data import DataSplit
from reusekit.data.task import joined
from reusekit.stages.inputs import INFERENCE_BATCH
from reusekit.tasks import TaskRules, rules_of
from reusekit.tracking import log_artifact, log_data, log_metrics, log_table, step_run


@dataclass(frozen=True)
class Evaluation:
    """The quality of a model.

    Attributes:
        scores: Scores by name: the measure of the task, the loss, and others.
        measure: The name of the one by which models are compared, such as `accuracy`.
        examples: Of how many examples.
        interval: Where the measure lies, as sure as 95 %, for examples like these.
        tables: A row for each class, label or number, as `TaskRules.table` has it; by what
            `TaskRules.each` puts before the names of a task.
        outputs: The outputs, shape (examples, `task.size`).
        labels: The true labels, as `TaskRules.targets` returns them.
    """

    scores: Mapping[str, float]
    measure: str
    examples: int
    interval: tuple[float, float]
    tables: Mapping[str, pd.DataFrame] = field(repr=False, compare=False)
    outputs: np.ndarray = field(repr=False, compare=False)
    labels: np.ndarray = field(repr=False, compare=False)

    @property
    def value(self) -> float:
        """The measure."""
        return self.scores[self.measure]


def evaluate(
    model: keras.Model,
    split: DataSplit,
    rules: TaskRules | None = None,
    name: str = "test",
    outside: bool = True,
) -> Evaluation:
    """Measure a model, in a nested run of the active run.

    Args:
        model: From inputs to the outputs of the split's task: probabilities of classes or labels,
            or numbers.
        split: What to measure it on.
        rules: The rules of the task, with what was chosen on the validation split; None for the
            split's.
        name: The nested run's name.
        outside: Whether the active run itself shows the table, too, since people look there.
    """
    outputs, labels = predict(model, split)
    rules = rules or rules_of(split.task)
    evaluation = record(outputs, labels, split, name, rules)
    if outside:
        _log_outputs(evaluation.tables, outputs, labels, split, name, rules)
    return evaluation


def predict(model: keras.Model, split: DataSplit) -> tuple[np.ndarray, np.ndarray]:
    """Predict a split: outputs (examples, `task.size`), and the true labels as scores take them.

    Those of several tasks are `joined`.
    """
    batches = [
        (joined(model.predict_on_batch(inputs)), joined(labels))
        for inputs, labels, *_ in split.batches(INFERENCE_BATCH)
    ]
    outputs, labels = map(np.concatenate, zip(*batches, strict=True))
    return outputs, rules_of(split.task).targets(labels, split.split)


def validated(
    model: keras.Model, known: Mapping[str, float], split: DataSplit, rules: TaskRules
) -> tuple[TaskRules, float]:
    """Return the rules with their choices on the validation split, and the measure there.

    Args:
        model: A trained model, at its best epoch.
        known: Its metrics there, of which the measure may be one.
        split: The validation split.
        rules: The rules of the task.
    """
    if rules.reported is not None and rules.reported in known:
        return rules, known[rules.reported]
    outputs, labels = predict(model, split)
    rules = rules.tuned(outputs, labels)
    return rules, rules.value(outputs, labels)


def record(
    outputs: np.ndarray,
    labels: np.ndarray,
    split: DataSplit,
    name: str,
    rules: TaskRules,
    parameters: Mapping[str, Any] = {},
) -> Evaluation:
    """Score predictions and log them as a nested run of the active run.

    The run has the data as its input, the scores, a table with a row for each class, label or
    number, and a picture of the errors where the task has one.

    Args:
        outputs: Shape (examples, `task.size`).
        labels: The true ones, as `TaskRules.targets` returns them.
        split: What was predicted.
        name: The nested run's name.
        rules: The rules of the task.
        parameters: Of what predicted; logged as they are.
    """
    evaluation = Evaluation(
        rules.scores(outputs, labels),
        rules.measure,
        len(labels),
        rules.interval(outputs, labels),
        {before: one.table(*told) for before, one, *told in rules.each(outputs, labels)},
        outputs,
        labels,
    )
    with step_run(name, "evaluation", parameters):
        log_data(split, "test")
        log_metrics({n: value for n, value in evaluation.scores.items() if np.isfinite(value)})
        _log_outputs(evaluation.tables, outputs, labels, split, name, rules)
    return evaluation


def _log_outputs(
    tables: Mapping[str, pd.DataFrame],
    outputs: np.ndarray,
    labels: np.ndarray,
    split: DataSplit,
    name: str,
    rules: TaskRules,
) -> None:
    """Log how good each class, label or number is, and a picture of the errors."""
    title = f"{name}: {split.size} examples of {split.name}, {split.split}"
    for before, one, given, told in rules.each(outputs, labels):
        log_table(tables[before], before + one.artifact)
        picture = one.draw(given, told, title)
        if picture is None:
            continue
        with TemporaryDirectory() as folder:
            file = Path(folder) / (before + one.figure)
            picture.savefig(file, dpi=120)
            log_artifact(file)
