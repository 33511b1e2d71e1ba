"""Clusters: what they refuse before any work begins, and runs over items."""

import os
import socket
import sys
from contextlib import nullcontext
from dataclasses import replace
from threading import Event, Thread
from time import monotonic

import keras
import numpy as np
import pytest
from cluster.conftest import THREADS
from cluster.dying import Dying, calls, counted, double, paced, refuse, refuse_oddly

from reusekit.cluster import Cluster
from reusekit.cluster import cluster as cluster_module
from reusekit.cluster.connection import connect
from reusekit.cluster.settings import ClusterSettings
from reusekit.errors import ClusterError, ConfigError
from reusekit.features.bottoms import Bottom
from reusekit.features.frontiers import frontier
from reusekit.features.key import Extraction


def test_results_come_in_the_order_of_items(cluster):
    assert list(cluster.map(double, range(100))) == [2 * n for n in range(100)]
    assert list(cluster.map(double, [])) == []


def test_an_error_of_the_function_is_raised_as_here(cluster):
    with pytest.raises(KeyError, match="7"):
        list(cluster.map(refuse, [7]))


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_that_cannot_be_sent_back_is_one_sentence(cluster, number):
    with pytest.raises(ClusterError, match=r"sent back\. Received.*Run it without") as error:
        list(cluster.map(refuse_oddly, [number]))
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_work_that_kills_every_worker_ends_in_one_sentence(cluster):
    with pytest.raises(ClusterError, match=r"lives through a task, in 2 tries\. Received"):
        list(cluster.map(Dying(double, None), [1]))
    assert list(cluster.map(double, [1])) == [2]


def test_a_run_that_is_left_in_the_middle_leaves_the_workers_free(cluster):
    assert next(cluster.map(double, range(1_000))) == 0
    assert list(cluster.map(double, [1])) == [2]


def test_a_backbone_that_cannot_be_loaded_is_refused_in_one_sentence(cluster):
    inputs = keras.Input((4,))
    x = keras.layers.Lambda(lambda x: x + 1, name="odd")(keras.layers.Dense(3)(inputs))
    model = keras.Model(inputs, x, name="with_lambda")
    bottom = Bottom(frontier(model, "odd").graph, (frontier(model, "odd"),), Extraction())
    with pytest.raises(ClusterError, match=r"save and load again.*Received: 'with_lambda'"):
        list(cluster.map(bottom, [(0, np.ones((1, 4)))]))


def test_other_versions_are_named_before_any_work(cluster, nodes, monkeypatch):
    found = cluster_module.versions()
    monkeypatch.setattr(cluster_module, "versions", lambda: found | {"keras": "2.0"})
    with pytest.raises(ClusterError, match=r"the driver's keras 2\.0\. Received: keras 3") as error:
        Cluster(nodes.address, cpus=THREADS).__enter__()
    assert "\n" not in str(error.value)


def test_a_gpu_that_is_not_there_is_missed_before_any_work(cluster, nodes):
    with pytest.raises(ClusterError, match=r"and 1 GPUs for a worker\. Received: . CPUs, 0 GPUs"):
        Cluster(nodes.address, cpus=THREADS, gpus=1).__enter__()


