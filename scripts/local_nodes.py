"""Nodes of Ray on this machine, to be killed and stopped, for benchmarks and the demo."""

import os
import signal
import sys
from collections.abc import Collection
from contextlib import suppress
from time import sleep
from typing import Any

import psutil

from reusekit.cluster.connection import sigterm_kept

# Read when Ray is imported: its nodes listen on 127.0.0.1 alone.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

# So that a node that was killed is known to be dead in seconds.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}
MEMORY = 512 << 20
"""For a backbone and features of both; when it is nearly full Ray writes to the disk."""


def keep_to(cores: Collection[int]) -> None:
    """Keep this process, and those that it starts from now on, to some cores; none to none."""
    for thread in psutil.Process().threads() if cores else ():
        with suppress(ProcessLookupError):  # one that has ended meanwhile
            os.sched_setaffinity(thread.id, cores)


class Nodes:
    """Nodes of Ray on this machine; the first one is the head.

    Args:
        count: How many.
        cpus: CPUs of each, as Ray counts them.
        apart: Whether each has that many cores of this machine to itself, on Linux; this process,
            the driver, then shares those of the first node, as it does on a cluster of so many.
    """

    def __init__(self, count: int = 2, cpus: int = 1, apart: bool = False) -> None:
        from ray.cluster_utils import Cluster

        self._cores = sorted(os.sched_getaffinity(0)) if apart else []
        if count * cpus > len(self._cores) > 0:
            raise ValueError(
                f"Expected {count * cpus} cores for {count} nodes of {cpus}. Received: "
                f"{len(self._cores)}."
            )
        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
        node = {"num_cpus": cpus, "object_store_memory": MEMORY}
        head = {**node, "include_dashboard": False, "_system_config": HEALTH}
        self._node = node
        self.others: list[Any] = []
        keep_to(self._cores[:cpus])
        with sigterm_kept():
            self._ray = Cluster(initialize_head=True, head_node_args=head)
            self.address: str = self._ray.address
        for number in range(1, count):
            keep_to(self._cores[number * cpus : (number + 1) * cpus])
            self.add_one()
        keep_to(self._cores[:cpus])

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()
        keep_to(self._cores)

    def kill_one(self) -> None:
        """Kill all processes of a node that is not the head, by `kill -9`."""
        self._ray.remove_node(self.others.pop(), allow_graceful=False)

    def add_one(self) -> None:
        """Start another node; Ray does so in the main thread alone."""
        with sigterm_kept():
            self.others.append(self._ray.add_node(**self._node))

    def stop_one(self, seconds: float) -> None:
        """Have the workers of a node that is not the head stand still for a while."""
        (raylet,) = (one for one in self.others[-1].live_processes() if one[0] == "raylet")
        workers = psutil.Process(raylet[1].pid).children(recursive=True)
        for sent in (signal.SIGSTOP, signal.SIGCONT):
            for one in workers:
                one.send_signal(sent)
            sleep(seconds if sent == signal.SIGSTOP else 0)
