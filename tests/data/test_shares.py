"""Parts drawn by shares: in proportion, the same for the same content, nothing on two sides."""

import numpy as np
import pytest

import reusekit as rk
from reusekit.data.shares import PARTS, Shares, draw_parts

RNG = np.random.default_rng(0)
CONTENTS = RNG.integers(0, 2**63, 1_000).astype(np.uint64)
CLASSES = RNG.choice(4, 1_000, p=[0.6, 0.3, 0.08, 0.02])
GROUPS = RNG.integers(0, 60, 1_000)


def test_every_class_is_in_proportion():
    parts = draw_parts(CONTENTS, Shares(), CLASSES)
    for part, share in zip(PARTS, (0.7, 0.15, 0.15), strict=True):
        positions = parts.of(part)
        np.testing.assert_allclose(len(positions), share * 1_000, atol=1)
        expected = share * np.bincount(CLASSES)
        np.testing.assert_allclose(np.bincount(CLASSES[positions]), expected, atol=2)
    together = np.concatenate([parts.of(part) for part in PARTS])
    np.testing.assert_array_equal(np.sort(together), np.arange(1_000))


def test_each_of_several_labels_is_in_proportion():
    labels = (RNG.random((500, 5)) < [0.5, 0.3, 0.1, 0.05, 0.02]).astype("float32")
    parts = draw_parts(CONTENTS[:500], Shares(train=0.5, validation=0.25, test=0.25), labels)
    found = labels[parts.of("train")].sum(axis=0)
    np.testing.assert_allclose(found, labels.sum(axis=0) / 2, atol=2)


def test_a_class_of_few_examples_is_trained_on():
    parts = draw_parts(CONTENTS, Shares(), np.where(np.arange(1_000) == 17, 1, 0))
    assert 17 in parts.of("train")


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["alone", "groups"])
def test_the_order_of_the_examples_does_not_count_and_the_seed_does(groups):
    def drawn(order, **changed):
        taken = None if groups is None else groups[order]
        parts = draw_parts(CONTENTS[order], Shares(**changed), CLASSES[order], taken)
        return [set(CONTENTS[order][parts.of(part)].tolist()) for part in PARTS]

    plain = np.arange(1_000)
    assert drawn(plain) == drawn(RNG.permutation(1_000))
    assert drawn(plain) != drawn(plain, seed=1)


def test_the_order_does_not_count_where_sums_of_floats_tie():
    generator = np.random.default_rng(33)  # at which it did
    size = int(generator.integers(30, 400))
    contents = generator.integers(0, size * 2, size).astype(np.uint64)
    classes = generator.integers(0, 4, size)
    groups = generator.integers(0, size // 3, size)
    order = generator.permutation(size)
    for told in (classes, np.eye(4)[classes]):
        plain = draw_parts(contents, Shares(seed=33), told, groups)
        other = draw_parts(contents[order], Shares(seed=33), told[order], groups[order])
        for part in PARTS:
            assert set(plain.of(part)) == set(order[other.of(part)])


@pytest.mark.parametrize("repeated", [0, 200])
@pytest.mark.parametrize("groups", [None, GROUPS], ids=["alone", "groups"])
def test_groups_and_equal_content_stay_on_one_side(groups, repeated):
    contents, classes = CONTENTS.copy(), CLASSES.copy()
    contents[1_000 - repeated :] = contents[:repeated]
    if groups is not None and repeated:  # content that two groups share joins them
        groups = np.arange(1_000) % 800
    parts = draw_parts(contents, Shares(), classes, groups)
    assert parts.duplicates == repeated
    np.testing.assert_allclose(len(parts.of("train")), 700, atol=20)
    for kept in (contents, groups):
        sides = [set(kept[parts.of(part)].tolist()) for part in PARTS] if kept is not None else []
        assert sum(map(len, sides)) == len(set().union(*sides))


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda: Shares(train=0.8), rk.ConfigError, "add up to 1. Received: 0.8 + 0.15 + 0.15"),
        (lambda: draw_parts(["a", "b"], Shares()), rk.DataError, "2 different examples, too few"),
        (lambda: draw_parts(["a"] * 9, Shares()), rk.DataError, "1 different examples, too few"),
        (
            lambda: draw_parts(CONTENTS, Shares(), groups=np.zeros(1_000)),
            rk.DataError,
            "1 groups of different examples, too few",
        ),
        (
            lambda: draw_parts(CONTENTS, Shares(train=1.0, validation=0.0, test=0.0)).of("test"),
            rk.DataError,
            "Received: 'test'. Valid choices: 'train'",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(ask, error, says):
    with pytest.raises(error) as caught:
        ask()
    assert says in str(caught.value)
