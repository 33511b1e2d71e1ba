"""Scores before training agree with what they are defined by, and order what is known."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

import reusekit as rk
from reusekit.errors import ConfigError, DataError
from reusekit.search.ranking import (
    knn_probe,
    logme,
    rank_correlation,
    rank_cuts,
    ridge_probe,
    tmi,
)


def problem(examples, channels, classes=3, signal=1.0, seed=0):
    """Features that tell the class, the more the larger the signal."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    centres = numbers.normal(size=(classes, channels))
    return numbers.normal(size=(examples, channels)) + signal * centres[labels], labels


def brute_force(features, labels):
    """The marginal likelihood of each class's targets, maximised over both variances."""
    found = []
    for label in np.unique(labels):
        target = (labels == label).astype(float)

        def loss(logs, target=target):
            noise, weights = np.exp(logs)
            covariance = noise * np.eye(len(target)) + weights * features @ features.T
            return -multivariate_normal.logpdf(target, np.zeros(len(target)), covariance)

        starts = [(-2, -4), (-5, -1), (-1, -9)]
        options = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 2000}
        best = min(minimize(loss, s, method="Nelder-Mead", options=options).fun for s in starts)
        found.append(-best / len(target))
    return np.mean(found)


@pytest.mark.parametrize(("examples", "channels"), [(30, 4), (20, 20), (15, 40), (12, 1)])
@pytest.mark.parametrize("signal", [0.3, 2.0])
def test_logme_is_the_maximum_of_the_marginal_likelihood(examples, channels, signal):
    features, labels = problem(examples, channels, signal=signal)
    assert logme(features, labels) == pytest.approx(brute_force(features, labels), abs=1e-5)


