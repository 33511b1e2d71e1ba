"""Tasks: what follows for heads, metrics, tables and rivals from what is to be told.

The rules of a task are the one place where its kind decides anything; `rules_of` finds them.
"""

from reusekit.data.task import Task
from reusekit.search.tasks.classes import ClassRules
from reusekit.search.tasks.labels import LabelRules
from reusekit.search.tasks.numbers import NumberRules
from reusekit.search.tasks.rules import TaskRules, resampled_sums

__all__ = [
    "ClassRules",
    "LabelRules",
    "NumberRules",
    "TaskRules",
    "example_rules",
    "resampled_sums",
    "rules_of",
]

_RULES: dict[str, type[TaskRules]] = {
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
    return _RULES[task.kind](task)


def example_rules() -> list[TaskRules]:
    """Return the rules of a task of each kind, with three outputs."""
    return [rules(Task(kind, ("a", "b", "c"))) for kind, rules in _RULES.items()]  # type: ignore[arg-type]
