"""Several tasks at once: one head with an output for each, from arrays to names."""

from typing import NamedTuple

import keras
import numpy as np
import pytest

import reusekit as rk
from reusekit.data.task import joined
from reusekit.errors import ConfigError, DataError, HeadError
from reusekit.search import SearchConfig, SearchResult
from reusekit.search.objective import configured_objective
from reusekit.stages.evaluation import predict
from reusekit.tasks import repeated, rules_of
from reusekit.training.heads import Classifier, Multitask, Regression

COUNT = 96


def example_labels(x: np.ndarray) -> dict[str, np.ndarray]:
    """Classes, numbers on a large scale, and labels, each of other inputs."""
    return {
        "kind": np.where(x[:, 0] > 0, "cat", "dog").astype(object),
        "age": 100 * x[:, 1] + 500,
        "tags": (x[:, 2:4] > 0).astype(int),
    }


class Searched(NamedTuple):
    """A search on stored features, one the plain way, and what they were made of."""

    search: rk.CutSearch
    stored: SearchResult
    plain: SearchResult
    validation: rk.data.DataSplit


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Searched:
    folder = tmp_path_factory.mktemp("joint")
    x = np.random.default_rng(0).normal(size=(COUNT, 6)).astype("float32")
    train, validation = (
        rk.data.from_arrays(
            x,
            example_labels(x),
            split,
            names={"tags": ["red", "round"]},
            weights=np.linspace(0.5, 1.5, COUNT),
            shares=rk.data.Shares(),
        )
        for split in ("train", "validation")
    )
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    early = keras.layers.Dense(12, activation="relu", name="early")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(40, activation="relu", name="late")(early))
    space = rk.SearchSpace(["late"], units=[0, 4], dropout=[0.0], learning_rates=[0.03])
    searches = [
        rk.CutSearch(
            model, train, validation, space, SearchConfig(epochs=4, plain=plain),
            folder=folder / str(plain), store=rk.FeatureStore(folder / "features"),
        )
        for plain in (False, True)
    ]  # fmt: skip
    return Searched(searches[0], *(search.run() for search in searches), validation)


def test_stored_features_give_what_the_plain_way_gives(searched):
    for one, other in zip(searched.stored.trials, searched.plain.trials, strict=True):
        assert one.spec == other.spec and one.error is None
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
    assert searched.stored.objective == "val_loss" and not searched.stored.maximize


def test_the_loss_is_the_sum_of_those_of_the_tasks_as_they_count(searched):
    best, rules = searched.stored.best, searched.search.hypermodel.data.rules
    assert best.metrics.keys() >= {"val_kind_accuracy", "val_tags_auc", "val_age_loss"}
    model, plain = searched.search.best_model(), searched.search.best_model(folded=False)
    assert "head_normalization" in {layer.name for layer in plain.layers}
    assert "head_normalization" not in {layer.name for layer in model.layers}
    outputs, labels = predict(model, searched.validation)
    weights = [weight for *_, weight in searched.validation.examples.as_numpy_iterator()]
    by_hand = {
        name: float(np.average(one.losses(outputs[name], labels[name]), weights=weights))
        * np.mean(weights)
        for name, one in rules.by_name.items()
    }
    total = sum(rules.weights[name] * loss for name, loss in by_hand.items())
    assert best.loss == pytest.approx(total, rel=1e-4)
    head = rules.weighted({"age": 3.0}).head()
    assert head.weights == rules.weights | {"age": 3 * rules.weights["age"]}
    # The numbers are hundreds, and their loss tens of thousands: they would drown the others.
    assert by_hand["age"] > 1000 * by_hand["kind"] and best.loss < 10


def test_the_measure_is_1_for_a_model_that_looks_at_nothing(searched):
    rules = rules_of(searched.validation.task)
    outputs, labels = predict(searched.search.best_model(), searched.validation)
    constant = repeated(rules.constant(labels), len(labels))
    assert rules.value(constant, labels) == pytest.approx(1)
    assert rules.value(outputs, labels) < 1
    scores = rules.scores(outputs, labels)
    assert scores.keys() >= {"relative_loss", "kind_accuracy", "age_r2", "tags_f1"}
    tuned = rules.tuned(outputs, labels)
    assert tuned.thresholds.keys() == {"tags"} and len(tuned.thresholds["tags"]) == 2
    low, high = rules.interval(outputs, labels)
    assert low < rules.value(outputs, labels) < high
    broken = outputs.copy()
    broken["age"][0] = np.nan
    assert rules.value(broken, labels) > 1e20
    assert rules.sentence("rows").startswith("Classifies rows into 2 classes (kind). Predicts ")


