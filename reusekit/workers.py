"""Processes that run a function over many items: this one, or others."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

BLOCK_SECONDS = 0.5
"""The time that a task should take at least, beside which what a task costs is little."""

BLOCK_BYTES = 32 << 20
"""The most that a task's items should take, or its results, unless one has more."""


class Workers(ABC):
    """Processes that run a function over items; those of `reusekit.cluster.Cluster` are others."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of items that are worked on at the same time."""

    @abstractmethod
    def map(self, function: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[Any]:
        """Yield the result of each item, in the order of the items.

        Args:
            function: What is run. Elsewhere a copy of it is, so it and its results are plain data,
                models that Keras can save, or can be pickled; of an iterator a list comes back.
            items: What it is run on, one after another.
        """

    def expect(self, function: Callable[[Item], Any], item: Item) -> None:  # noqa: B027
        """Have each worker run a function once, which takes longest the first time.

        Nothing is waited for, and nothing comes of it. This process does nothing.

        Args:
            function: What will be run.
            item: What it is run on.
        """

    def together(self, function: Callable[[Item], Any], items: Iterable[Item]) -> list[Any]:
        """Return what a function of this process, which gives these workers work, makes of items.

        This process has one item after another. Where workers are others, some items have their
        turn at a time, so that workers begin with the next while the last tasks of one still run.

        Args:
            function: What is run in threads of this process.
            items: What it is run on.
        """
        return list(map(function, items))

    @abstractmethod
    def check_folder(self, folder: Any) -> None:
        """Raise an error where a worker does not see a folder."""


class Here(Workers):
    """This process, which works on one item at a time, when its result is asked for."""

    @property
    def count(self) -> int:
        """One."""
        return 1

    def map(self, function: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[Any]:
        """Yield the result of each item, as the builtin does."""
        return map(function, items)

    def check_folder(self, folder: Any) -> None:
        """Do nothing: this process sees what it sees."""


HERE = Here()


def two_at_a_time(function: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[Any]:
    """Yield the result of each item in order, while that of the next one is computed in a thread.

    The first one is worked on alone, since what is made for it may serve all.

    Args:
        function: It may be called by two threads at a time.
        items: What it is called on.

    Example:
        >>> list(two_at_a_time(str, range(3)))
        ['0', '1', '2']
    """
    left = iter(items)
    for first in left:
        yield function(first)
        break
    running: deque[Future] = deque()
    with ThreadPoolExecutor(2) as pool:
        for item in left:
            running.append(pool.submit(function, item))
            if len(running) > 2:  # one that waits, so that none of the two threads does
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
