"""The rules of a task: its head, its metrics, how its models are measured, and their rivals."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from reusekit.data.labels import check_labels
from reusekit.data.task import Task
from reusekit.errors import ConfigError
from reusekit.training.heads import Head

Made = Callable[[str], keras.metrics.Metric]
"""Makes a Keras metric of a name."""

WORST = 1e30
"""The error of an output that is no number, of which means can be taken."""

_STRENGTHS = np.logspace(-3, 3, 7)  # tried for the regularisation of the linear model
_ENOUGH_FOR_THREADS = 10_000_000  # numbers to fit a linear model to
_MOST_KINDS = 100
"""Different examples, up to which the counts of each are drawn and not the examples."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class TaskRules(ABC):
    """The rules of a task.

    Outputs are those of a head of the task, shape (examples, `task.size`); labels are as `Task`
    says, and as `targets` returns them. Those of several tasks at once are `joined`.

    Attributes:
        task: The task.
        objective: The metric by which trials are compared where nobody names another.
        measure: The score by which finished models are compared, one of `scores`.
        maximize: Whether more of the measure is better.
        reported: The metric of a head that says the same of a validation split; None where that
            takes outputs.
        linear: What the linear rival is called.
        numbers: How a value of the measure is written.
    """

    task: Task

    objective: ClassVar[str]
    measure: ClassVar[str]
    maximize: ClassVar[bool] = True
    reported: ClassVar[str | None] = None
    linear: ClassVar[str]
    numbers: ClassVar[str] = ".3f"

    @abstractmethod
    def each(self, *arrays: Any) -> "Iterator[tuple[str, SingleRules, *tuple[Any, ...]]]":
        """Yield each of the tasks, of which most rules have one.

        Args:
            *arrays: Outputs or labels.

        Yields:
            The beginning of the names of what is said of it, empty for a single task; its rules;
            and its part of each array.
        """

    @abstractmethod
    def gathered(
        self, parts: "Sequence[tuple[SingleRules, np.ndarray]]"
    ) -> "tuple[TaskRules, np.ndarray]":
        """Return what `each` took apart, from the rules and an array of each task."""

    # --- training ---------------------------------------------------------------------------------

    @abstractmethod
    def head(self, units: int = 0, dropout: float = 0.0, standardize: Any = None) -> Head:
        """Return the head of the task, not built yet."""

    def fitted(self, labels: np.ndarray) -> Self:
        """Return the rules with what heads take from the labels of training."""
        return self

    def weighted(self, weights: Mapping[str, float] | None) -> Self:
        """Return the rules with what the loss of each of several tasks counts in training.

        Raises:
            ConfigError: There is no such task.
        """
        if weights is not None:
            raise ConfigError(
                f"Expected no loss_weights for a single task, {self.task.kind}. Received: "
                f"{dict(weights)!r}."
            )
        return self

    def targets(self, labels: np.ndarray, name: str) -> np.ndarray:
        """Check labels, and return them in the form that scores take.

        Args:
            labels: A label for each example.
            name: What the examples are called in a message.

        Raises:
            DataError: They are no labels of the task.
        """
        check_labels(labels, self.task, name)
        return self.formed(labels)

    @abstractmethod
    def formed(self, labels: np.ndarray) -> np.ndarray:
        """Return labels of the task in the form that scores take."""

    def remarks(
        self, counts: Mapping[str, np.ndarray], train: str, few: bool, whole: bool
    ) -> list[str]:
        """Return what is strange about the labels of the splits.

        Args:
            counts: How many examples each class or label has, by `train`, `validation` and `test`.
            train: What the training split is called.
            few: Whether one example of each class was asked for.
            whole: Whether the training split is a whole part that the user laid out: no slice, not
                drawn, and none of a catalogue.

        Raises:
            ConfigError: Nothing can be learnt from them, or not what the other splits ask.
        """
        return []

    @abstractmethod
    def reporting(self, head: Head, name: str) -> dict[str, Any]:
        """Return what a head is compiled with, and a metric that it does not report.

        Args:
            head: A head, of which no metric is made where it is of another kind than the task's.
            name: The metric, as Keras names it.
        """

    @abstractmethod
    def direction(self, name: str) -> str | None:
        """Return "max" or "min" for a metric, by its values for right and for wrong outputs.

        None for no metric, and for one that cannot tell the two apart, such as AUC of numbers.
        """

    # --- measuring --------------------------------------------------------------------------------

    def tuned(self, outputs: np.ndarray, labels: np.ndarray) -> Self:
        """Return the rules with what is chosen by a model's outputs on the validation split."""
        return self

    @abstractmethod
    def decided(self, outputs: np.ndarray) -> np.ndarray:
        """Return what a model says: the class, the labels as 0 and 1, or the numbers."""

    @abstractmethod
    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return scores by name: the measure, the loss, and others."""

    @abstractmethod
    def losses(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the loss of each example, whose mean is that of the task's head."""

    @abstractmethod
    def parts(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return what each example adds to the sums that the measure follows from."""

    def measured(self, sums: np.ndarray, examples: int) -> np.ndarray:
        """Return the measure of sums of parts, which are in the last axis."""
        return sums[..., 0] / examples

    def value(self, outputs: np.ndarray, labels: np.ndarray) -> float:
        """Return the measure."""
        return float(self.measured(self.parts(outputs, labels).sum(axis=0), len(labels)))

    def interval(self, outputs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """Return where the measure lies, as sure as 95 %, for examples like these."""
        sums = resampled_sums(self.parts(outputs, labels), _RESAMPLES)
        low, high = np.quantile(self.measured(sums, len(labels)), [0.025, 0.975])
        return float(low), float(high)

    @abstractmethod
    def goodness(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return how good a model is about each example; more is better."""

    def agreement(self, outputs: np.ndarray, others: np.ndarray) -> float | None:
        """Return the share of examples of which two models tell the same; None of mere numbers."""
        same = [
            (rules.decided(one) == rules.decided(other)).reshape(len(outputs), -1).all(axis=1)
            for _, rules, one, other in self.each(outputs, others)
            if rules.tells_labels
        ]
        return float(np.all(same, axis=0).mean()) if same else None

    # --- rivals and words -------------------------------------------------------------------------

    @abstractmethod
    def constant(self, labels: np.ndarray) -> np.ndarray:
        """Return the outputs, shape (task.size,), of a model that looks at no input."""

    @abstractmethod
    def best_linear(
        self,
        train: tuple[np.ndarray, np.ndarray, np.ndarray | None],
        validation: tuple[np.ndarray, np.ndarray],
    ) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, float]]:
        """Fit linear models; return the outputs of the one that is best on validation examples.

        Args:
            train: Inputs, labels, and weights or None.
            validation: Inputs and labels.

        Returns:
            What gives its outputs for inputs, and how strongly it is regularised, by name.
        """

    @abstractmethod
    def sentence(self, inputs: str) -> str:
        """Say what a model does with its inputs, such as images."""

    def better(self, one: float, other: float) -> bool:
        """Return whether one value of the measure is better than another."""
        return one > other if self.maximize else one < other


