"""A recorded plan on 1 to 1,000 simulated workers, some of which fail.

    python scripts/simulate_cluster.py runs/LAST/plan.json
    python scripts/simulate_cluster.py plan.json --failures 0.5 --picture cluster.png

The plan is the `plan.json` that a search writes, with the speeds that were measured. Events come
one after another: the driver reads blocks of examples ahead and writes features as they come,
workers compute, then train trials; a worker that fails loses its task, which another begins anew,
and is back after some seconds. The same seed gives the same.
"""

import argparse
import heapq
import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from rich.console import Console
from rich.table import Table

from reusekit.planning import Plan
from reusekit.planning.workers import SENDING_SECONDS, TASK_SECONDS

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
AHEAD = 4
"""Blocks for each worker that are read before the results of the first are there."""


@dataclass(frozen=True)
class Simulated:
    """A plan on so many workers.

    Attributes:
        workers: How many.
        seconds: When all is done.
        failures: Workers that failed at work.
        lost: Seconds of work that was done in vain.
        busy: The share of the workers' time that was work, in vain or not.
    """

    workers: int
    seconds: float
    failures: int
    lost: float
    busy: float


class Workers:
    """Workers that fail at random moments, and come back.

    Args:
        count: How many.
        rate: Failures of each in a second.
        recovery: Seconds until one that has failed is back.
        seed: Of the moments.
    """

    def __init__(self, count: int, rate: float, recovery: float, seed: int) -> None:
        self.count, self._rate, self._recovery = count, rate, recovery
        self._random = np.random.default_rng(seed)
        self._fails = [self._next(0.0) for _ in range(count)]
        self.failures, self.lost, self.worked = 0, 0.0, 0.0
        self._begun: set[int] = set()

    def _next(self, now: float) -> float:
        return now + self._random.exponential(1 / self._rate) if self._rate else math.inf

    def run(
        self,
        seconds: Sequence[float],
        began: float,
        reading: float,
        writing: float,
        first: float = 0.0,
    ) -> float:
        """Return when tasks are done, each of which the driver reads and writes.

        Args:
            seconds: What each task takes a worker.
            began: When the first may begin.
            reading: Seconds of the driver before a task.
            writing: Seconds of the driver after it.
            first: Seconds of each worker before its first task.
        """
        self._begun.clear()
        events: list[tuple[float, int, str, int, int]] = []
        number = itertools.count()
        free, ready = deque(range(self.count)), deque[int]()
        computed, unread = deque[int](), deque(range(len(seconds)))
        ahead, left, driver_is_free, now = 0, len(seconds), True, began
        while left:
            if driver_is_free and computed:
                driver_is_free = False
                event = now + writing, next(number), "written", computed.popleft(), 0
                heapq.heappush(events, event)
            elif driver_is_free and unread and ahead < AHEAD * self.count:
                driver_is_free, ahead = False, ahead + 1
                event = now + reading, next(number), "read", unread.popleft(), 0
                heapq.heappush(events, event)
            elif free and ready:
                worker = free.popleft()
                back = self._back(worker, now)
                if back > now:
                    heapq.heappush(events, (back, next(number), "back", 0, worker))
                else:
                    task = ready.popleft()
                    ended, event = self._end(
                        worker, now, seconds[task] + self._first(worker, first)
                    )
                    heapq.heappush(events, (ended, next(number), event, task, worker))
            else:
                now, _, what, task, worker = heapq.heappop(events)
                if what in ("read", "written"):
                    driver_is_free = True
                else:
                    free.append(worker)
                if what == "read":
                    ready.append(task)
                elif what == "computed":
                    computed.append(task)
                elif what == "failed":
                    ready.appendleft(task)
                elif what == "written":
                    left, ahead = left - 1, ahead - 1
        return now

    def _first(self, worker: int, seconds: float) -> float:
        """Return what a worker takes before its first task."""
        told = 0.0 if worker in self._begun else seconds
        self._begun.add(worker)
        return told

    def _back(self, worker: int, now: float) -> float:
        """Return when a worker that had nothing to do is there."""
        while (fails := self._fails[worker]) <= now:
            self._begun.discard(worker)
            self._fails[worker] = self._next(fails + self._recovery)
            now = max(now, fails + self._recovery)
        return now

    def _end(self, worker: int, now: float, seconds: float) -> tuple[float, str]:
        """Return when a worker has ended a task, or fails in it."""
        fails = self._fails[worker]
        if fails < now + seconds:
            self.failures, self.lost = self.failures + 1, self.lost + fails - now
            self.worked += fails - now
            return fails, "failed"
        self.worked += seconds
        return now + seconds, "computed"


def simulate(
    plan: Plan, workers: int, failures: float = 0.0, recovery: float = 10.0, seed: int = 0
) -> Simulated:
    """Return what becomes of a plan on a number of workers.

    Args:
        plan: The plan.
        workers: How many workers.
        failures: Of each worker in an hour.
        recovery: Seconds until a worker that has failed is back.
        seed: Of the moments of failures.
    """
    those = Workers(workers, failures / 3600, recovery, seed)
    now, one = 0.0, plan.one_pass
    if one is not None and one.tasks:
        each = one.bottom / one.tasks + TASK_SECONDS
        reading, writing = one.reading / one.tasks, one.writing / one.tasks
        now = those.run([each] * one.tasks, now, reading + SENDING_SECONDS, writing, one.tracing)
    tasks = plan.tasks
    share = math.ceil(sum(each.count for each in tasks) / workers)
    seconds = [one + TASK_SECONDS for each in tasks for one in each.seconds(share)]
    now = those.run(seconds, now, SENDING_SECONDS, 0.0)
    return Simulated(
        workers, now, those.failures, those.lost, those.worked / max(now * workers, 1e-9)
    )


def table(found: Sequence[Simulated]) -> Table:
    """Return simulated runs as a table, one row each."""
    made = Table("workers", "seconds", "times as fast", "busy", "failures", "lost s")
    for one in found:
        faster = found[0].seconds / one.seconds if one.seconds else 1.0
        told = f"{one.seconds:,.1f}", f"{faster:.1f}", f"{one.busy:.0%}"
        made.add_row(str(one.workers), *told, str(one.failures), f"{one.lost:,.1f}")
    return made


def draw(found: Sequence[Simulated], file: str, title: str) -> None:
    """Draw how many times as fast so many workers are, beside what no cluster exceeds."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    counts = [one.workers for one in found]
    axes.plot(counts, [found[0].seconds / one.seconds for one in found], "o-", label="simulated")
    axes.plot(counts, [count / counts[0] for count in counts], ":", color="grey", label="ideal")
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="times as fast", title=title)
    axes.legend()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Simulate the plan of a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", help="the plan.json of a search")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument("--failures", type=float, default=0.0, help="of each worker in an hour")
    parser.add_argument("--recovery", type=float, default=10.0, help="seconds until one is back")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", help="file to draw into, such as cluster.png")
    options = parser.parse_args()
    plan = Plan.load(options.plan)
    how = options.failures, options.recovery, options.seed
    found = [simulate(plan, count, *how) for count in options.workers]
    Console().print(table(found))
    if options.picture:
        draw(found, options.picture, f"{options.failures:g} failures of a worker in an hour")
        print(f"Drawn in {options.picture}.")


if __name__ == "__main__":
    main()