def test_a_linear_rival_is_chosen_for_each_task(searched):
    rules, (inputs, labels, _) = rules_of(searched.validation.task), searched.validation.arrays()
    told = rules.targets(joined(labels), "validation")
    outputs, chosen = rules.best_linear((inputs, told, None), (inputs, told))
    assert chosen.keys() == {"kind_C", "age_alpha", "tags_C"}
    assert rules.value(outputs(inputs), told) < 0.5


def test_answers_have_columns_of_each_task(searched):
    model = searched.search.best_model()
    inputs = searched.validation.arrays()[0]
    told = rk.predict(model, inputs[:4], data=searched.validation, probabilities=True)
    assert list(told) == [
        "kind", "kind_probability", "kind_probabilities", "age", "tags", "tags_probability",
        "tags_probabilities",
    ]  # fmt: skip
    outputs = model.predict(inputs[:4], verbose=0)
    np.testing.assert_allclose(told["age"], outputs["age"][:, 0], rtol=1e-6)
    names = np.array(["cat", "dog"])[outputs["kind"].argmax(axis=1)]
    assert told["kind"].tolist() == names.tolist()
    with pytest.raises(DataError, match="outputs kind, age, tags"):
        rk.predict(keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)]), inputs[:4],
                   data=searched.validation)  # fmt: skip


def test_any_metric_of_a_task_may_be_the_objective(searched):
    space, rules = rk.SearchSpace(["early"]), rules_of(searched.validation.task)
    for name, direction in (
        ("val_kind_accuracy", "max"), ("val_kind_f1", "max"), ("val_age_mae", "min"),
        ("val_age_loss", "min"), ("val_tags_auc", "max"), ("val_loss", "min"),
    ):  # fmt: skip
        found = configured_objective(SearchConfig(objective=name), space, rules)
        assert (found.name, found.direction) == (name, direction)
    for name in ("val_accuracy", "val_age_accuracy", "val_kin_accuracy"):
        with pytest.raises(ConfigError, match=f"one of val_loss, val_kind_loss.*'{name}'"):
            configured_objective(SearchConfig(objective=name), space, rules)
    args = rules.reporting(rules.head(), "kind_f1")["metrics"]
    assert [one if isinstance(one, str) else one.name for one in args["kind"]] == ["accuracy", "f1"]


def test_a_task_whose_loss_counts_nothing_changes_no_other(searched):
    x = np.random.default_rng(1).normal(size=(64, 6)).astype("float32")
    kind, age = (x[:, 0] > 0).astype(int), x[:, 1]
    tasks = {"kind": Classifier(2, units=4), "age": Regression(units=4)}
    both = Multitask(tasks, weights={"kind": 1.0, "age": 0.0})
    outputs = []
    for head, labels in ((both, {"kind": kind, "age": age}), (tasks["kind"], kind)):
        keras.utils.set_random_seed(0)
        model = head.build((6,))
        model.compile("adam", **head.compile_args)
        model.fit(x, labels, epochs=3, shuffle=False, verbose=0)
        outputs.append(model.predict(x, verbose=0))
    np.testing.assert_allclose(outputs[0]["kind"], outputs[1], rtol=1e-5)


def test_what_has_no_meaning_for_several_tasks_is_refused(searched, tmp_path):
    data, graph = searched.validation, searched.search.graph
    with pytest.raises(ConfigError, match="Expected rank=None for several tasks"):
        rk.CutSearch(graph, data, data, config=SearchConfig(rank="ridge"), folder=tmp_path)
    with pytest.raises(ConfigError, match=r"loss_weights of tasks. Received: 'kin'. Did you"):
        rules_of(data.task).weighted({"kin": 2.0})
    with pytest.raises(ConfigError, match="no loss_weights for a single task"):
        rules_of(data.task.parts[0]).weighted({"kind": 2.0})
    with pytest.raises(DataError, match=r"one class an example for balanced.*Received: joint"):
        data.balanced()
    with pytest.raises(HeadError, match="label smoothing"):
        rules_of(data.task).head().smoothed_loss(0.1)
    with pytest.raises(DataError, match="Expected labels of kind, age, tags for each"):
        rules_of(data.task).targets(np.zeros(3), "train")
