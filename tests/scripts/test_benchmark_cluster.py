"""The benchmark of clusters, on little: trials on two nodes are those of one machine."""

from dataclasses import replace

import benchmark_cluster
import pytest

pytest.importorskip("ray")


def test_trials_on_workers_are_those_of_here(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    sizes = replace(benchmark_cluster.Sizes(), trials=32, seconds=0.02)
    row = benchmark_cluster.overhead(sizes)
    assert row["equal"]
    assert row["ideal"] == 0.32
    assert row["overhead"] > 0


def test_every_row_has_a_size_that_is_larger_in_full():
    small, full = benchmark_cluster.Sizes(), benchmark_cluster.FULL
    assert all(getattr(full, name) > value for name, value in vars(small).items())
    assert (full.nodes, full.drivers, full.trials, full.seconds) == (50, 20, 10_000, 1.0)
