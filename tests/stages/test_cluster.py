"""The cluster stage: this process where no cluster is asked for."""

import socket

import pytest

from reusekit import stages
from reusekit.errors import ClusterError
from reusekit.settings import ClusterSettings
from reusekit.workers import HERE


def test_without_an_address_work_is_done_here():
    with stages.connected(settings=ClusterSettings()) as workers:
        assert workers is HERE


def test_a_cluster_that_does_not_answer_ends_before_anything_begins():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(ClusterError, match=f"Expected a Ray cluster at '{address}'"),
        stages.connected(settings=ClusterSettings(address=address, wait=5)),
    ):
        pytest.fail("it began")
