"""The objective of trials: the metric by which they are compared, stopped and kept."""

from collections.abc import Iterable
from typing import Any

import keras
import keras_tuner

from reusekit.errors import ConfigError, nearest
from reusekit.search.config import SearchConfig
from reusekit.search.space import SearchSpace, TrialSpec
from reusekit.training.fit import MONITORED

BY_LOSS = keras_tuner.Objective(MONITORED, "min")


def objective_of(callbacks: Iterable[keras.callbacks.Callback]) -> keras_tuner.Objective:
    """Return the objective by which one of keras-tuner's callbacks keeps the best epoch."""
    found = (getattr(callback, "objective", None) for callback in callbacks)
    return next((one for one in found if type(one) is keras_tuner.Objective), BY_LOSS)


def configured_objective(
    config: SearchConfig, space: SearchSpace, classes: int
) -> keras_tuner.Objective:
    """Return the objective that a search is configured with, and its direction.

    Raises:
        ConfigError: It is no metric of the heads, or nobody knows whether more of it is better.
    """
    name = config.objective
    heads = space.heads.values() if space.heads else [space.head(TrialSpec("", ""), classes)]
    for names in (_reported(head.compile_args) for head in heads):
        valid = [f"val_{each}" for each in names or ()]
        if names is not None and name not in valid:
            raise ConfigError(
                f"Expected the objective to be a validation metric of the heads, one of "
                f"{', '.join(valid)}. Received: {name!r}. {nearest(name, valid)}"
            )
    if config.direction is not None:
        return keras_tuner.Objective(name, config.direction)
    try:
        return keras_tuner.Oracle(objective=name).objective
    except ValueError as error:
        raise ConfigError(
            "Expected direction='max' or direction='min' with an objective of which it is not "
            f"known whether more is better. Received: {name!r}."
        ) from error


def _reported(compile_args: dict[str, Any]) -> list[str] | None:
    """Return the names of what a head reports; None where they follow from several outputs."""
    metrics = [compile_args.get(key) or [] for key in ("metrics", "weighted_metrics")]
    if not all(isinstance(each, list) for each in metrics):
        return None
    named = (each if isinstance(each, str) else each.name for part in metrics for each in part)
    return ["loss", *named]
