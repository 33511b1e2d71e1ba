"""The rules of a task that predicts numbers, with their errors as a table and as a picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from reusekit.tasks.rules import WORST, Made, SingleRules
from reusekit.training.heads import Head, Regression

_MOST_DRAWN = 4  # numbers, of which each has axes of its own


@dataclass(frozen=True)
class NumberRules(SingleRules):
    """The rules of a task that predicts one number or more.

    Attributes:
        seen: The numbers of training, whose mean and spread a head begins with; None for 0 and 1.
    """

    seen: np.ndarray | None = field(default=None, repr=False, compare=False)

    objective: ClassVar[str] = "val_loss"
    measure: ClassVar[str] = "mean_absolute_error"
    maximize: ClassVar[bool] = False
    reported: ClassVar[str | None] = "val_mean_absolute_error"
    artifact: ClassVar[str] = "numbers.json"
    figure: ClassVar[str] = "residuals.png"
    linear: ClassVar[str] = "ridge regression"
    strength: ClassVar[str] = "alpha"
    numbers: ClassVar[str] = ".4g"
    worst: ClassVar[tuple[str, bool]] = ("r2", True)
    tells_labels: ClassVar[bool] = False

    def head(self, units: int = 0, dropout: float = 0.0, standardize: Any = None) -> Head:
        """Return a head with a number for each output, on the scale of the numbers of training."""
        return Regression(
            self.task.size,
            units=units,
            dropout=dropout,
            standardize=standardize,
            targets=self.seen,
        )

    def fitted(self, labels: np.ndarray) -> Self:
        """Return the rules with the numbers of training."""
        return replace(self, seen=self.targets(labels, "train"))

    def formed(self, labels: np.ndarray) -> np.ndarray:
        """Return numbers as floats, shape (examples, numbers)."""
        numbers = labels.reshape(len(labels), self.task.size)
        return numbers if numbers.dtype.kind == "f" else numbers.astype(float)

    @property
    def _made(self) -> Mapping[type[keras.metrics.Metric], Made]:
        return {}

    def with_shares(self, head: Head, compile_args: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the head is compiled with: mixed numbers are numbers."""
        return dict(compile_args)

    def _examples(self) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        right = np.arange(1.0, 3 * self.task.size + 1).reshape(3, self.task.size)
        # Off by little as well, which metrics of classes do not see.
        return right, (right, right + 0.1 * (-1) ** right, right[::-1, ::-1].copy())

    def decided(self, outputs: np.ndarray) -> np.ndarray:
        """Return the numbers themselves."""
        return outputs

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return the mean absolute error, the root of the mean squared one, that, and R squared."""
        squared = float(np.mean((outputs - labels) ** 2))
        explained = r2_score(labels, outputs) if len(labels) > 1 else np.nan
        return {
            "mean_absolute_error": self.value(outputs, labels),
            "root_mean_squared_error": squared**0.5,
            "r2": float(explained),
            "loss": squared,
        }

    def losses(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the mean squared error of each example."""
        return np.mean((outputs - labels) ** 2, axis=1)

    def parts(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the mean absolute error of each example."""
        return -self.goodness(outputs, labels)[:, None]

    def goodness(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the negative mean absolute error of each example; nothing finite is the worst."""
        errors = np.abs(outputs - labels).mean(axis=1)
        return -np.where(np.isfinite(errors), errors, WORST)

    def table(self, outputs: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
        """Return the errors of each number, and the share of its variance that is explained."""
        errors = outputs - labels
        scores = r2_score(labels, outputs, multioutput="raw_values") if len(labels) > 1 else np.nan
        return pd.DataFrame(
            {
                "number": self.task.names,
                "mean_absolute_error": np.abs(errors).mean(axis=0),
                "root_mean_squared_error": np.sqrt((errors**2).mean(axis=0)),
                "r2": scores,
                "examples": len(labels),
            }
        )

    def draw(self, outputs: np.ndarray, labels: np.ndarray, title: str) -> Figure | None:
        """Draw predicted over true numbers, and their differences below, for the first numbers."""
        count = min(self.task.size, _MOST_DRAWN)
        figure = Figure(figsize=(4.5 * count, 6), layout="constrained")
        figure.suptitle(title, parse_math=False)
        for number, (above, below) in enumerate(
            figure.subplots(2, count, squeeze=False, height_ratios=(2, 1), sharex="col").T
        ):
            true, predicted = labels[:, number], outputs[:, number]
            above.scatter(true, predicted, s=10, alpha=0.5)
            above.axline((float(true.mean()),) * 2, slope=1, color="tab:red", linewidth=1)
            above.set_ylabel("predicted")
            above.set_title(self.task.names[number], parse_math=False)
            below.scatter(true, predicted - true, s=10, alpha=0.5)
            below.axhline(0, color="tab:red", linewidth=1)
            below.set(xlabel="true", ylabel="predicted - true")
        return figure

    def constant(self, labels: np.ndarray) -> np.ndarray:
        """Return the mean of each number."""
        return labels.mean(axis=0)

    def fit_linear(
        self, inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, strength: float
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Fit a ridge regression; see `TaskRules.fit_linear`."""
        # In float32 the equations of weak regularisation are too badly conditioned.
        model = Ridge(alpha=strength).fit(inputs.astype(float), labels, weights)
        return lambda inputs: model.predict(inputs).reshape(inputs.shape[0], self.task.size)

    def sentence(self, inputs: str) -> str:
        """Say which numbers are predicted of inputs."""
        told = ", ".join(self.task.names) if self.task.size <= 5 else f"{self.task.size} numbers"
        return f"Predicts {told} of {inputs}."
