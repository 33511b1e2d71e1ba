"""The rules of classification, with the confusions of a model as a table and as a picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from reusekit.errors import ConfigError
from reusekit.tasks.rules import Made, Reading, SingleRules
from reusekit.training.heads import Classifier, Head
from reusekit.training.heads.dense import one_hot

_OF_NUMBERS = (
    keras.metrics.SparseCategoricalAccuracy,
    keras.metrics.SparseTopKCategoricalAccuracy,
    keras.metrics.SparseCategoricalCrossentropy,
)
"""The metrics of Keras that take the number of a class; the others take a vector of 0 and 1."""

_MOST_NUMBERED = 20  # classes, beyond which numbers in the squares cannot be read
_MOST_NAMED = 60  # classes, beyond which their names cannot be read


@dataclass(frozen=True)
class ClassRules(SingleRules):
    """The rules of a task with one class an example."""

    objective: ClassVar[str] = "val_accuracy"
    measure: ClassVar[str] = "accuracy"
    reported: ClassVar[str | None] = "val_accuracy"
    artifact: ClassVar[str] = "classes.json"
    figure: ClassVar[str] = "confusion.png"
    linear: ClassVar[str] = "logistic regression"
    strength: ClassVar[str] = "C"
    worst: ClassVar[tuple[str, bool]] = ("recall", True)

    def head(self, units: int = 0, dropout: float = 0.0, standardize: Any = None) -> Head:
        """Return a classifier."""
        return Classifier(self.task.size, units=units, dropout=dropout, standardize=standardize)

    def formed(self, labels: np.ndarray) -> np.ndarray:
        """Return classes as int64, shape (examples,)."""
        return labels.reshape(-1).astype(np.int64, copy=False)

    def remarks(
        self, counts: Mapping[str, np.ndarray], train: str, few: bool, whole: bool
    ) -> list[str]:
        """Name classes that have one example in training, or none; see `TaskRules.remarks`."""
        names, trained = self.task.names, counts["train"]
        if np.count_nonzero(trained) < 2:
            raise ConfigError(
                "Expected training examples of two classes at least. Received: "
                f"data.train={train!r}, {trained.sum():,} of {names[trained.argmax()]!r} alone. "
                "Choose another split where a data set is sorted by class."
            )
        remarks, alone = [], np.flatnonzero(trained == 1)
        if len(alone) and not few:
            remarks.append(
                f"data.train={train!r} has one example of {len(alone)} classes: "
                f"{', '.join(names[position] for position in alone[:10])}."
            )
        missing = np.flatnonzero((counts["validation"] + counts["test"] > 0) & (trained == 0))
        if len(missing):
            listed = (
                f"data.train={train!r} has no example of {len(missing)} classes that the other "
                f"splits have: {', '.join(names[position] for position in missing[:10])}."
            )
            if whole:
                raise ConfigError(
                    f"Expected training examples of each class. Received: {listed} Spell classes "
                    "alike in all parts, or leave these examples out."
                )
            remarks.append(listed)
        return remarks

    @property
    def _made(self) -> Mapping[type[keras.metrics.Metric], Made]:
        return {
            keras.metrics.F1Score: lambda name: keras.metrics.F1Score("macro", name=name),
            keras.metrics.AUC: lambda name: keras.metrics.AUC(
                multi_label=True, num_labels=self.task.size, name=name
            ),
        }

    def _taking_labels(self, metric: keras.metrics.Metric) -> keras.metrics.Metric:
        return metric if isinstance(metric, _OF_NUMBERS) else Reading(metric, self._one_hot)

    def _one_hot(self, labels: Any) -> Any:
        return one_hot(labels, self.task.size)

    def with_shares(self, head: Head, compile_args: Mapping[str, Any]) -> dict[str, Any]:
        """Compare outputs with shares of classes; metrics take the class with the largest."""
        self._check_head(head)

        def number(labels: Any) -> Any:
            return keras.ops.argmax(self._one_hot(labels), axis=-1)

        metrics = [
            keras.metrics.SparseCategoricalAccuracy(name="accuracy") if one == "accuracy" else one
            for one in compile_args["metrics"]
        ]
        return {
            **compile_args,
            "loss": head.smoothed_loss(0.0),
            "metrics": [Reading(one, number) for one in metrics],
        }

    def _examples(self) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        right = np.eye(self.task.size, dtype="float32")
        # The true class comes last, after each other one.
        wrong = 0.9 * np.roll(right, 1, axis=0) + 0.1 * (1 - right) / max(self.task.size - 1, 1)
        return np.arange(self.task.size), (right, wrong)

    def decided(self, outputs: np.ndarray) -> np.ndarray:
        """Return the most probable class; -1 where an output is not finite."""
        return np.where(np.isfinite(outputs).all(axis=1), outputs.argmax(axis=1), -1)

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return the accuracy, and the mean cross-entropy in nats."""
        return {
            "accuracy": self.value(outputs, labels),
            "loss": float(self.losses(outputs, labels).mean()),
        }

    def losses(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the cross-entropy of each example in nats."""
        of_label = outputs[np.arange(len(labels)), labels]
        return -np.log(np.clip(of_label, 1e-7, 1.0))

    def parts(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return whether each example is classified rightly."""
        return self.goodness(outputs, labels)[:, None]

    def goodness(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return 1 for each example that is classified rightly, and 0 for the others."""
        return (self.decided(outputs) == labels).astype(float)

    def interval(self, outputs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """Return Wilson's 95 % interval of the accuracy."""
        return accuracy_interval(self.value(outputs, labels), len(labels))

    def table(self, outputs: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
        """Return the scores of each class; see `class_table`."""
        return class_table(labels, self.decided(outputs), self.task.names)

    def draw(self, outputs: np.ndarray, labels: np.ndarray, title: str) -> Figure | None:
        """Draw which class was taken for which; see `draw_confusion`."""
        return draw_confusion(labels, self.decided(outputs), self.task.names, title)

    def constant(self, labels: np.ndarray) -> np.ndarray:
        """Return the shares of the classes, of which the largest is the majority."""
        return np.bincount(labels, minlength=self.task.size) / len(labels)

    def fit_linear(
        self, inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, strength: float
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Fit a logistic regression; see `TaskRules.fit_linear`."""
        model = LogisticRegression(C=strength, max_iter=1000).fit(inputs, labels, weights)

        def outputs(inputs: np.ndarray) -> np.ndarray:
            found = np.zeros((inputs.shape[0], self.task.size))  # absent classes among them
            found[:, model.classes_] = model.predict_proba(inputs)
            return found

        return outputs

    def sentence(self, inputs: str) -> str:
        """Say into how many classes inputs are classified."""
        return f"Classifies {inputs} into {self.task.size} classes."


def accuracy_interval(accuracy: float, examples: int) -> tuple[float, float]:
    """Return where an accuracy lies, as sure as 95 %, for examples like these (Wilson's interval).

    Example:
        >>> "{:.2f} to {:.2f}".format(*accuracy_interval(0.75, 12))
        '0.47 to 0.91'
    """
    found = binomtest(round(accuracy * examples), examples).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def class_table(
    labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> pd.DataFrame:
    """Return the scores of each class, and the class it was most often taken for.

    Args:
        labels: True classes, shape (examples,).
        predicted: Predicted classes, likewise.
        class_names: In label order.

    Returns:
        A row for each class: its name, `precision` (0 where it was never predicted), `recall` (0
        where it does not occur), `f1`, `examples`, and `most_taken_for` (empty where it never was
        taken for another).

    Example:
        >>> class_table(np.array([0, 0, 1]), np.array([0, 1, 1]), ["cat", "dog"])
          class  precision  recall        f1  examples most_taken_for
        0   cat        1.0     0.5  0.666667         2            dog
        1   dog        0.5     1.0  0.666667         1
    """
    classes = np.arange(len(class_names))
    precision, recall, f1, examples = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    mistaken = confusion_matrix(labels, predicted, labels=classes)
    np.fill_diagonal(mistaken, 0)
    return pd.DataFrame(
        {
            "class": class_names,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "examples": examples,
            "most_taken_for": [class_names[row.argmax()] if row.any() else "" for row in mistaken],
        }
    )


def draw_confusion(
    labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str], title: str
) -> Figure:
    """Draw how many examples of each class were taken for each.

    Args:
        labels: True classes, shape (examples,).
        predicted: Predicted classes, likewise.
        class_names: In label order.
        title: What to write above.

    Returns:
        A figure of its own, which belongs to no window. Colours are shares of the true class, so
        that rare classes are seen as well as frequent ones; numbers are examples, and are left out
        where there are too many classes to read them.
    """
    count = len(class_names)
    matrix = confusion_matrix(labels, predicted, labels=np.arange(count))
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = 3 + 0.35 * min(count, _MOST_NUMBERED)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")
    axes.set(xlabel="predicted class", ylabel="true class")
    # Names are no formulas, whatever is in them.
    axes.set_title(title, parse_math=False)
    if count <= _MOST_NAMED:
        text: dict[str, Any] = {
            "fontsize": 8 if count <= _MOST_NUMBERED else 5,
            "parse_math": False,
        }
        axes.set_xticks(range(count), class_names, rotation=90, **text)
        axes.set_yticks(range(count), class_names, **text)
    if count <= _MOST_NUMBERED:
        for (row, column), examples in np.ndenumerate(matrix):
            if examples:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, examples, ha="center", va="center", color=color, fontsize=8)
    return figure
