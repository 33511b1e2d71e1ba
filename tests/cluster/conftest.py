"""Two nodes on this machine, each with room for one worker of as many threads as this process."""

import os
import sys
from collections.abc import Iterator

import pytest

# Read when Ray is imported: its nodes listen on 127.0.0.1 alone.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

THREADS = int(os.environ.get("TF_NUM_INTRAOP_THREADS") or os.cpu_count() or 1)
NODE = {"num_cpus": THREADS, "object_store_memory": 100 * 2**20}
# So that a node that was killed is known to be dead in seconds.
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def nodes() -> Iterator:
    """A cluster of Ray's with two nodes, whose workers import what tests do."""
    from ray.cluster_utils import Cluster

    from reusekit.cluster.connection import sigterm_kept

    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    head = {**NODE, "include_dashboard": False, "_system_config": HEALTH}
    with sigterm_kept():  # for the tests that come after these in this process
        made = Cluster(initialize_head=True, head_node_args=head)
        made.add_node(**NODE)
    yield made
    made.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def cluster(nodes) -> Iterator:
    """The workers on these nodes."""
    from reusekit.cluster import Cluster

    with Cluster(nodes.address, cpus=THREADS, retries=1) as connected:
        yield connected