def test_logme_where_features_depend_on_one_another():
    features, labels = problem(25, 3)
    features = np.hstack([features, features[:, :1] * 2, np.ones((25, 2)), np.zeros((25, 1))])
    assert logme(features, labels) == pytest.approx(brute_force(features, labels), abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_constant_features_tell_what_a_constant_tells(value):
    labels = np.arange(30) % 3
    score = logme(np.full((30, 4), value), labels)
    if value:
        assert score == pytest.approx(brute_force(np.full((30, 4), value), labels), abs=1e-5)
    else:  # nothing but noise, of the targets' own second moment
        assert score == pytest.approx((math.log(3) - math.log(2 * math.pi) - 1) / 2)
    assert ridge_probe(np.full((30, 4), value), labels) == pytest.approx(1 / 3, abs=0.1)


def test_a_target_that_the_features_contain_has_a_finite_score():
    labels = np.arange(30) % 2
    features = np.stack([labels == 0, labels == 1], axis=1).astype(float)
    blurred = features + np.random.default_rng(0).normal(size=features.shape, scale=0.1)
    assert math.isfinite(logme(features, labels))
    assert logme(features, labels) > logme(blurred, labels)


@pytest.mark.parametrize("method", ["logme", "ridge", "knn"])
@pytest.mark.parametrize(("channels", "some"), [(5, 0.4), (300, 0.1)])
def test_what_tells_more_ranks_higher(method, channels, some):
    signals = {"noise": 0.0, "some": some, "much": 1.5}
    features = {name: problem(120, channels, signal=s)[0] for name, s in signals.items()}
    frame = rank_cuts(features, np.arange(120) % 3, method)
    assert list(frame) == ["cut", "score", "rank", "seconds"]
    assert frame["rank"].tolist() == [1, 2, 3]
    assert frame["cut"].tolist() == ["much", "some", "noise"]
    assert (frame["seconds"] > 0).all()


def test_equal_scores_share_a_rank():
    features, labels = problem(30, 4)
    frame = rank_cuts({"a": features * 0, "b": features, "c": features}, labels)
    assert (frame["cut"].tolist(), frame["rank"].tolist()) == (["b", "c", "a"], [1, 1, 3])


def test_the_probe_is_right_about_examples_it_did_not_see():
    numbers = np.random.default_rng(0)
    noise = numbers.normal(size=(100, 400))  # enough to learn all that is fitted by heart
    assert abs(ridge_probe(noise, np.arange(100) % 2) - 0.5) < 0.15
    features, labels = problem(100, 5, signal=3.0)
    assert ridge_probe(features, labels) > 0.97
    assert ridge_probe(features, labels) == ridge_probe(features, labels)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("score", [logme, ridge_probe])
def test_precision_hardly_matters(score, dtype):
    features, labels = problem(60, 8)
    assert score(features.astype(dtype), labels) == pytest.approx(score(features, labels), abs=0.02)


def test_labels_may_be_words_and_a_class_may_have_one_example():
    features, labels = problem(41, 6, classes=2, signal=3.0)
    words = np.array(["cat", "dog"])[labels]
    assert logme(features, words) == logme(features, labels)
    assert ridge_probe(features, words) == ridge_probe(features, labels)
    words = words.astype("<U9")
    words[0] = "ocelot"
    assert logme(features, words) == pytest.approx(brute_force(features, words), abs=1e-5)
    assert 0.9 < ridge_probe(features, words) <= 40 / 41


def test_neighbours_tell_each_example_but_never_itself():
    features, labels = problem(40, 4)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    nearest = np.argsort(-alike, axis=1)
    told = [np.bincount(labels[row[:5]], minlength=3).argmax() for row in nearest]
    assert knn_probe(features, labels) == pytest.approx(np.mean(told == labels))
    assert knn_probe(features * 7, labels) == knn_probe(features, labels)
    numbers = features[:, 0] * 3
    means = numbers[nearest[:, :2]].mean(axis=1)
    expected = 1 - np.square(numbers - means).sum() / np.square(numbers - numbers.mean()).sum()
    assert knn_probe(features, numbers, neighbours=2) == pytest.approx(expected)
    assert knn_probe(np.eye(2), [0, 1]) == 0.0  # the only other one is of the other class


def test_the_entropy_within_classes_is_that_of_known_distributions():
    numbers = np.random.default_rng(0)
    labels = np.arange(3000) % 3
    normal = numbers.normal(size=(3000, 2)) * [1.0, 3.0] + 100 * labels[:, None]
    expected = math.log(2 * math.pi * math.e) + math.log(3.0)
    assert tmi(normal, labels) == pytest.approx(expected, abs=0.05)
    assert tmi(2 * normal, labels) == pytest.approx(tmi(normal, labels) + 2 * math.log(2), abs=1e-6)
    assert tmi(numbers.uniform(size=(2000, 1)), labels[:2000]) == pytest.approx(0, abs=0.05)
    assert math.isfinite(tmi(np.zeros((6, 2)), [0, 0, 0, 1, 1, 2]))
    with pytest.raises(DataError, match="Expected classes as labels"):
        tmi(normal, normal[:, 0])


def test_wrong_requests_are_refused():
    features, labels = problem(20, 3)
    for score in (logme, ridge_probe, knn_probe, tmi):
        with pytest.raises(DataError, match=r"Received: shapes \(20, 3, 1\).*Pool"):
            score(features[..., None], labels)
        with pytest.raises(DataError, match=r"\(20, 3\) and \(19,\)"):
            score(features, labels[1:])
        with pytest.raises(DataError, match="at least two classes"):
            score(features, labels * 0)
        with pytest.raises(DataError, match="finite"):
            score(np.where(features > 1, np.nan, features), labels)
    with pytest.raises(DataError, match="9 folds and classes of 7, 7, 6"):
        ridge_probe(features, labels, folds=9)
    with pytest.raises(DataError, match="classes of 19, 1"):
        ridge_probe(features, np.arange(20) == 0)
    with pytest.raises(ConfigError, match="Did you mean 'logme'"):
        rank_cuts({"a": features}, labels, "logmee")
    with pytest.raises(ConfigError, match="features to be a dictionary, not empty"):
        rank_cuts({}, labels)


def test_correlation_of_orders():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 45]).spearman == pytest.approx(1)
    reversed_ = rank_correlation([1, 2, 3, 4], [4, 3, 2, 1])
    assert (reversed_.spearman, reversed_.kendall) == pytest.approx((-1, -1))
    one_pair = rank_correlation([1, 2, 3, 4], [1, 2, 4, 3])
    assert one_pair.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert one_pair.kendall == pytest.approx(4 / 6)
    assert math.isnan(rank_correlation([1, 1], [1, 2]).kendall)
    wrong_at_the_top = rank_correlation([1, 2, 3, 4], [1, 2, 4, 3]).weighted
    assert wrong_at_the_top < rank_correlation([1, 2, 3, 4], [2, 1, 3, 4]).weighted < 1
    with pytest.raises(DataError, match="Received: 2 and 3"):
        rank_correlation([1, 2], [1, 2, 3])


def test_cuts_of_a_pretrained_model_rank_as_probes_of_unseen_examples_do():
    data = rk.data.load(
        "sklearn_digits", "train[:300]", treatment=rk.data.Treatment(image_size=(32, 32))
    )
    inputs, labels = data.arrays()
    model = rk.load_backbone("reusekit/glyphnet").model
    cuts = ["stem_out", "block2_out", "block4_out", "block7_out"]
    taps = rk.extract(model, dict(zip(cuts, cuts, strict=True)), pooling="avg")
    features = taps.predict(inputs, verbose=0)
    ranked = {method: rank_cuts(features, labels, method) for method in ("logme", "ridge")}
    scores = [frame.set_index("cut")["score"].loc[cuts].tolist() for frame in ranked.values()]
    assert rank_correlation(*scores).spearman >= 0.8
    assert ranked["logme"]["cut"].iloc[-1] == "stem_out"
