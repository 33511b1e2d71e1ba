"""The rules of several tasks at once, each by its own rules on outputs and labels of its name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, ClassVar, Self

import numpy as np

from reusekit.data.task import joined
from reusekit.errors import ConfigError, nearest
from reusekit.tasks.rules import WORST, SingleRules, TaskRules
from reusekit.training.heads import Head, Multitask


@dataclass(frozen=True)
class JointRules(TaskRules):
    """The rules of several tasks at once.

    Outputs and labels are arrays with a field for each task, as `joined` makes them. The measure is
    the mean of the tasks' losses, each relative to that of the constant outputs that fit the labels
    best: 1 for a model that looks at nothing, whatever the scale of numbers is.

    Attributes:
        several: The rules of each, in the order of the task's names.
        weights: What the loss of each counts in training, by name; None counts all alike.
    """

    several: tuple[SingleRules, ...] = ()
    weights: Mapping[str, float] | None = field(default=None, compare=False)

    objective: ClassVar[str] = "val_loss"
    measure: ClassVar[str] = "relative_loss"
    maximize: ClassVar[bool] = False
    linear: ClassVar[str] = "linear models"

    @property
    def by_name(self) -> dict[str, SingleRules]:
        """The rules of each task."""
        return dict(zip(self.task.names, self.several, strict=True))

    def each(self, *arrays: Any) -> Iterator[tuple[str, SingleRules, *tuple[Any, ...]]]:
        """Yield each task; see `TaskRules.each`."""
        for name, rules in self.by_name.items():
            yield f"{name}_", rules, *(array[name] for array in arrays)

    def gathered(
        self, parts: Sequence[tuple[SingleRules, np.ndarray]]
    ) -> tuple[TaskRules, np.ndarray]:
        """Return the rules of all tasks, and their arrays joined; see `TaskRules.gathered`."""
        rules, arrays = zip(*parts, strict=True)
        return replace(self, several=rules), joined(dict(zip(self.task.names, arrays, strict=True)))

    def _joined(self, made: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
        """Join what the rules of each task make of its part of arrays."""
        return joined(
            {
                name: made(rules, *(array[name] for array in arrays))
                for name, rules in self.by_name.items()
            }
        )

    # --- training ---------------------------------------------------------------------------------

    def head(self, units: int = 0, dropout: float = 0.0, standardize: Any = None) -> Head:
        """Return a head with an output for each task, on a pooled feature that all share."""
        return Multitask(
            {name: rules.head() for name, rules in self.by_name.items()},
            weights=self.weights,
            pooling="avg",
            units=units,
            dropout=dropout,
            standardize=standardize,
        )

    def fitted(self, labels: np.ndarray) -> Self:
        """Return the rules with what heads take from the labels of training.

        The loss of each task is divided by that of the constant outputs that fit them best, so that
        large numbers do not outweigh classes.
        """
        told = self.targets(labels, "train")
        fitted = tuple(rules.fitted(told[name]) for name, rules in self.by_name.items())
        scales = zip(self.task.names, self._chances(told), strict=True)
        weights = {name: float(1 / scale) for name, scale in scales}
        return replace(self, several=fitted, weights=weights)

    def weighted(self, weights: Mapping[str, float] | None) -> Self:
        """Return the rules with what the losses count, beside their scale."""
        if weights is None:
            return self
        for name in weights:
            if name not in self.by_name:
                raise ConfigError(
                    f"Expected loss_weights of tasks. Received: {name!r}. "
                    f"{nearest(name, self.by_name)}"
                )
        scales = self.weights or dict.fromkeys(self.task.names, 1.0)
        found = {name: scale * weights.get(name, 1.0) for name, scale in scales.items()}
        return replace(self, weights=found)

    def formed(self, labels: np.ndarray) -> np.ndarray:
        """Return the labels of each task in its form."""
        return self._joined(lambda rules, own: rules.formed(own), labels)

    def remarks(
        self, counts: Mapping[str, np.ndarray], train: str, few: bool, whole: bool
    ) -> list[str]:
        """Return what is strange about the labels of each task; see `TaskRules.remarks`."""
        found, ends = [], [0, *accumulate(rules.task.size for rules in self.several)]
        for (name, rules), start, end in zip(self.by_name.items(), ends, ends[1:], strict=False):
            own = {split: every[start:end] for split, every in counts.items()}
            found += [f"{name}: {remark}" for remark in rules.remarks(own, train, few, whole)]
        return found

    def _metric_of(self, name: str) -> tuple[str, str] | None:
        """Return the task of a metric, as Keras names it, and what it is called there."""
        found = (task for task in self.by_name if name.startswith(f"{task}_"))
        task = next(found, None)  # no name of a task stands before another's
        return None if task is None else (task, name.removeprefix(f"{task}_"))

    def direction(self, name: str) -> str | None:
        """Return "max" or "min" for a metric of a task; see `TaskRules.direction`."""
        found = self._metric_of(name)
        if found is None:
            return None
        task, own = found
        return "min" if own == "loss" else self.by_name[task].direction(own)

    def reporting(self, head: Head, name: str) -> dict[str, Any]:
        """Return what a head is compiled with, and a metric more; see `TaskRules.reporting`."""
        args, found = head.compile_args, self._metric_of(name)
        if found is None or not isinstance(head, Multitask) or found[0] not in head.tasks:
            return args
        task, own = found
        more = self.by_name[task].reporting(head.tasks[task], own).get("metrics")
        return args | {"metrics": {**args.get("metrics", {}), task: more}}

    # --- measuring --------------------------------------------------------------------------------

    def tuned(self, outputs: np.ndarray, labels: np.ndarray) -> Self:
        """Return the rules with what is chosen for each task by its outputs."""
        pairs = self.by_name.items()
        tuned = tuple(rules.tuned(outputs[name], labels[name]) for name, rules in pairs)
        return replace(self, several=tuned)

    @property
    def thresholds(self) -> dict[str, tuple[float, ...]] | None:
        """The thresholds of the tasks of labels, by name; None where there are none."""
        found = {name: getattr(rules, "thresholds", None) for name, rules in self.by_name.items()}
        return {name: chosen for name, chosen in found.items() if chosen is not None} or None

    def decided(self, outputs: np.ndarray) -> np.ndarray:
        """Return what a model says in each task."""
        return self._joined(lambda rules, given: rules.decided(given), outputs)

    def losses(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the mean of the tasks' losses, relative to those of constant outputs."""
        found = [rules.losses(given, told) for _, rules, given, told in self.each(outputs, labels)]
        return np.mean(np.stack(found) / self._chances(labels)[:, None], axis=0)

    def _chances(self, labels: np.ndarray) -> np.ndarray:
        """Return the loss of each task's best constant outputs; 1 where that is none."""
        found = [
            rules.losses(repeated(rules.constant(told), len(told)), told).mean()
            for _, rules, told in self.each(labels)
        ]
        return np.array([loss if loss > 0 else 1.0 for loss in found])

    def scores(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return the scores of each task, and the measure."""
        found = {
            prefix + name: value
            for prefix, rules, given, told in self.each(outputs, labels)
            for name, value in rules.scores(given, told).items()
        }
        return found | {self.measure: self.value(outputs, labels)}

    def parts(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the relative loss of each example."""
        return -self.goodness(outputs, labels)[:, None]

    def goodness(self, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the negative relative loss of each example; nothing finite is the worst."""
        losses = self.losses(outputs, labels)
        return -np.where(np.isfinite(losses), losses, WORST)

    # --- rivals and words -------------------------------------------------------------------------

    def constant(self, labels: np.ndarray) -> np.ndarray:
        """Return the outputs of each task of a model that looks at no input."""
        return self._joined(lambda rules, told: rules.constant(told)[None], labels)[0]

    def best_linear(
        self,
        train: tuple[np.ndarray, np.ndarray, np.ndarray | None],
        validation: tuple[np.ndarray, np.ndarray],
    ) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, float]]:
        """Fit the best linear model for each task; see `TaskRules.best_linear`."""
        (x, y, weights), (held, told) = train, validation
        found = [
            (prefix, *rules.best_linear((x, own, weights), (held, known)))
            for prefix, rules, own, known in self.each(y, told)
        ]
        chosen = {p + name: value for p, _, values in found for name, value in values.items()}
        fits = [(prefix.removesuffix("_"), outputs) for prefix, outputs, _ in found]
        return lambda inputs: joined({name: outputs(inputs) for name, outputs in fits}), chosen

    def sentence(self, inputs: str) -> str:
        """Say what a model does in each task."""
        said = (
            f"{rules.sentence(inputs).removesuffix('.')} ({name})."
            for name, rules in self.by_name.items()
        )
        return " ".join(said)


def repeated(row: Any, count: int) -> np.ndarray:
    """Return the outputs of one example for so many."""
    return np.repeat(np.array(row)[None], count, axis=0)
