"""Groups of trials: those on the same examples, parted so that each worker has as much work."""

import numpy as np
import pytest

from reusekit.data.task import Task
from reusekit.search import CutHyperModel, SearchSpace, TrialData
from reusekit.search.execution import MOST_TOGETHER, QueuedTrial, groups
from reusekit.search.space import TrialSpec

LABELS = np.arange(8) % 2


def parted(wide: int, each: int, workers: int) -> list[list[str]]:
    """Return the cuts of each group, of as many trials on 4 values and on `wide` values."""
    features = {"narrow": np.zeros((8, 4)), "wide": np.zeros((8, wide))}
    task = Task("classification", ("even", "odd"))
    data = TrialData.of_arrays(features, LABELS, features, LABELS, task)
    cuts = ["narrow"] * each + ["wide"] * each
    trials = [QueuedTrial(number, TrialSpec(cut, cut), 1) for number, cut in enumerate(cuts)]
    hypermodel = CutHyperModel(data, SearchSpace(cuts=["narrow", "wide"]))
    made = groups(trials, hypermodel, workers=workers)
    assert [one for group in made for one in group] == trials
    return [[one.spec.cut for one in group] for group in made]


def test_trials_on_wide_features_are_fewer_in_a_group():
    first, second = parted(wide=40_000, each=12, workers=2)
    assert len(first) > len(second)
    assert set(second) == {"wide"}


def test_alike_trials_are_parted_evenly():
    assert [len(group) for group in parted(wide=4, each=12, workers=3)] == [8, 8, 8]


def test_groups_that_are_full_are_as_many_for_each_worker():
    assert [len(group) for group in parted(wide=4, each=72, workers=2)] == [36] * 4
    assert [len(group) for group in parted(wide=4, each=72, workers=1)] == [64, 64, 16]


def test_here_all_are_together():
    assert len(parted(wide=40_000, each=12, workers=1)) == 1


@pytest.mark.parametrize("each", [60, 100])
def test_no_group_has_more_than_can_be_compiled_together(each):
    made = parted(wide=40_000, each=each, workers=2)
    assert max(map(len, made)) <= MOST_TOGETHER
