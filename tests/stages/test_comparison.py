"""The interval of a paired comparison is that of resampled examples."""

import numpy as np
import pytest
import scipy.stats

from reusekit.stages.comparison import paired_bootstrap


def answers(both: int, candidate_alone: int, champion_alone: int, neither: int):
    """Which of the examples each of the two is right about."""
    counts = [both, candidate_alone, champion_alone, neither]
    return (
        np.repeat([True, True, False, False], counts),
        np.repeat([True, False, True, False], counts),
    )


@pytest.mark.parametrize("counts", [(120, 30, 10, 40), (180, 3, 7, 10), (10, 40, 40, 10)])
def test_the_interval_is_that_of_resampled_examples(counts):
    candidate, champion = answers(*counts)
    comparison = paired_bootstrap(candidate, champion, confidence=0.9, seed=1)
    expected = scipy.stats.bootstrap(
        (candidate.astype(float), champion.astype(float)),
        lambda one, other, axis: one.mean(axis) - other.mean(axis),
        paired=True,
        vectorized=True,
        confidence_level=0.9,
        n_resamples=10_000,
        method="percentile",
        random_state=2,
    ).confidence_interval
    one_example = 1 / len(candidate) + 1e-9
    assert comparison.low == pytest.approx(expected.low, abs=one_example)
    assert comparison.high == pytest.approx(expected.high, abs=one_example)
    assert comparison.difference == pytest.approx(candidate.mean() - champion.mean())
    assert comparison.low < comparison.difference < comparison.high


def test_examples_both_are_right_about_say_nothing_and_equal_models_tie():
    candidate, _ = answers(50, 20, 20, 10)
    tie = paired_bootstrap(candidate, candidate)
    assert (tie.low, tie.difference, tie.high) == (0.0, 0.0, 0.0)


def test_it_is_the_same_every_time_and_mirrored_where_the_two_change_places():
    candidate, champion = answers(120, 30, 10, 40)
    one = paired_bootstrap(candidate, champion, seed=3)
    assert one == paired_bootstrap(candidate, champion, seed=3)
    other = paired_bootstrap(champion, candidate, seed=3)
    assert other.high == pytest.approx(-one.low, abs=0.011)
    assert one.low > 0 > other.high


def test_more_confidence_and_fewer_examples_make_it_wider():
    few, many = answers(60, 15, 5, 20), answers(600, 150, 50, 200)
    sure, surer = paired_bootstrap(*few, confidence=0.8), paired_bootstrap(*few, confidence=0.99)
    assert surer.low < sure.low < sure.high < surer.high
    wide, narrow = paired_bootstrap(*few), paired_bootstrap(*many)
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2
