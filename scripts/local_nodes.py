"""Nodes of Ray on this machine, to be killed and stopped, for benchmarks and the demo."""

import os
import signal
import sys
from time import sleep

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


class Nodes:
    """Nodes of Ray on this machine; the first one is the head."""

    def __init__(self, count: int = 2, cpus: int = 1) -> None:
        from ray.cluster_utils import Cluster

        os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
        node = {"num_cpus": cpus, "object_store_memory": MEMORY}
        head = {**node, "include_dashboard": False, "_system_config": HEALTH}
        self._node = node
        with sigterm_kept():
            self._ray = Cluster(initialize_head=True, head_node_args=head)
            self.address: str = self._ray.address
            self.others = [self._ray.add_node(**node) for _ in range(count - 1)]

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

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
