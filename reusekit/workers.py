"""Processes that run a function over many items: this one, or others."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers(Protocol):
    """Processes that run a function over items; `reusekit.cluster.Cluster` is on other machines."""

    @property
    def count(self) -> int:
        """The number of items that are worked on at the same time."""

    def map(self, function: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[Any]:
        """Yield the result of each item, in the order of the items.

        Args:
            function: What is run. Elsewhere a copy of it is, so it and its results are plain data,
                models that Keras can save, or can be pickled; of an iterator a list comes back.
            items: What it is run on, one after another.
        """

    def check_folder(self, folder: Any) -> None:
        """Raise an error where a worker does not see a folder."""


class Here:
    """This process, which works on one item at a time, when its result is asked for."""

    count = 1

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the result of each item, as the builtin does."""
        return map(function, items)

    def check_folder(self, folder: Any) -> None:
        """Do nothing: this process sees what it sees."""


HERE = Here()
