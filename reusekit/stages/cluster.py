"""The cluster stage: workers for as long as a job runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from reusekit.cluster import Cluster, ClusterSettings
from reusekit.progress import say
from reusekit.workers import HERE, Workers


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[Workers]:
    """Yield the workers of a cluster while it is connected; this process where none is asked for.

    Args:
        settings: Where it is, and what each worker has of it.

    Raises:
        ClusterError: It cannot be used; nothing has begun then.
    """
    if settings.address is None:
        yield HERE
        return
    with Cluster(**settings.model_dump()) as cluster:
        say(f"Workers on the cluster at {settings.address}: {cluster.count}.")
        yield cluster
