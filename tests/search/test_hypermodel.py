"""A trial's model and its training, alone and by keras-tuner's own tuners."""

import warnings

import keras
import keras_tuner
import numpy as np
import pytest

import reusekit as rk
from reusekit.features import FeatureStore
from reusekit.planning import Trials, obtain, plan
from reusekit.search import CutHyperModel, SearchConfig, SearchSpace, TrialData, TrialSpec
from reusekit.search.trial_data import stand_ins
from reusekit.surgery import extract

CUTS = ["shallow", "middle", "deep"]


@pytest.fixture(scope="module")
def maps(backbone, train, validation, tmp_path_factory) -> TrialData:
    """Features of the small backbone at three cuts, pooled and whole."""
    store = FeatureStore(tmp_path_factory.mktemp("store"))
    trials = [Trials(at, pooling) for at in ("stem", "out0", "out2") for pooling in ("avg", None)]
    made = plan(backbone, trials, train, validation, store)
    sources = (
        obtain(made, backbone, store, train, training=True),
        obtain(made, backbone, store, validation),
    )
    return TrialData(*sources, train.task, model=backbone)


def small(maps, epochs=2, **space) -> CutHyperModel:
    return CutHyperModel(
        maps, SearchSpace(["out0", "out2"], **space), SearchConfig(epochs=epochs, patience=9)
    )


def trained_layers(model):
    return {v.path.split("/")[0] for v in model.trainable_variables}


@pytest.mark.parametrize(
    ("tuner_class", "limits"),
    [
        (keras_tuner.BayesianOptimization, {"max_trials": 2}),
        (keras_tuner.Hyperband, {"max_epochs": 2}),
    ],
)
def test_keras_tuners_own_tuners_take_the_hypermodel_unchanged(data, tuner_class, limits, tmp_path):
    hypermodel = CutHyperModel(data, SearchSpace(CUTS, units=(0, 4)), SearchConfig(epochs=1))
    search = tuner_class(
        hypermodel, objective="val_accuracy", directory=tmp_path, seed=1, overwrite=True, **limits
    )
    search.search(verbose=0)
    trials = search.oracle.get_best_trials(2)
    assert {trial.status for trial in trials} == {"COMPLETED"}
    with warnings.catch_warnings():  # keras-tuner loads weights before there is any optimizer state
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        (best,) = search.get_best_models(1)
    place = hypermodel.data.begin(hypermodel.spec(trials[0].hyperparameters))
    source = data.validation[place]
    predicted = best.predict(source.arrays(), verbose=0).argmax(axis=1)
    assert np.mean(predicted == source.labels) == pytest.approx(trials[0].score)


def test_the_same_trial_begins_with_the_same_weights_whatever_was_built_before(hypermodel):
    spec = TrialSpec("deep", "deep", units=4, dropout=0.5)
    one = hypermodel.build_for(spec).get_weights()
    hypermodel.build_for(TrialSpec("shallow", "shallow"))
    other = hypermodel.build_for(spec).get_weights()
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_budget_of_epochs_is_kept(hypermodel):
    spec = TrialSpec("deep", "deep")
    model = hypermodel.build_for(spec)
    assert len(hypermodel.train(spec, model, epochs=2).history["loss"]) == 2
    fit = hypermodel.train(spec, model, epochs=4, initial_epoch=1)
    assert len(fit.history["loss"]) == 3


def test_patience_ends_a_trial_at_its_best_epoch(data):
    hypermodel = CutHyperModel(data, SearchSpace(CUTS), SearchConfig(epochs=30, patience=1))
    spec = TrialSpec("shallow", "shallow", learning_rate=1.0)  # noise: there is nothing to learn
    model = hypermodel.build_for(spec)
    fit = hypermodel.train(spec, model)
    assert len(fit.history["loss"]) == fit.best_epoch + 2 < 30
    source = data.validation["shallow", "avg"]
    loss, _ = model.evaluate(source.arrays(), source.labels, verbose=0)
    assert loss == pytest.approx(fit.metrics["val_loss"], rel=1e-5)


def test_freezing_behind_the_cut_is_freezing_at_the_cut(maps):
    hypermodel = small(maps, frozen_up_to=["out0", "stem"])
    hp = keras_tuner.HyperParameters()
    hypermodel.build(hp)
    for cut, frozen_up_to, expected in (
        ("out0", "out0", "out0"),
        ("out0", "stem", "stem"),
        ("out2", "out0", "out0"),
    ):
        hp.values |= {"cut": cut, "frozen_up_to": frozen_up_to}
        assert hypermodel.spec(hp).frozen_up_to == expected
    deeper = small(maps, frozen_up_to=["out2"])
    hp = keras_tuner.HyperParameters()
    spec = deeper.spec(hp)
    assert (spec.cut, spec.frozen_up_to) == ("out0", "out0")
    assert not spec.trains_backbone


