"""Features, records and the best model of a cluster: those of one machine to the last bit."""

from time import sleep

import pytest
from cluster.dying import DyingWorkers
from cluster.searches import assert_equal, searched, told

from reusekit.training import heads


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The search on this machine."""
    return searched(tmp_path_factory.mktemp("here"))


def test_a_search_is_equal_to_the_last_bit(tmp_path, cluster, here):
    assert_equal(searched(tmp_path, cluster), here)


def test_a_trial_that_fails_is_recorded_as_on_one_machine(tmp_path, cluster):
    both = {"good": heads.Classifier(3), "bad": heads.Classifier(2)}
    changed = {"cuts": ["out1"], "frozen_up_to": [], "heads": both}
    here, there = (
        searched(tmp_path / name, workers, **changed)
        for name, workers in (("here", None), ("there", cluster))
    )
    assert [one["status"] for one in told(there)] == [one["status"] for one in told(here)]
    assert {one["status"] for one in told(there)} == {"completed", "failed"}
    assert told(there)[0] == told(here)[0]


def test_workers_and_a_node_that_are_killed_cost_nothing_but_time(tmp_path, cluster, here):
    """It is the last test of this file, since a node is gone afterwards."""
    died = tmp_path / "died"
    died.mkdir()
    assert cluster.count == 2
    assert_equal(searched(tmp_path, DyingWorkers(cluster, died, node=True)), here)
    assert len(list(died.iterdir())) >= 3  # features to train and to compare on, and trials
    while cluster.count > 1:  # until the node is missed
        sleep(0.1)
