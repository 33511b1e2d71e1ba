"""Seconds of a plan on several workers, and what bounds them."""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import PositiveInt

from reusekit.arguments import checked
from reusekit.errors import ConfigError
from reusekit.workers import BLOCK_BYTES, BLOCK_SECONDS

TASK_SECONDS = 0.01
"""What a task costs a worker beside its work, as `scripts/benchmark_cluster.py` measures it."""

SENDING_SECONDS = 0.001
"""What a task costs the driver, which sends it and takes its results."""


@dataclass(frozen=True)
class PlannedPass:
    """The one pass over the data: what the driver does in it, and what workers may do.

    Attributes:
        examples: How many examples the bottom runs on.
        batch_size: Examples that go to a worker at least.
        reading: Seconds of the driver to read them.
        bottom: Seconds of one worker to compute their features.
        writing: Seconds of the driver to write what is stored, and to copy what is known.
        bytes: What is written.
        tracing: Seconds of each worker before its first task.
    """

    examples: int
    batch_size: int
    reading: float
    bottom: float
    writing: float
    bytes: int
    tracing: float = 0.0

    @property
    def tasks(self) -> int:
        """The number of tasks that it is cut into."""
        if not self.examples:
            return 0
        wanted = max(self.bottom / BLOCK_SECONDS, self.bytes / BLOCK_BYTES)
        return max(1, min(math.ceil(wanted), math.ceil(self.examples / self.batch_size)))


@dataclass(frozen=True)
class TrialTasks:
    """Trials that may be trained together, as tasks for workers.

    Attributes:
        count: How many trials.
        together: How many of them at most in a task.
        shared: Seconds of a task, however many trials are in it.
        own: Seconds of each trial in it.
    """

    count: int
    together: int
    shared: float
    own: float

    def seconds(self, share: int) -> list[float]:
        """Return the seconds of each task, where none has more than a share of the trials."""
        size = max(1, min(self.together, share))
        whole, rest = divmod(self.count, size)
        sizes = [size] * whole + [rest] * (rest > 0)
        return [self.shared + self.own * trials for trials in sizes]


@dataclass(frozen=True)
class OnWorkers:
    """A plan on so many workers.

    Attributes:
        workers: How many.
        seconds: What all of it takes there, estimated.
        bound: What it mostly waits for: "bottom", "store" (one process reads the examples and
            writes the features), "trials", or "tasks" (their number, or what each costs).
        idle: The share of the workers' time in which they have nothing to do.
    """

    workers: int
    seconds: float
    bound: str
    idle: float


@checked(ConfigError)
def counts_up_to(workers: PositiveInt) -> tuple[int, ...]:
    """Return 1, 2, 4 and so on, up to the number of workers.

    Example:
        >>> counts_up_to(6)
        (1, 2, 4, 6)
    """
    doubled = (1 << power for power in range(workers.bit_length()))
    return tuple(dict.fromkeys([*doubled, workers]))


def on_workers(
    passes: Sequence[PlannedPass], trials: Sequence[TrialTasks], workers: int
) -> OnWorkers:
    """Return the seconds of a plan on a number of workers.

    The driver reads examples ahead while workers compute, and writes what they give; then workers
    train trials in tasks that are given out in order, each to the first that is free.

    Args:
        passes: The pass over the data of each backbone, one after another.
        trials: Trials in tasks.
        workers: How many workers.

    Example:
        >>> one = PlannedPass(10_000, 64, reading=5.0, bottom=100.0, writing=5.0, bytes=10**8)
        >>> [round(on_workers([one], [], count).seconds) for count in (1, 2, 1000)]
        [102, 51, 10]
        >>> on_workers([one], [], 1000).bound
        'store'
    """
    waited = dict.fromkeys(("bottom", "store", "trials", "tasks"), 0.0)
    busy = 0.0
    for one in passes:
        tasks, driver = one.tasks, one.reading + one.writing
        sending = tasks * SENDING_SECONDS
        each = one.bottom / tasks + TASK_SECONDS if tasks else 0.0
        tracing = one.tracing if tasks else 0.0
        computing = math.ceil(tasks / workers) * each + tracing
        waited["store" if driver + sending >= computing else "bottom"] += max(
            driver + sending, computing
        )
        busy += tasks * each + min(tasks, workers) * tracing
    share = math.ceil(sum(one.count for one in trials) / workers)
    every = [seconds for one in trials for seconds in one.seconds(share)]
    if every:
        cost = len(every) * (TASK_SECONDS + SENDING_SECONDS)
        ended = makespan((seconds + TASK_SECONDS for seconds in every), workers)
        sending = len(every) * SENDING_SECONDS
        # Fewer tasks than workers, tasks of nothing, or a last one that all wait for.
        spread = sum(every) / workers
        waited["tasks" if max(ended, sending) > 2 * spread or cost > sum(every) else "trials"] += (
            max(ended, sending)
        )
        busy += sum(every) + len(every) * TASK_SECONDS
    seconds = sum(waited.values())
    bound = max(waited, key=lambda name: waited[name])
    return OnWorkers(
        workers, seconds, bound, max(0.0, 1 - busy / (seconds * workers)) if seconds else 0.0
    )


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Return when the last of some tasks ends, each given to the first worker that is free.

    Example:
        >>> makespan([3.0, 1.0, 1.0, 1.0], workers=2)
        3.0
    """
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)
