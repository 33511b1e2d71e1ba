"""The task of a data set: the kind of its labels, and the names of the outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from annotated_types import MinLen

from reusekit.arguments import Name, checked
from reusekit.errors import DataError, nearest

Kind = Literal["classification", "multilabel", "regression"]
AnyKind = Kind | Literal["joint"]


@checked(DataError)
@dataclass(frozen=True)
class Task:
    """A kind of task, and the names of its outputs.

    Attributes:
        kind: `classification` has one class an example, its number as an int64 label; `multilabel`
            any of several labels, a float32 vector of 0 and 1; `regression` numbers, a float32
            number or a vector of them; `joint` several tasks at once, a dictionary of their labels
            by name.
        names: Of the classes, the labels, or the numbers to predict, in the order of outputs; of
            several tasks those of the tasks.
        parts: The tasks of a joint one, in the order of their names.

    Raises:
        DataError: A joint task has fewer than two tasks, or another one has some; or metrics and
            answers of two tasks would have one name.

    Example:
        >>> Task("classification", ("cat", "dog")).size
        2
        >>> Task.joint({"kind": Task("classification", ("cat", "dog")),
        ...             "age": Task("regression", ("age",))}).names
        ('kind', 'age')
    """

    kind: AnyKind
    names: Annotated[tuple[str, ...], MinLen(1)]
    parts: "tuple[Task, ...]" = ()

    def __post_init__(self) -> None:
        """Check that a joint task, and no other, has a task for each name."""
        wanted = len(self.names) if self.kind == "joint" else 0
        if len(self.parts) != wanted or any(part.parts for part in self.parts) or wanted == 1:
            raise DataError(
                "Expected two tasks or more of a joint task, each with a name, and none of another "
                f"one. Received: kind={self.kind!r}, names={self.names!r} and {len(self.parts)} "
                "tasks."
            )
        for name in self.names if self.parts else ():
            # Keras puts the name of an output, and val, before those of metrics.
            before = [one for one in (*self.names, "val") if f"{name}_".startswith(f"{one}_")]
            if before != [name]:
                raise DataError(
                    "Expected names of tasks of which none is val or stands before another's, as a "
                    f"before a_b, since metrics are named so. Received: {name!r}."
                )

    @classmethod
    @checked(DataError)
    def joint(cls, parts: "Mapping[Name, Task]") -> Self:
        """Return several tasks at once, by name."""
        return cls("joint", tuple(parts), tuple(parts.values()))

    @property
    def by_name(self) -> "dict[str, Task]":
        """The tasks of a joint one; none of another."""
        return dict(zip(self.names, self.parts, strict=True)) if self.parts else {}

    @property
    def size(self) -> int:
        """The number of outputs, of all tasks together."""
        return sum(part.size for part in self.parts) or len(self.names)

    def stated(self) -> list[Any]:
        """Return the task as plain data."""
        if not self.parts:
            return [self.kind, list(self.names)]
        return [self.kind, {name: part.stated() for name, part in self.by_name.items()}]


def kinds_of(
    asked: Kind | Mapping[str, Kind] | None, names: Sequence[str] | None
) -> dict[str | None, Kind | None]:
    """Return the kind that is asked for of each task, by its name; None names a single one.

    Args:
        asked: One for all tasks, or by name; None leaves it to the labels.
        names: The names of several tasks; None for a single one.

    Raises:
        DataError: There is no such task.

    Example:
        >>> kinds_of({"age": "regression"}, ["breed", "age"])
        {'breed': None, 'age': 'regression'}
    """
    if names is not None and len(names) < 2:
        raise DataError(
            "Expected labels of two tasks or more by name; one is given by itself. Received: "
            f"{', '.join(map(repr, names)) or 'none'}."
        )
    if not isinstance(asked, Mapping):
        return dict.fromkeys(names, asked) if names else {None: asked}
    for name in asked:
        if names is None:
            raise DataError(
                "Expected one task, since there is one label; several are given by name, as "
                f"label: {{breed: ..., age: ...}}. Received: {dict(asked)!r}."
            )
        if name not in names:
            raise DataError(
                f"Expected the name of a task that has a label. Received: {name!r}. "
                f"{nearest(name, names)}"
            )
    return {name: asked.get(name) for name in names or ()}


def joined(values: Any) -> np.ndarray:
    """Return a dictionary of arrays as one array of as many rows, whose fields these are.

    So labels and outputs of several tasks are taken, cut and joined by rows as those of one are.
    Whatever else there is becomes an array.

    Raises:
        DataError: They differ in length.

    Example:
        >>> joined({"kind": np.array([0, 1]), "age": np.array([3.0, 4.0])})["age"]
        array([3., 4.])
    """
    if not isinstance(values, Mapping) or not values:
        return np.asarray(values)
    arrays = {name: np.asarray(part) for name, part in values.items()}
    if len({part.shape[:1] for part in arrays.values()}) > 1:
        counts = ", ".join(f"shape {part.shape} of {name}" for name, part in arrays.items())
        raise DataError(f"Expected as many rows for each task. Received: {counts}.")
    fields: Any = [(name, part.dtype, part.shape[1:]) for name, part in arrays.items()]
    found = np.empty(len(next(iter(arrays.values()))), fields)
    for name, part in arrays.items():
        found[name] = part
    return found


def by_task(values: Any) -> Any:
    """Return the dictionary of arrays that `joined` took; whatever else there is as it is.

    Example:
        >>> by_task(joined({"kind": np.array([0, 1])}))
        {'kind': array([0, 1])}
    """
    names = getattr(getattr(values, "dtype", None), "names", None)
    return {name: values[name] for name in names} if names else values


def plain(value: Any) -> Any:
    """Return nested mappings and lists as dictionaries and lists."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