def test_what_is_not_frozen_before_the_cut_is_trained_but_for_batch_normalization(maps, backbone):
    spec = TrialSpec("out2", "out0", learning_rate=0.01)
    frozen = small(maps).build_for(spec)
    assert trained_layers(frozen) == {"conv1", "conv2", "head_probabilities"}
    normalizing = small(maps, batch_norm="train").build_for(spec)
    assert trained_layers(normalizing) == {"conv1", "conv2", "bn1", "bn2", "head_probabilities"}
    before = [v.numpy().copy() for v in backbone.variables]
    hypermodel = small(maps, batch_norm="train")
    fit = hypermodel.train(spec, normalizing)
    assert fit.history["loss"][-1] < fit.history["loss"][0]
    # The trial trained a copy.
    for value, variable in zip(before, backbone.variables, strict=True):
        np.testing.assert_array_equal(variable, value)
    moved = normalizing.get_layer("bn1").moving_mean
    assert not np.allclose(moved, backbone.get_layer("bn1").moving_mean)
    frozen_fit = small(maps).train(spec, frozen)
    assert frozen_fit.history["loss"][-1] < frozen_fit.history["loss"][0]
    kept = frozen.get_layer("bn1")
    np.testing.assert_array_equal(kept.moving_mean, backbone.get_layer("bn1").moving_mean)


def test_an_untrained_top_gives_what_the_backbone_gives(maps, backbone, validation):
    model = small(maps).build_for(TrialSpec("out2", "out0"))
    kernel, bias = model.get_layer("head_probabilities").get_weights()
    images = np.stack([image for image, _ in validation.examples.as_numpy_iterator()])
    features = extract(backbone, "out2", "avg").predict(images, verbose=0)
    expected = keras.ops.softmax(features @ kernel + bias)
    batches = maps.validation["out0", None].batches(7)
    found = np.concatenate([model.predict_on_batch(x) for x, _ in batches])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_head_by_name_is_built_where_it_is_asked_for(data):
    heads = {"linear": rk.heads.Classifier(3), "deep": rk.heads.Classifier(3, units=(8, 4))}
    hypermodel = CutHyperModel(data, SearchSpace(CUTS, heads=heads), SearchConfig(epochs=1))
    shapes = {
        name: [
            tuple(v.shape) for v in hypermodel.build_for(TrialSpec("deep", "deep", name)).weights
        ]
        for name in heads
    }
    assert shapes["linear"] == [(6, 3), (3,)]
    assert shapes["deep"] == [(6, 8), (8,), (8, 4), (4,), (4, 3), (3,)]


def test_classifiers_remove_the_mean_and_the_variance_of_their_features(data):
    spec = TrialSpec("deep", "deep")
    x = data.train["deep", "avg"].arrays()
    (normalization,) = [
        layer
        for layer in CutHyperModel(data, SearchSpace(CUTS)).build_for(spec).layers
        if isinstance(layer, keras.layers.Normalization)
    ]
    scaled = keras.ops.convert_to_numpy(normalization(x))
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-5)
    plain = CutHyperModel(data, SearchSpace(CUTS, standardize=False)).build_for(spec)
    assert not any(isinstance(layer, keras.layers.Normalization) for layer in plain.layers)


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop", "adam"])
def test_the_optimizer_and_its_rate_are_those_of_the_trial(hypermodel, name):
    spec = TrialSpec("deep", "deep", optimizer=name, learning_rate=0.25)
    optimizer = hypermodel.build_for(spec).optimizer
    assert type(optimizer) is type(keras.optimizers.get(name))
    assert float(optimizer.learning_rate) == 0.25


def test_features_that_were_not_obtained(hypermodel):
    with pytest.raises(KeyError, match="nowhere"):
        hypermodel.build_for(TrialSpec("nowhere", "nowhere"))


def test_mean_and_variance_of_features_are_those_of_all_at_once():
    numbers = np.random.default_rng(0)
    features = numbers.normal(1000, 0.01, (1003, 5)).astype("float32")
    features[:, 3] = 0.1  # of which a sum in blocks is no multiple
    features[:, 4] = numbers.normal(size=1003)
    found = stand_ins(np.array_split(features, [256, 512, 513]))
    exact = features.astype("float64")
    np.testing.assert_allclose(found.mean(axis=0), exact.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(
        found.var(axis=0)[[0, 1, 2, 4]], exact.var(axis=0)[[0, 1, 2, 4]], rtol=1e-9
    )
    assert np.ptp(found, axis=0)[3] == 0
    assert stand_ins([np.zeros((2, 3, 4))]) is None
