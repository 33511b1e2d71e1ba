"""The interval of a paired comparison is that of resampled examples."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import f1_score

from reusekit.data.task import Task
from reusekit.stages.comparison import paired_bootstrap
from reusekit.tasks import rules_of

CLASSES = rules_of(Task("classification", ("cat", "dog")))
NUMBERS = rules_of(Task("regression", ("price",)))
LABELS = rules_of(Task("multilabel", ("a", "b", "c")))


def answers(both: int, candidate_alone: int, champion_alone: int, neither: int):
    """Return of each of two models whether it is right about each example."""
    counts = [both, candidate_alone, champion_alone, neither]
    return (
        np.repeat([[1.0], [1.0], [0.0], [0.0]], counts, axis=0),
        np.repeat([[1.0], [0.0], [1.0], [0.0]], counts, axis=0),
    )


def errors():
    """Errors of numbers, of which no two are alike."""
    generator = np.random.default_rng(0)
    champion = generator.exponential(size=(200, 1))
    return champion * generator.uniform(0.5, 1.2, (200, 1)), champion


@pytest.mark.parametrize(
    ("pair", "rules"),
    [
        (answers(120, 30, 10, 40), CLASSES),
        (answers(180, 3, 7, 10), CLASSES),
        (answers(10, 40, 40, 10), CLASSES),
        (errors(), NUMBERS),
    ],
)
def test_the_interval_is_that_of_resampled_examples(pair, rules):
    candidate, champion = pair
    sign = 1 if rules.maximize else -1
    comparison = paired_bootstrap(candidate, champion, rules, confidence=0.9, seed=1)
    expected = scipy.stats.bootstrap(
        (sign * candidate[:, 0], sign * champion[:, 0]),
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
    assert comparison.difference == pytest.approx(sign * (candidate.mean() - champion.mean()))
    assert comparison.low < comparison.difference < comparison.high


def test_of_several_labels_f1_is_resampled():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (150, 3))
    good, poor = (np.abs(labels - (generator.random(labels.shape) < p)) for p in (0.1, 0.3))
    parts = [LABELS.parts(one.astype(float), labels) for one in (good, poor)]
    comparison = paired_bootstrap(*parts, LABELS)
    reached = [f1_score(labels, one, average="macro") for one in (good, poor)]
    assert [comparison.candidate, comparison.champion] == pytest.approx(reached)
    drawn = [generator.integers(150, size=150) for _ in range(150)]
    differences = [
        f1_score(labels[rows], good[rows], average="macro")
        - f1_score(labels[rows], poor[rows], average="macro")
        for rows in drawn
    ]
    expected = np.quantile(differences, [0.025, 0.975])
    assert [comparison.low, comparison.high] == pytest.approx(expected, abs=0.03)


def test_examples_both_are_right_about_say_nothing_and_equal_models_tie():
    candidate, _ = answers(50, 20, 20, 10)
    tie = paired_bootstrap(candidate, candidate, CLASSES)
    assert (tie.low, tie.difference, tie.high) == (0.0, 0.0, 0.0)


def test_it_is_the_same_every_time_and_mirrored_where_the_two_change_places():
    candidate, champion = answers(120, 30, 10, 40)
    one = paired_bootstrap(candidate, champion, CLASSES, seed=3)
    assert one == paired_bootstrap(candidate, champion, CLASSES, seed=3)
    other = paired_bootstrap(champion, candidate, CLASSES, seed=3)
    assert other.high == pytest.approx(-one.low, abs=0.011)
    assert one.low > 0 > other.high


def test_more_confidence_and_fewer_examples_make_it_wider():
    few, many = answers(60, 15, 5, 20), answers(600, 150, 50, 200)
    sure, surer = (paired_bootstrap(*few, CLASSES, confidence=share) for share in (0.8, 0.99))
    assert surer.low < sure.low < sure.high < surer.high
    wide, narrow = paired_bootstrap(*few, CLASSES), paired_bootstrap(*many, CLASSES)
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2


def test_numbers_that_are_not_finite_never_win():
    labels = np.linspace(0, 1, 40)[:, None]
    good, broken = labels + 0.1, labels * np.nan
    parts = [NUMBERS.parts(one, labels) for one in (good, broken)]
    assert paired_bootstrap(*parts, NUMBERS).low > 1e29
    assert not paired_bootstrap(*parts[::-1], NUMBERS).low > 0
