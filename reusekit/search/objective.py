"""The objective of trials: the metric by which they are compared, stopped and kept."""

from collections.abc import Iterable
from typing import Any

import keras
import keras_tuner

from reusekit.errors import ConfigError, nearest
from reusekit.search.config import SearchConfig
from reusekit.search.space import SearchSpace, TrialSpec
from reusekit.tasks import TaskRules, example_rules
from reusekit.tasks.rules import SingleRules
from reusekit.training.fit import MONITORED, Monitor
from reusekit.training.heads import Head

BY_LOSS = keras_tuner.Objective(MONITORED, "min")
_VALIDATION = "val_"


def objective_of(callbacks: Iterable[keras.callbacks.Callback]) -> keras_tuner.Objective:
    """Return the objective by which one of keras-tuner's callbacks keeps the best epoch."""
    found = (getattr(callback, "objective", None) for callback in callbacks)
    return next((one for one in found if type(one) is keras_tuner.Objective), BY_LOSS)


def configured_objective(
    config: SearchConfig, space: SearchSpace, rules: TaskRules, mixed: bool = False
) -> keras_tuner.Objective:
    """Return the objective that a search is configured with, and its direction.

    Raises:
        ConfigError: It is no metric of the heads, or nobody knows whether more of it is better; or
            training examples are mixed, and a head cannot take their labels.
    """
    name = config.objective or rules.objective
    heads = space.heads.values() if space.heads else [space.head(TrialSpec("", ""), rules)]
    for head in heads:
        _check_reported(name, with_metric(head, name, rules, mixed))
    return keras_tuner.Objective(name, config.direction or _direction(name, rules))


def monitor_of(name: str, head: Head, rules: TaskRules) -> Monitor:
    """Return how a metric decides which epoch of a head is the best.

    Raises:
        ConfigError: It is no validation metric that the head reports, or nobody knows whether more
            of it is better.
    """
    _check_reported(name, with_metric(head, name, rules))
    return Monitor(name, _direction(name, rules) == "max")


def with_metric(
    head: Head, objective: str, rules: TaskRules, mixed: bool = False
) -> dict[str, Any]:
    """Return the arguments to compile a head with, the metric of its objective among them.

    Args:
        head: A head, of which no metric is made where it is of another kind than the task's.
        objective: The name of a validation metric.
        rules: Those of the task, which make it.
        mixed: Whether training examples are mixed, so that their labels are shares.
    """
    compile_args = _with_metric(head, objective, rules)
    if not mixed:
        return compile_args
    assert isinstance(rules, SingleRules)  # examples of several tasks are not mixed
    return rules.with_shares(head, compile_args)


def _with_metric(head: Head, objective: str, rules: TaskRules) -> dict[str, Any]:
    compile_args = head.compile_args
    reported, name = _reported(compile_args), objective.removeprefix(_VALIDATION)
    if reported is None or name in reported or name == objective:
        return compile_args
    return rules.reporting(head, name)


def _check_reported(name: str, compile_args: dict[str, Any]) -> None:
    """Raise ConfigError where what a head is compiled with does not report an objective."""
    reported = _reported(compile_args)
    valid = [f"{_VALIDATION}{each}" for each in reported or ()]
    if reported is not None and name not in valid:
        raise ConfigError(
            f"Expected the objective to be a validation metric of the heads, one of "
            f"{', '.join(valid)}, or val_ and the name of a metric of Keras for the task. "
            f"Received: {name!r}. {nearest(name, valid)}"
        )


def _direction(name: str, rules: TaskRules) -> str:
    if name == MONITORED:
        return "min"
    # What a head of one's own reports may be a metric of another task. keras-tuner comes last: it
    # takes F1, R squared and others for losses.
    metric = name.removeprefix(_VALIDATION)
    found = next(filter(None, (each.direction(metric) for each in [rules, *example_rules()])), None)
    if found is None:
        try:
            return keras_tuner.Oracle(objective=name).objective.direction
        except ValueError:
            pass
        raise ConfigError(
            "Expected direction='max' or direction='min' with an objective of which it is not "
            f"known whether more is better. Received: {name!r}."
        )
    return found


def _reported(compile_args: dict[str, Any]) -> list[str] | None:
    """Return the names of what a head reports, as Keras names it; None where nobody knows."""
    metrics = [compile_args.get(key) or [] for key in ("metrics", "weighted_metrics")]
    losses = compile_args.get("loss")
    if isinstance(losses, dict) and len(losses) > 1:  # a single output has no name of its own
        outputs = {f"{name}_": name for name in losses}
        metrics = [part if isinstance(part, dict) else {} for part in metrics]
    else:
        outputs, losses = {"": None}, {}
        if not all(isinstance(part, list) for part in metrics):
            return None
    found = ["loss", *(f"{name}_loss" for name in losses)]
    for prefix, name in outputs.items():
        for part in metrics:
            told: Any = part.get(name) or [] if isinstance(part, dict) else part
            found += [prefix + (one if isinstance(one, str) else one.name) for one in told]
    return found