@dataclass(frozen=True)
class SingleRules(TaskRules):
    """The rules of a single task.

    Attributes:
        artifact: The name of the table of outputs, which `table` makes.
        figure: The name of the picture, which `draw` makes.
        strength: The option of scikit-learn by which the linear rival is regularised.
        worst: The column of the table by which the worst come first, and whether it rises.
        tells_labels: Whether what a model decides is one of some choices, and no mere number.
    """

    artifact: ClassVar[str]
    figure: ClassVar[str]
    strength: ClassVar[str]
    worst: ClassVar[tuple[str, bool]] = ("f1", True)
    tells_labels: ClassVar[bool] = True

    def each(self, *arrays: Any) -> "Iterator[tuple[str, SingleRules, *tuple[Any, ...]]]":
        """Yield the task itself; see `TaskRules.each`."""
        yield "", self, *arrays

    def gathered(
        self, parts: "Sequence[tuple[SingleRules, np.ndarray]]"
    ) -> "tuple[TaskRules, np.ndarray]":
        """Return the rules and the array of the task itself; see `TaskRules.gathered`."""
        (only,) = parts
        return only

    @property
    @abstractmethod
    def _made(self) -> Mapping[type[keras.metrics.Metric], Made]:
        """Makers of the metrics whose defaults do not fit the task."""

    def _taking_labels(self, metric: keras.metrics.Metric) -> keras.metrics.Metric:
        """Return a metric that takes labels as the task has them."""
        return metric

    def metric(self, name: str) -> keras.metrics.Metric | None:
        """Return a Keras metric that is reported as `name`: f1, auc, mae ...; None for no metric.

        Where it averages over outputs, all count alike.
        """
        try:
            kind = type(keras.metrics.get("f1_score" if name == "f1" else name))
        except (ValueError, TypeError):  # unknown, or one that must be told more
            return None
        if not issubclass(kind, keras.metrics.Metric):
            return None
        if "y_true" not in inspect.signature(kind.update_state).parameters:
            return None  # Mean and Sum, of anything
        make = self._made.get(kind)
        return self._taking_labels(kind(name=name) if make is None else make(name))

    def reporting(self, head: Head, name: str) -> dict[str, Any]:
        """Return what a head is compiled with, and a metric more; see `TaskRules.reporting`."""
        args = head.compile_args
        if type(head) is not type(self.head()) or getattr(head, "logits", False):
            return args
        if self.direction(name) is None or name in map(_metric_name, args.get("metrics") or ()):
            return args
        return args | {"metrics": [*(args.get("metrics") or []), self.metric(name)]}

    @abstractmethod
    def with_shares(self, head: Head, compile_args: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a head is compiled with where training examples are mixed.

        Their labels are shares then, shape (batch, task.size); those of other examples are as the
        task has them. The loss takes both, and so do the metrics.

        Raises:
            ConfigError: The head is another than that of the task.
        """

    def _check_head(self, head: Head) -> None:
        """Refuse heads that may take labels as shares, or not."""
        if not isinstance(head, type(self.head())):
            raise ConfigError(
                f"Expected heads as rk.heads.{type(self.head()).__name__}, of which it is known "
                "how they take the mixed labels of MixUp and CutMix. Received: "
                f"{type(head).__name__}."
            )

    @abstractmethod
    def _examples(self) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        """Return some labels, and outputs for them: right ones first, then worse and worse ones."""

    def direction(self, name: str) -> str | None:
        """Return "max" or "min" for a metric; see `TaskRules.direction`."""
        return _direction(type(self)(self.task), name)  # without what was learnt from data

    @abstractmethod
    def table(self, outputs: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
        """Return how good each output is, one row each; the first column names it."""

    def draw(self, outputs: np.ndarray, labels: np.ndarray, title: str) -> Figure | None:
        """Draw where a model errs; None for a task without such a picture."""
        return None

    @abstractmethod
    def fit_linear(
        self, inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None, strength: float
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Fit a linear model, and return what gives its outputs for inputs."""

    def best_linear(
        self,
        train: tuple[np.ndarray, np.ndarray, np.ndarray | None],
        validation: tuple[np.ndarray, np.ndarray],
    ) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, float]]:
        """Fit a linear model at several strengths; see `TaskRules.best_linear`."""
        inputs, labels = validation
        best: Any = None
        # Threads that share a short sum wait for one another sixty times as long as it takes.
        with threadpool_limits(1 if train[0].size < _ENOUGH_FOR_THREADS else None):
            for strength in _STRENGTHS:
                outputs = self.fit_linear(*train, strength)
                guessed = outputs(inputs)
                value = self.tuned(guessed, labels).value(guessed, labels)
                if best is None or self.better(value, best[0]):
                    best = value, outputs, strength
        return best[1], {self.strength: best[2]}


