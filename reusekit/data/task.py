"""The task of a data set: the kind of its labels, and the names of the outputs."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import MinLen

from reusekit.arguments import checked
from reusekit.errors import DataError

Kind = Literal["classification", "multilabel", "regression"]


@checked(DataError)
@dataclass(frozen=True)
class Task:
    """A kind of task, and the names of its outputs.

    Attributes:
        kind: `classification` has one class an example, its number as an int64 label; `multilabel`
            any of several labels, a float32 vector of 0 and 1; `regression` numbers, a float32
            number or a vector of them.
        names: Of the classes, the labels, or the numbers to predict, in the order of outputs.

    Example:
        >>> Task("classification", ("cat", "dog")).size
        2
    """

    kind: Kind
    names: Annotated[tuple[str, ...], MinLen(1)]

    @property
    def size(self) -> int:
        """The number of outputs."""
        return len(self.names)