def test_a_folder_that_workers_do_not_see_is_refused(cluster, tmp_path):
    cluster.check_folder(tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY)  # the path is another one in each process
    try:
        with pytest.raises(ClusterError, match=r"a folder that every worker sees\. Received"):
            cluster.check_folder(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    assert not list(tmp_path.iterdir())


def test_a_head_that_is_gone_is_one_sentence(cluster, monkeypatch):
    """Ray would end this process after a minute."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(cluster, "_head", f"127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr(cluster_module, "_PATIENCE", 1)
    with pytest.raises(ClusterError, match=r"a head node that is alive\. Received: none at 127"):
        list(cluster.map(double, [1]))
    monkeypatch.undo()
    assert list(cluster.map(double, [1])) == [2]


def test_a_cluster_outside_of_its_block_is_refused(nodes):
    with pytest.raises(ClusterError, match="Expected a cluster that is connected"):
        list(Cluster(nodes.address).map(double, [1]))


def test_the_seconds_of_empty_tasks_are_measured(cluster, monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")  # which the script sets for good
    from benchmark_cluster import seconds_of_tasks

    assert all(0 < seconds < 1 for seconds in seconds_of_tasks(cluster, 20))


def test_trials_that_sleep_on_workers_are_those_of_here(cluster, nodes, monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    import benchmark_cluster

    monkeypatch.setattr(benchmark_cluster, "Nodes", lambda *_: nullcontext(nodes))
    sizes = replace(benchmark_cluster.Sizes(), trials=32, seconds=0.02)
    row = benchmark_cluster.overhead(sizes)
    assert row["equal"]
    assert row["ideal"] == 0.32
    assert row["overhead"] > 0


def test_a_fast_worker_takes_more(cluster, monkeypatch):
    """As one with a GPU beside one without."""
    monkeypatch.setattr(cluster_module, "BLOCK_SECONDS", 0.05)
    found = list(cluster.map(paced, range(100)))
    assert sum(found) > len(found) - sum(found) > 0


def test_what_is_expected_was_run_when_it_is_asked_for(cluster):
    """A function that tells how often its worker has called it."""
    cluster.expect(counted, "expected")
    ends = monotonic() + 120
    while not all(found := list(cluster.map(calls, range(8)))):  # until a worker has done it
        assert monotonic() < ends
    assert {*found} <= {1, 2}  # of two workers, one may have taken both
    cluster.expect(refuse, 1)  # comes to nothing
    assert list(cluster.map(double, [1])) == [2]


def test_two_runs_go_on_at_a_time(cluster):
    """Each waits for the other in its middle."""
    halfway = [Event(), Event()]

    def run(number):
        coming = cluster.map(double, range(number, 40))
        first = next(coming)
        halfway[number].set()
        assert halfway[1 - number].wait(60)
        return [first, *coming]

    found = cluster.together(run, [0, 1])
    assert found == [[2 * n for n in range(number, 40)] for number in (0, 1)]


def test_a_run_beside_one_that_fails_ends(cluster):
    begun, taken = Event(), []

    def run(fails):
        if fails:
            assert begun.wait(60)
            return list(cluster.map(refuse, [7]))
        for one in cluster.map(paced, range(400)):
            taken.append(one)
            begun.set()
        return taken

    with pytest.raises(KeyError, match="7"):
        cluster.together(run, [False, True, False])
    assert 0 < len(taken) < 400
    assert list(cluster.map(double, [1])) == [2]


def test_large_items_go_a_few_at_a_time(cluster, monkeypatch):
    """Items whose own bytes are what counts, since they give little and take no time."""
    monkeypatch.setattr(cluster_module, "BLOCK_BYTES", 1_000)
    read = []

    def items():
        for number in range(60):
            read.append(number)
            yield np.zeros(400, "uint8")

    coming = cluster.map(len, items())
    for taken in range(1, 61):
        assert next(coming) == 400
        assert len(read) - taken < 4 * 2 * 2 + 2  # of two workers, two in a task


@pytest.mark.parametrize(
    "changed",
    [
        {"address": "host"},
        {"address": None},
        {"cpus": 0},
        {"retries": -1},
        {"gpus": 1.5},
        {"odd": 1},
    ],
)
def test_settings_are_checked(changed):
    with pytest.raises(ConfigError):
        Cluster(**changed)


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r'pip install "reusekit\[ray\]"'):
        connect(ClusterSettings(address="auto"))


def test_a_host_that_cannot_be_a_name_is_one_line(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ClusterError, match="Expected a Ray cluster at 'aaa"):
        connect(ClusterSettings(address=f"{'a' * 70}:1", wait=5))


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_is_no_cluster_at_an_address_is_one_line(monkeypatch, said):
    """A server that is silent, or not Ray's: Ray itself would wait for it for good."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if said:
            Thread(target=lambda: server.accept()[0].sendall(said)).start()
        with pytest.raises(ClusterError, match=f"Expected a Ray cluster at '{address}'") as error:
            connect(ClusterSettings(address=address, wait=1))
    assert "\n" not in str(error.value)


def test_no_cluster_at_an_address_is_one_line(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for one in (address, f"ray://{address}"):
        with pytest.raises(ClusterError, match=f"Expected a Ray cluster at '{one}'") as error:
            connect(ClusterSettings(address=one, wait=5))
        assert "\n" not in str(error.value)