def _metric_name(metric: Any) -> str:
    return metric if isinstance(metric, str) else metric.name


class Reading(keras.metrics.Metric):
    """A metric that takes other labels than another metric, which it asks.

    Args:
        metric: The other metric.
        read: Makes its labels of what they are.
    """

    def __init__(self, metric: keras.metrics.Metric, read: Callable[[Any], Any]) -> None:
        super().__init__(name=metric.name)
        self.metric, self._read = metric, read

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Take in a batch."""
        self.metric.update_state(self._read(y_true), y_pred, sample_weight)

    def result(self) -> Any:
        """Return what the metric says."""
        return self.metric.result()

    def reset_state(self) -> None:
        """Begin anew."""
        self.metric.reset_state()


@cache
def _direction(rules: SingleRules, name: str) -> str | None:
    labels, worse = rules._examples()
    values = []
    for outputs in worse:
        metric = rules.metric(name)
        if metric is None:
            return None
        try:
            metric.update_state(labels, outputs)
            values.append(float(keras.ops.convert_to_numpy(metric.result())))
        except Exception:  # whatever it raises at labels of another kind, or several results
            return None
    steps = np.diff(values)
    return "max" if (steps < 0).all() else "min" if (steps > 0).all() else None


def resampled_sums(parts: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Draw as many examples as there are, with replacement, and sum what they add.

    Where few kinds of example differ, resampling decides nothing but how often each kind is drawn,
    and these counts have a multinomial distribution. So that is what is drawn: the same sums,
    whatever the number of examples costs.

    Args:
        parts: Shape (examples, numbers).
        resamples: How many times.
        seed: Decides which.

    Returns:
        Shape (resamples, numbers).
    """
    examples, generator = len(parts), np.random.default_rng(seed)
    kinds, counts = np.unique(parts, axis=0, return_counts=True)
    if len(kinds) <= _MOST_KINDS:
        order = np.lexsort((-kinds[:, 0], -np.abs(kinds[:, 0])))
        drawn = generator.multinomial(examples, counts[order] / examples, size=resamples)
        return drawn @ kinds[order]
    sums = np.empty((resamples, parts.shape[1]))
    for number in range(resamples):
        rows = generator.integers(examples, size=examples)
        sums[number] = np.bincount(rows, minlength=examples) @ parts
    return sums
