"""Tasks: what follows for heads, metrics, tables and rivals from what is to be told.

The rules of a task are the one place where its kind decides anything; `rules_of` finds them.
"""

from typing import Any

from reusekit.data.task import Task
from reusekit.tasks.classes import ClassRules
from reusekit.tasks.joint import JointRules, repeated
from reusekit.tasks.labels import LabelRules
from reusekit.tasks.numbers import NumberRules
from reusekit.tasks.rules import SingleRules, TaskRules, resampled_sums

__all__ = [
    "ClassRules",
    "JointRules",
    "LabelRules",
    "NumberRules",
    "SingleRules",
    "TaskRules",
    "example_rules",
    "repeated",
    "resampled_sums",
    "rules_of",
]

_RULES: dict[Any, type[SingleRules]] = {
    "classification": ClassRules,
    "multilabel": LabelRules,
    "regression": NumberRules,
}


def rules_of(task: Task) -> TaskRules:
    """Return the rules of a task.

    Example:
        >>> rules_of(Task("regression", ("price",))).objective
        'val_loss'
    """
    if task.parts:
        return JointRules(task, tuple(_RULES[part.kind](part) for part in task.parts))
    return _RULES[task.kind](task)


def example_rules() -> list[SingleRules]:
    """Return the rules of a single task of each kind, with three outputs."""
    return [rules(Task(kind, ("a", "b", "c"))) for kind, rules in _RULES.items()]
