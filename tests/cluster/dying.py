"""Functions that end the process that runs them, and workers that run such functions."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from time import monotonic, sleep
from typing import Any

import numpy as np

from reusekit.features import FeatureSource
from reusekit.search.execution import GroupTrainer
from reusekit.workers import Workers


@dataclass(frozen=True)
class Dying:
    """A function whose process is killed, as by `kill -9`, when it is called.

    Attributes:
        function: The function.
        once: A file that the first one to die makes, after which nobody dies; None: everybody.
        node: Whether its node is killed with it; the head is spared.
    """

    function: Callable[[Any], Any]
    once: Path | None
    node: bool = False

    def __call__(self, item: Any) -> Any:
        if self._dies():
            if self.node:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.function(item)

    def _dies(self) -> bool:
        import ray

        if self.node:
            here = ray.get_runtime_context().get_node_id()
            head = [one for one in ray.nodes() if "node:__internal_head__" in one["Resources"]]
            if here == head[0]["NodeID"]:
                ends = monotonic() + 60  # else it may take all work before the other begins
                while self.once is not None and not self.once.exists() and monotonic() < ends:
                    sleep(0.05)
                return False
        if self.once is None:
            return True
        try:
            self.once.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@dataclass(frozen=True)
class DyingWorkers(Workers):
    """Workers of a cluster of which one dies in each run over items; with trials its node, too.

    Attributes:
        cluster: The cluster.
        folder: The folder of the marks of those that died.
    """

    cluster: Workers
    folder: Path

    @property
    def count(self) -> int:
        return self.cluster.count

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        number = len(list(self.folder.iterdir()))
        dying = Dying(function, self.folder / f"{number}", isinstance(function, GroupTrainer))
        return self.cluster.map(dying, items)

    def check_folder(self, folder: Any) -> None:
        self.cluster.check_folder(folder)


def double(number: int) -> int:
    return 2 * number


def paced(item: int) -> bool:
    """Return whether this node is the first one, which is ten times as fast as others."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    (head,) = (n["NodeID"] for n in ray.nodes() if "node:__internal_head__" in n["Resources"])
    sleep(0.02 if here == head else 0.2)
    return here == head


_counted: list[str] = []


def counted(item: str) -> int:
    """Return how often it was called in this process."""
    _counted.append(item)
    return len(_counted)


def calls(number: int) -> int:
    """Return how often `counted` was called in this process."""
    return len(_counted)


def read(source: FeatureSource, batch_size: int) -> Iterator[np.ndarray]:
    """Yield the features of a source as one array."""
    yield np.concatenate([features for features, *_ in source.batches(batch_size)])


def refuse(number: int) -> int:
    raise KeyError(number)


class LockedError(Exception):
    """An error that holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = Lock()


class TwoError(Exception):
    """An error that is pickled, and cannot be made again."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__("two")


def refuse_oddly(number: int) -> int:
    raise (LockedError() if number else TwoError(1, 2))
