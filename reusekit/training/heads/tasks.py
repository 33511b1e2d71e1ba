"""Several tasks on the same features."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Annotated, Any

import keras
from annotated_types import MinLen
from pydantic import NonNegativeFloat

from reusekit.arguments import Name, checked
from reusekit.errors import HeadError
from reusekit.training.heads.head import Features, Head
from reusekit.training.heads.pairs import Siamese


@checked(HeadError)
@dataclass(frozen=True)
class Multitask(Head):
    """Several heads on the same features, each an output of its own by the task's name.

    Args:
        tasks: From each task's name to its head, of any kind that gives one output. The names of
            the heads are not used: a task's layers begin with this head's name and the task's.
        weights: From each task's name to what its loss counts; None counts all alike.
        name: The name of the head.

    Raises:
        HeadError: No tasks, something that is no head or gives several outputs, a name that no
            layer can have, or weights for other tasks.

    Example:
        >>> from reusekit.training.heads import Classifier, Regression
        >>> head = Multitask({"digit": Classifier(10, units=8), "slant": Regression()})
        >>> model = head.build((4, 4, 16))
        >>> {task: output.shape for task, output in model.output.items()}
        {'digit': (None, 10), 'slant': (None, 1)}
        >>> model.compile("adam", **head.compile_args)
        >>> model.get_layer("head_digit_hidden").units
        8
    """

    tasks: Annotated[Mapping[Name, Head], MinLen(1)]
    _: KW_ONLY
    weights: Mapping[str, NonNegativeFloat] | None = None

    def __post_init__(self) -> None:
        """Check that each head has one output, and that there is a weight for each task."""
        for task, head in self.tasks.items():
            if isinstance(head, Multitask | Siamese):
                raise HeadError(
                    f"Expected a head with one output for the task {task!r}, such as a classifier. "
                    f"Received: {head!r}."
                )
        if self.weights is not None and set(self.weights) != set(self.tasks):
            raise HeadError(
                f"Expected weights as a dict of numbers for the tasks {sorted(self.tasks)}. "
                f"Received: {self.weights!r}."
            )

    @property
    def compile_args(self) -> dict[str, Any]:
        """The losses and metrics of the tasks, by the tasks' names."""
        merged: dict[str, Any] = {}
        for task, head in self.tasks.items():
            for key, value in head.compile_args.items():
                merged.setdefault(key, {})[task] = value
        return merged if self.weights is None else merged | {"loss_weights": dict(self.weights)}

    @checked(HeadError)
    def connect(self, features: Features) -> dict[str, keras.KerasTensor]:
        """Call each task's layers on features; see `Head.connect`."""
        named = {task: replace(h, name=f"{self.name}_{task}") for task, h in self.tasks.items()}
        return {task: head.connect(features) for task, head in named.items()}

    @checked(HeadError)
    def bound_to(self, bottom: keras.Model) -> "Multitask":
        """Return the head with what its tasks take from the bottom beside features."""
        return replace(self, tasks={task: h.bound_to(bottom) for task, h in self.tasks.items()})
