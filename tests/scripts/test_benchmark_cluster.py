"""The benchmark of clusters: its sizes; its rows are tried with the clusters of `tests/cluster`."""

import benchmark_cluster


def test_every_row_has_a_size_that_is_larger_in_full():
    small, full = benchmark_cluster.Sizes(), benchmark_cluster.FULL
    assert all(getattr(full, name) > value for name, value in vars(small).items())
    assert (full.nodes, full.drivers, full.trials, full.seconds) == (50, 20, 10_000, 1.0)
