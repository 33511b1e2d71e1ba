"""The rules of each task: its head, metrics, thresholds, tables, and the ranking of cuts."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import (
    f1_score,
    mean_absolute_error,
    precision_recall_fscore_support,
    roc_auc_score,
)

from reusekit.data.task import Task
from reusekit.errors import ConfigError, DataError
from reusekit.search import SearchConfig, SearchSpace, knn_probe, logme, ridge_probe
from reusekit.search.objective import configured_objective, monitor_of
from reusekit.tasks import rules_of
from reusekit.training import heads

CLASSES = rules_of(Task("classification", ("cat", "dog", "owl")))
LABELS = rules_of(Task("multilabel", ("red", "round")))
NUMBERS = rules_of(Task("regression", ("age", "height")))
NUMBER = rules_of(Task("regression", ("age",)))
TEN = rules_of(Task("classification", tuple("abcdefghij")))


def test_each_task_has_a_head_of_its_size():
    found = [rules.head(units=4).build((8,)) for rules in (CLASSES, LABELS, NUMBERS)]
    assert [model.output_shape[-1] for model in found] == [3, 2, 2]
    assert type(NUMBERS.head()) is heads.Regression


@pytest.mark.parametrize(
    ("rules", "name", "direction"),
    [
        (CLASSES, "f1", "max"),
        (CLASSES, "auc", "max"),
        (CLASSES, "sparse_top_k_categorical_accuracy", None),  # of three classes all are in the top
        (TEN, "sparse_top_k_categorical_accuracy", "max"),
        (CLASSES, "categorical_crossentropy", "min"),
        (LABELS, "precision", "max"),
        (LABELS, "f1", "max"),
        (NUMBERS, "mae", "min"),
        (NUMBERS, "r2_score", "max"),
        (NUMBERS, "f11", None),
        (NUMBERS, "mean", None),
        (NUMBERS, "accuracy", None),
        (NUMBERS, "auc", None),
        (NUMBERS, "f1_score", None),
        (NUMBER, "pearson_correlation", None),  # over the numbers of an example
        (LABELS, "sparse_categorical_accuracy", None),
    ],
)
def test_metrics_of_keras_fit_the_task_and_say_what_is_better(rules, name, direction):
    assert rules.direction(name) == direction
    metric = rules.metric(name)
    assert metric is None or metric.name == name


@pytest.mark.parametrize(
    ("rules", "name", "direction"),
    [
        # keras-tuner takes these for losses.
        (CLASSES, "val_f1_score", "max"),
        (NUMBERS, "val_r2_score", "max"),
        (LABELS, "val_binary_io_u", "max"),
        (NUMBERS, "val_mse", "min"),
        (NUMBERS, "val_loss", "min"),
    ],
)
def test_an_objective_is_sought_where_its_metric_is_better(rules, name, direction):
    found = configured_objective(SearchConfig(objective=name), SearchSpace(["a"]), rules)
    assert (found.name, found.direction) == (name, direction)
    assert monitor_of(name, rules.head(), rules).maximize == (direction == "max")


def test_metrics_of_another_task_are_refused_as_objectives():
    for name in ("val_accuracy", "val_auc", "val_precision", "val_f1"):
        with pytest.raises(ConfigError, match=f"metric of the heads, .* Received: '{name}'"):
            configured_objective(SearchConfig(objective=name), SearchSpace(["a"]), NUMBER)
    # The metric of a head of one's own goes in the direction that it has elsewhere.
    own = SearchSpace(["a"], heads={"own": heads.Multilabel(2)})
    assert configured_objective(SearchConfig(objective="val_auc"), own, NUMBER).direction == "max"


def test_f1_of_classes_is_that_of_scikit_learn_and_counts_weights():
    generator = np.random.default_rng(0)
    labels, outputs = generator.integers(0, 3, 50), generator.dirichlet(np.ones(3), 50)
    metric = CLASSES.metric("f1")
    for rows in (slice(30), slice(30, 50)):
        metric.update_state(labels[rows], outputs[rows])
    expected = f1_score(labels, outputs.argmax(axis=1), average="macro")
    assert float(metric.result()) == pytest.approx(expected)
    metric.reset_state()
    weights = generator.random(50)
    metric.update_state(labels, outputs, weights)
    expected = f1_score(labels, outputs.argmax(axis=1), average="macro", sample_weight=weights)
    assert float(metric.result()) == pytest.approx(expected, rel=1e-4)


def test_thresholds_are_those_of_the_highest_f1():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (200, 2))
    outputs = 0.1 * labels + 0.2 * generator.random((200, 2))  # never above a half
    assert LABELS.value(outputs, labels) == 0
    tuned = LABELS.tuned(outputs, labels)
    assert tuned.value(outputs, labels) == pytest.approx(
        f1_score(labels, tuned.decided(outputs), average="macro")
    )
    for limit in np.linspace(0, 0.3, 50):
        said = (outputs >= limit).astype(int)
        for number in range(2):
            best = f1_score(labels[:, number], tuned.decided(outputs)[:, number])
            assert f1_score(labels[:, number], said[:, number]) <= best + 1e-9
    scores = tuned.scores(outputs, labels)
    assert scores["auc"] == pytest.approx(roc_auc_score(labels, outputs))
    table = tuned.table(outputs, labels)
    assert list(table["threshold"]) == list(tuned.thresholds)
    expected = precision_recall_fscore_support(labels, tuned.decided(outputs))
    np.testing.assert_allclose(table[["precision", "recall", "f1", "examples"]].T, expected)
    alone = rules_of(Task("multilabel", ("red",))).table(outputs[:, :1], labels[:, :1] * 0)
    assert alone[["precision", "recall", "f1", "examples"]].values.tolist() == [[0, 0, 0, 0]]
    assert LABELS.tuned(outputs, labels * 0).thresholds == (0.5, 0.5)  # of nothing to choose by


def test_a_head_of_numbers_begins_at_their_scale():
    generator = np.random.default_rng(0)
    seen = generator.normal([3000, -5], [400, 0.1], (500, 2)).astype("float32")
    keras.utils.set_random_seed(0)
    outputs = NUMBERS.fitted(seen).head().build((4,)).predict(np.zeros((1, 4)), verbose=0)
    np.testing.assert_allclose(outputs, seen.mean(axis=0)[None], rtol=1e-4)
    scores = NUMBERS.scores(seen + 1, seen)
    assert scores["mean_absolute_error"] == pytest.approx(mean_absolute_error(seen + 1, seen))
    one = rules_of(Task("regression", ("age",)))
    assert one.targets(np.arange(3), "train").shape == (3, 1)


@pytest.mark.parametrize(
    ("rules", "labels", "says"),
    [
        (
            CLASSES,
            np.array([0, 3]),
            "Expected labels from 0 to 2 .* 1 of 2 without a class, the first at position 1: 3",
        ),
        (CLASSES, np.zeros((2, 3)), "one class for each example"),
        (LABELS, np.array([[0, 1], [0, 2]]), r"Expected 0 or 1 .* position 1: \[0, 2\]"),
        (LABELS, np.array([0, 1]), "2 labels of 0 and 1 for each"),
        (NUMBERS, np.array([[0, np.nan]]), "finite numbers"),
        (NUMBERS, np.array([1.0]), "2 numbers for each"),
    ],
)
def test_labels_of_another_task_are_refused(rules, labels, says):
    with pytest.raises(DataError, match=says):
        rules.targets(labels, "train")


@pytest.mark.filterwarnings("error")
def test_a_linear_rival_of_numbers_is_fitted_exactly():
    generator = np.random.default_rng(0)
    inputs = generator.random((60, 200)).astype("float32")
    inputs[:, 1:] = inputs[:, :1] + 1e-3 * inputs[:, 1:]
    labels = generator.normal(size=(60, 1)).astype("float32")
    found = NUMBER.fit_linear(inputs, labels, None, 1e-3)(inputs)
    expected = Ridge(1e-3, solver="svd").fit(inputs.astype(float), labels).predict(inputs)
    np.testing.assert_allclose(found[:, 0], expected.reshape(-1), rtol=1e-4)


@pytest.mark.parametrize("score", [logme, ridge_probe, knn_probe])
def test_cuts_are_ranked_for_numbers_and_labels_as_well(score):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(80, 5))
    numbers = features[:, :2] * [1000, 0.001] + generator.normal(size=(80, 2)) * [100, 1e-4]
    for targets in (numbers, numbers[:, 0], (numbers > 0).astype(int)):
        told, noise = score(features, targets), score(generator.normal(size=(80, 5)), targets)
        assert told > noise
        assert score(features, targets * 3) == pytest.approx(told)
    with pytest.raises(DataError, match="not the same for all"):
        score(features, np.ones(80))
    with pytest.raises(DataError, match="finite"):
        score(features, np.full(80, np.nan))
