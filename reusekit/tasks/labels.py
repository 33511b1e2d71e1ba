"""The rules of a task with several labels an example."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import keras
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_curve, roc_auc_score

from reusekit.errors import ConfigError
from reusekit.tasks.rules import Made, Reading, SingleRules
from reusekit.training.heads import Head, Multilabel


@dataclass(frozen=True)
class LabelRules(SingleRules):
    """The rules of a task where any of several labels may apply, each by itself.

    Attributes:
        thresholds: The probability from which on each label is said to apply; None for a half.
    """

    thresholds: tuple[float, ...] | None = None

    objective: ClassVar[str] = "val_auc"
    measure: ClassVar[str] = "f1"
    artifact: ClassVar[str] = "labels.json"
    figure: ClassVar[str] = ""
    linear: ClassVar[str] = "logistic regression"
    strength: ClassVar[str] = "C"

    def head(self, units: int = 0, dropout: float = 0.0, standardize: Any = None) -> Head:
        """Return a head with a probability for each label."""
        return Multilabel(self.task.size, units=units, dropout=dropout, standardize=standardize)

    def formed(self, labels: np.ndarray) -> np.ndarray:
        """Return labels as int64 0 and 1, shape (examples, labels)."""
        return labels.astype(np.int64, copy=False)

    def remarks(
        self, counts: Mapping[str, np.ndarray], train: str, few: bool, whole: bool
    ) -> list[str]:
        """Name labels that never apply in training; see `TaskRules.remarks`."""
        missing = np.flatnonzero(counts["train"] == 0)
        if len(missing) == self.task.size:
            raise ConfigError(
                "Expected training examples to which a label applies. Received: none in "
                f"data.train={train!r}."
            )
        if not len(missing):
            return []
        names = ", ".join(self.task.names[position] for position in missing[:10])
        return [f"data.train={train!r} has no example of {len(missing)} labels: {names}."]

    @property
    def _made(self) -> Mapping[type[keras.metrics.Metric], Made]:
        return {
            keras.metrics.F1Score: lambda name: keras.metrics.F1Score("macro", 0.5, name=name),
            keras.metrics.AUC: lambda name: keras.metrics.AUC(
                multi_label=True, num_labels=self.task.size, name=name
            ),
        }

    def with_shares(self, head: Head, compile_args: Mapping[str, Any]) -> dict[str, Any]:
        """Compare outputs with shares of labels; for metrics one applies from a half on."""
        self._check_head(head)

        def applies(labels: Any) -> Any:
            return keras.ops.cast(labels >= 0.5, "float32")

        return {
            **compile_args,
            "metrics": [Reading(one, applies) for one in compile_args["metrics"]],
        }

    def _examples(self) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        right = np.tile(np.array([[0.0], [1.0]], "float32"), (1, self.task.size))
        return right, (right, 1 - right)

    def tuned(self, outputs: np.ndarray, labels: np.ndarray) -> Self:
        """Return the rules with the threshold of each label at which its F1 is highest."""
        pairs = zip(labels.T, outputs.T, strict=True)
        return replace(self, thresholds=tuple(_best_threshold(*pair) for pair in pairs))

    def decided(self, outputs: np.ndarray) -> np.ndarray:
        """Return 1 for each label that is said to apply, and 0 for the others."""
        return (outputs >= np.array(self.thresholds or 0.5)).astype(np.int64)

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return F1 and the area under the ROC curve, all labels alike, accuracy, and the loss."""
        varied = (labels != labels[:1]).any(axis=0)
        auc = roc_auc_score(labels[:, varied], outputs[:, varied]) if varied.any() else np.nan
        return {
            "f1": self.value(outputs, labels),
            "auc": float(auc),
            "accuracy": float(self.goodness(outputs, labels).mean()),
            "loss": float(self.losses(outputs, labels).mean()),
        }

    def losses(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the mean binary cross-entropy of each example."""
        likely = np.clip(outputs.astype(float), 1e-7, 1 - 1e-7)
        return -np.mean(np.log(np.where(labels, likely, 1 - likely)), axis=1)

    def parts(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return for each label whether it is found, and how often it applies or is said to."""
        decided = self.decided(outputs)
        return np.concatenate([decided * labels, decided + labels], axis=1)

    def measured(self, sums: np.ndarray, examples: int) -> np.ndarray:
        """Return F1, all labels alike; 0 of a label that neither applies nor is said to."""
        found, said = np.split(sums, 2, axis=-1)
        return (2 * found / np.maximum(said, 1)).mean(axis=-1)

    def goodness(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the share of labels that are right."""
        return (self.decided(outputs) == labels).mean(axis=1)

    def table(self, outputs: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
        """Return threshold, precision, recall and F1 of each label, and its examples."""
        decided = self.decided(outputs)
        found, said, examples = ((decided * labels).sum(0), decided.sum(0), labels.sum(0))
        return pd.DataFrame(
            {
                "label": self.task.names,
                "threshold": np.broadcast_to(self.thresholds or 0.5, self.task.size),
                "precision": found / np.maximum(said, 1),
                "recall": found / np.maximum(examples, 1),
                "f1": 2 * found / np.maximum(said + examples, 1),
                "examples": examples,
            }
        )

    def constant(self, labels: np.ndarray) -> np.ndarray:
        """Return the share of examples that each label applies to."""
        return labels.mean(axis=0)

    def fit_linear(
        self, inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, strength: float
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Fit a logistic regression for each label; see `TaskRules.fit_linear`."""
        rates, models = labels.mean(axis=0), {}
        for number in np.flatnonzero((rates > 0) & (rates < 1)):
            model = LogisticRegression(C=strength, max_iter=1000)
            models[number] = model.fit(inputs, labels[:, number], weights)

        def outputs(inputs: np.ndarray) -> np.ndarray:
            found = np.tile(rates, (inputs.shape[0], 1))  # of labels that never or always apply
            for number, model in models.items():
                found[:, number] = model.predict_proba(inputs)[:, 1]
            return found

        return outputs

    def sentence(self, inputs: str) -> str:
        """Say how many labels inputs are given."""
        return f"Says of {inputs} which of {self.task.size} labels apply."


def _best_threshold(labels: np.ndarray, likely: np.ndarray) -> float:
    """Return the threshold of the highest F1, between two probabilities; the nearest to a half."""
    if labels.min() == labels.max():
        return 0.5
    precision, recall, limits = precision_recall_curve(labels, likely)
    f1 = (2 * precision * recall / np.maximum(precision + recall, 1e-12))[:-1]
    lower = np.concatenate([[0.0], limits[:-1]])
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    middles = (lower[best].astype(float) + limits[best]) / 2
    return float(middles[np.abs(middles - 0.5).argmin()])
