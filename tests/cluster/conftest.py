"""Two nodes on this machine, each with room for one worker of as many threads as this process."""

import os
from collections.abc import Iterator

import pytest
from local_nodes import Nodes

THREADS = int(os.environ.get("TF_NUM_INTRAOP_THREADS") or os.cpu_count() or 1)


@pytest.fixture(scope="module")
def nodes() -> Iterator:
    """A cluster of Ray's with two nodes, whose workers import what tests do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", "")  # which the nodes set
        patch.setenv("RAY_worker_niceness", "0")  # else other tests would have the cores
        with Nodes(cpus=THREADS) as made:
            yield made


@pytest.fixture(scope="module")
def cluster(nodes) -> Iterator:
    """The workers on these nodes."""
    from reusekit.cluster import Cluster

    with Cluster(nodes.address, cpus=THREADS, retries=1) as connected:
        yield connected
