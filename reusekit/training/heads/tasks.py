"""Several tasks on the same features, or on layers that they share."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Annotated, Any

import keras
from annotated_types import MinLen
from pydantic import NonNegativeFloat

from reusekit.arguments import Name, Rate, checked
from reusekit.errors import HeadError
from reusekit.training.heads.dense import DenseHead
from reusekit.training.heads.head import Features, Head, one_tensor
from reusekit.training.heads.pairs import Siamese
from reusekit.training.heads.pooling import Pooling, pool


@checked(HeadError)
@dataclass(frozen=True)
class Multitask(DenseHead):
    """Several heads on the same features, each an output of its own by the task's name.

    What is said of the shared part is built once, and the heads stand on it; where nothing is, each
    takes the features themselves.

    Args:
        tasks: From each task's name to its head, of any kind that gives one output. The names of
            the heads are not used: a task's layers begin with this head's name and the task's.
        weights: From each task's name to what its loss counts; None counts all alike.
        pooling: Of the shared part; None leaves it to the heads, or is "avg" where there is a
            shared part.
        units: Width of its hidden layer, or widths of several; 0 for none.
        dropout: Share that it drops while training.
        normalization: "batch" or "layer" normalizes its dense layers' inputs.
        standardize: Pooled features (examples, channels) whose mean and variance it removes.
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
        >>> shared = Multitask({"digit": Classifier(10), "slant": Regression()}, units=8)
        >>> [layer.name for layer in shared.build((16,)).layers]
        ['head_input', 'head_hidden', 'head_digit_probabilities', 'head_slant_values']
    """

    tasks: Annotated[Mapping[Name, Head], MinLen(1)]
    _: KW_ONLY
    weights: Mapping[str, NonNegativeFloat] | None = None
    pooling: Pooling | None = None  # type: ignore[assignment]  # parts pool

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
        """Call the shared layers on features and each task's on these; see `Head.connect`."""
        shared = (self.pooling, any(self._widths()), self.dropout, self.normalization)
        if any(shared) or self.standardize is not None:
            whole = pool(one_tensor(features, "multitask"), self.pooling or "avg", self.name)
            features = self._hidden(self._standardized(whole))
        return self._output(features)

    @checked(HeadError)
    def smoothed_loss(self, smoothing: Rate) -> Any:
        """Return the tasks' losses with smoothed labels; see `Head.smoothed_loss`."""
        return {task: head.smoothed_loss(smoothing) for task, head in self.tasks.items()}

    def _output(self, x: Any) -> Any:
        named = {task: replace(h, name=f"{self.name}_{task}") for task, h in self.tasks.items()}
        return {task: head.connect(x) for task, head in named.items()}

    @checked(HeadError)
    def bound_to(self, bottom: keras.Model) -> "Multitask":
        """Return the head with what its tasks take from the bottom beside features."""
        return replace(self, tasks={task: h.bound_to(bottom) for task, h in self.tasks.items()})
