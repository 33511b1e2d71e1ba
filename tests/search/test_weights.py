"""Weights of examples count in every way of a search as they do in Keras; tasks beside classes."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from search.textures import small_backbone, textures
from sklearn.utils.class_weight import compute_sample_weight

import reusekit as rk
from reusekit.data import DataSplit, Task
from reusekit.errors import ConfigError, DataError
from reusekit.features import FeatureStore, feed
from reusekit.planning.rule import VALIDATION_BATCH
from reusekit.search import CutSearch, SearchConfig, SearchSpace

SPACE = SearchSpace(["out2"], frozen_up_to=["out1"], units=[0], dropout=[0.0],
                    learning_rates=[0.03], standardize=False)  # fmt: skip


def weighted(split: DataSplit, weights: np.ndarray) -> DataSplit:
    examples = tf.data.Dataset.zip(
        split.examples, tf.data.Dataset.from_tensor_slices(weights.astype("float32"))
    ).map(lambda example, weight: (*example, weight))
    return replace(split, examples=examples, fingerprint=f"{split.fingerprint} weighted")


@pytest.fixture(scope="module")
def splits():
    weights = np.random.default_rng(0).uniform(0, 2, 75)
    return weighted(textures("train", 45, 1), weights[:45]), weighted(
        textures("validation", 30, 2), weights[45:]
    )


def searched(splits, folder, store=None, space=SPACE, **settings) -> CutSearch:
    search = CutSearch(
        small_backbone(),
        *splits,
        space,
        SearchConfig(**{"epochs": 2, "patience": 9} | settings),
        folder=folder,
        store=store or FeatureStore(folder / "store"),
    )
    search.run()
    return search


def losses(search) -> list[list[float]]:
    return [trial.fit.history["val_loss"] for trial in search.result.trials]


def test_losses_are_those_of_keras_with_the_same_weights_in_every_way(splits, tmp_path):
    # pipeline, foreign errors: (x, y, weight) examples
    stored = searched(splits, tmp_path / "a")
    computed = searched(splits, tmp_path / "b", FeatureStore(tmp_path / "none", budget=100))
    assert {one.how for one in computed.plan.features} == {"recompute"}
    assert not {one.how for one in stored.plan.features} & {"recompute"}
    plain = searched(splits, tmp_path / "c", plain=True)
    for other in (computed, plain):
        np.testing.assert_allclose(losses(other), losses(stored), rtol=1e-4)

    (x, y, w), validation = (split.arrays() for split in splits)
    trial = plain.result.trials[-1]  # which trains the top of the backbone, too
    spec, found, seed = trial.spec, trial.fit.history, plain.config.seed
    model = plain.hypermodel.build_for(spec)
    history = model.fit(
        feed(x, y, spec.batch_size, seed, w),
        validation_data=feed(*validation[:2], VALIDATION_BATCH, None, validation[2]),
        epochs=2,
        verbose=0,
    ).history
    np.testing.assert_allclose(history["val_loss"], found["val_loss"], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], found["loss"], rtol=1e-5)
    unweighted = model.evaluate(feed(*validation[:2], 30), verbose=0)[0]
    weighed = model.evaluate(feed(*validation[:2], 30, None, validation[2]), verbose=0)[0]
    assert abs(unweighted - weighed) > 1e-3


def test_balanced_classes_count_as_keras_and_scikit_learn_have_it(tmp_path):
    split = textures("train", 45, 1)
    few = replace(split, examples=split.examples.take(32).skip(2), size=30)
    few = replace(few, examples=few.examples.filter(lambda x, y: y > 0).take(20), size=20)
    few = replace(few, examples=few.examples.concatenate(split.examples.take(1)), size=21)
    *_, labels, weights = few.balanced().arrays()
    np.testing.assert_allclose(weights, compute_sample_weight("balanced", labels), rtol=1e-6)
    assert few.balanced().fingerprint != few.fingerprint
    twice = few.balanced().balanced().arrays()[2]
    np.testing.assert_allclose(twice, weights**2, rtol=1e-6)
    with pytest.raises(DataError, match=r"one class an example .* Received: regression"):
        replace(few, task=Task("regression", ("a",))).balanced()

    heads = SearchSpace(["out2"], units=[0], dropout=[0.0], learning_rates=[0.03])
    search = searched((few.balanced(), split), tmp_path, space=heads)
    (trial,) = search.result.trials
    model = search.hypermodel.build_for(trial.spec)
    x, y, _ = (search.hypermodel.data.train["out2", "avg"].arrays(), labels, None)
    classes, counts = np.unique(labels, return_counts=True)
    weight = {
        int(c): len(labels) / (len(classes) * n) for c, n in zip(classes, counts, strict=True)
    }
    batches = feed(x, y, trial.spec.batch_size, search.config.seed)
    history = model.fit(batches, epochs=2, class_weight=weight, verbose=0).history
    np.testing.assert_allclose(history["loss"], trial.fit.history["loss"], rtol=1e-5)
    with pytest.raises(ConfigError, match="no class_weight for examples that have weights"):
        search.hypermodel.fit(_hyperparameters(search), model, class_weight=weight)


def _hyperparameters(search):
    return search.tuner.get_best_hyperparameters()[0]


def other(task: str, split: DataSplit) -> DataSplit:
    """The textures, of which something else is to be told."""
    names = {"multilabel": ("across", "upright"), "regression": ("stripes",)}[task]

    def told(image, label):
        if task == "regression":
            return image, 1000 + 100 * tf.cast(label, tf.float32)
        return image, tf.stack([tf.cast(label != 1, tf.float32), tf.cast(label != 0, tf.float32)])

    return replace(
        split,
        examples=split.examples.map(told),
        task=Task(task, names),
        fingerprint=f"{split.fingerprint} {task}",
    )


@pytest.mark.parametrize(
    ("task", "objective", "reached"),
    [
        ("multilabel", "val_f1", lambda value: value > 0.6),
        ("regression", None, lambda value: value < 6000),  # of a variance of 6,667
    ],
)
def test_other_tasks_are_searched_by_any_metric_of_keras(task, objective, reached, tmp_path):
    # pipeline, foreign errors: objective="val_f1"; float targets
    splits = [other(task, textures(*one)) for one in (("train", 60, 1), ("validation", 30, 2))]
    space = SearchSpace(["stem", "out2"], units=[0], dropout=[0.0], learning_rates=[0.1])
    search = searched(
        splits, tmp_path, space=space, epochs=12, patience=4, objective=objective,
        rank="ridge" if objective else "logme",
    )  # fmt: skip
    result = search.result
    default = {"multilabel": "val_auc", "regression": "val_loss"}[task]
    assert result.objective == (objective or default)
    assert result.maximize == (task == "multilabel")
    best = result.best
    values = best.fit.history[result.objective]
    best_value = max(values) if result.maximize else min(values)
    assert best.metrics[result.objective] == best_value  # the epoch that is kept
    assert reached(best_value)
    whole = search.best_model()
    x, y = splits[1].arrays()
    assert whole.evaluate(x, y, verbose=0)[0] == pytest.approx(best.metrics["val_loss"], rel=1e-3)
    assert search.ranking["score"].is_monotonic_decreasing


def test_f1_of_classes_stops_and_is_kept_by(tmp_path):
    splits = textures("train", 45, 1), textures("validation", 30, 2)
    space = SearchSpace(["out2"], units=[0], dropout=[0.0], learning_rates=[0.3])
    search = searched(splits, tmp_path, space=space, epochs=20, patience=2, objective="val_f1")
    (trial,) = search.result.trials
    reached = trial.fit.history["val_f1"]
    assert trial.fit.best_epoch == int(np.argmax(reached))
    assert len(reached) <= trial.fit.best_epoch + 3
    assert search.best_model().compiled


def test_splits_of_different_tasks_are_refused():
    train, validation = textures("train", 6, 1), textures("validation", 6, 2)
    names = tuple(reversed(train.task.names))
    turned = replace(validation, task=replace(validation.task, names=names))
    with pytest.raises(ConfigError, match="examples of one task, with the same names"):
        rk.CutSearch(small_backbone(), train, turned)
