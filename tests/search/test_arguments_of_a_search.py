"""Arguments of a search, its own or a tuner's: heeded, or refused in a sentence."""

import gc
from dataclasses import replace

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from search.textures import small_backbone

import reusekit as rk
from reusekit.errors import ConfigError, DataError
from reusekit.features import FeatureSource, FeatureStore
from reusekit.planning import Trials
from reusekit.search import (
    CutGridOracle,
    CutHyperModel,
    CutSearch,
    CutTuner,
    SearchConfig,
    SearchSpace,
    TrialData,
)
from reusekit.search.default_cuts import feature_cuts
from reusekit.training.fit import best_epoch


@pytest.fixture
def search(backbone, train, validation, tmp_path):
    def make(space=None, folder="search", **settings):
        space = space or SearchSpace(["stem", "out2"], units=[0], dropout=[0.0])
        store = FeatureStore(tmp_path / "store")
        return CutSearch(
            backbone,
            train,
            validation,
            space,
            SearchConfig(**{"epochs": 2, **settings}),
            folder=tmp_path / folder,
            store=store,
        )

    return make


def test_the_kept_epoch_follows_the_objective(data):  # pipeline W8
    kept = []
    for name, direction in (("val_loss", "min"), ("val_accuracy", "max")):
        space = SearchSpace(["deep"], units=(0,), dropout=(0.0,), learning_rates=(1.0,))
        objective = keras_tuner.Objective(name, direction)
        hypermodel = CutHyperModel(data, space, SearchConfig(epochs=12, patience=12))
        spec = hypermodel.spec(keras_tuner.HyperParameters())
        model = hypermodel.build_for(spec)
        fit = hypermodel.train(spec, model, objective)
        values = fit.history[name]
        best = (max if direction == "max" else min)(values)
        assert fit.best_epoch == values.index(best)
        source = data.validation["deep", "avg"]
        tested = model.evaluate(source.arrays(), source.labels, verbose=0, return_dict=True)
        assert tested[name.removeprefix("val_")] == pytest.approx(best, rel=1e-4)
        kept.append(fit.best_epoch)
    assert kept[0] != kept[1]
    assert (
        best_epoch({"val_loss": [2.0, 1.0], "val_accuracy": [0.9, 0.8]}, "val_accuracy", True) == 0
    )


def test_the_kept_epoch_follows_the_objective_of_a_tuner(data, tmp_path):  # pipeline W8
    space = SearchSpace(["deep"], units=(0,), dropout=(0.0,), learning_rates=(1.0,))
    hypermodel = CutHyperModel(data, space, SearchConfig(epochs=8, patience=8))
    objective = keras_tuner.Objective("val_accuracy", "max")
    plain = keras_tuner.GridSearch(hypermodel, objective=objective, directory=tmp_path / "plain")
    plain.search(verbose=0)
    (trial,) = plain.oracle.trials.values()
    tuner = CutTuner(hypermodel, CutGridOracle(objective=objective), tmp_path / "cut")
    tuner.search()
    (record,) = tuner.records
    assert record.metrics["val_accuracy"] == max(record.fit.history["val_accuracy"]) == trial.score
    losses = record.fit.history["val_loss"]
    assert losses.index(min(losses)) != record.fit.best_epoch
    (best,) = plain.get_best_models()  # keras-tuner's own checkpoint is of that epoch
    source = data.validation["deep", "avg"]
    tested = best.evaluate(source.arrays(), source.labels, verbose=0, return_dict=True)
    assert tested["accuracy"] == pytest.approx(trial.score, rel=1e-4)


def tuned(data, tmp_path):
    space = SearchSpace(["deep"], units=(0,), dropout=(0.0,), learning_rates=(0.3,))
    hypermodel = CutHyperModel(data, space, SearchConfig(epochs=1))
    by_loss = keras_tuner.Objective("loss", "min")
    return keras_tuner.RandomSearch(
        hypermodel, objective=by_loss, max_trials=1, directory=tmp_path, overwrite=True
    )


def test_what_a_tuners_search_would_drop_ends_it(data, tmp_path):  # pipeline B3
    tuner = tuned(data, tmp_path)
    with pytest.raises(ConfigError, match="Received: 2 by position"):
        tuner.search(np.zeros((2, 6)), np.zeros(2), verbose=0)
    hp = keras_tuner.HyperParameters()
    model = tuner.hypermodel.build(hp)
    for options in (
        {"x": np.zeros((2, 6)), "y": np.zeros(2)},
        {"validation_data": (np.zeros((2, 6)), np.zeros(2))},
        {"sample_weight": np.ones(60)},
        {"batch_size": 4},
    ):
        with pytest.raises(ConfigError, match=f"Received: {', '.join(options)}"):
            tuner.hypermodel.fit(hp, model, **options)


def test_a_tuners_class_weights_are_heeded(data, tmp_path):  # pipeline B3
    lost = []
    for weights in (None, dict.fromkeys(range(3), 0.0)):
        tuner = tuned(data, tmp_path)
        tuner.search(verbose=0, class_weight=weights)
        lost.append(tuner.oracle.get_best_trials(1)[0].metrics.get_best_value("loss"))
    assert lost[0] > lost[1] == 0


def test_raising_max_trials_goes_on(search):  # pipeline B10
    space = SearchSpace(["stem", "out0", "out2"], units=[0], dropout=[0.0])
    first = search(space, max_trials=2).run().trials
    assert {trial.cut for trial in first} == {"stem", "out2"}
    told = []
    second = search(space, max_trials=4).run(report=told.append).trials
    assert second[:2] == first
    assert [one.number for one in told] == [2, 3]
    assert second[2].cut == "out0"  # which the first pass had left out


@pytest.mark.parametrize("objective", ["val_f11", "f1", "val_mean_io_u", "accuracyy"])
def test_an_objective_that_no_head_reports_is_refused_at_once(search, objective):
    with pytest.raises(ConfigError, match=r"one of val_loss, val_accuracy, or .* Received"):
        search(objective=objective)


def test_the_objective_of_other_heads_may_be_any_of_their_metrics(search):
    heads = {"numbers": rk.heads.Regression()}
    space = SearchSpace(["out2"], heads=heads, learning_rates=[0.01])
    with pytest.raises(ConfigError, match="one of val_loss, val_mean_absolute_error"):
        search(space)
    result = search(space, objective="val_mean_absolute_error").run()
    assert not result.maximize
    with pytest.raises(ConfigError, match="Expected a trial that reports an accuracy"):
        _ = result.best.accuracy
    area = SearchSpace(["out2"], heads={"labels": rk.heads.Multilabel(3)})
    assert search(area, "other", objective="val_auc").tuner.oracle.objective.direction == "max"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: (x, y, [1.0, 2.0]), "one number as the weight .* Received: TensorSpec"),
        (lambda x, y: (x, y, 1.0, 1.0), "as a DataSplit of .* Received: 4 parts"),
        (lambda x, y: x, "as a DataSplit of .* Received: TensorSpec"),
        (lambda x, y: (x, {"a": y, "b": y}), "one tensor as labels .* Received: a dict of 2"),
        (lambda x, y: (x, tf.strings.as_string(y)), "numbers as labels .* Received: text"),
        (lambda x, y: (x[:4], y), r"which the model takes .* Received: \(4, 8, 1\)"),
        (lambda x, y: ({"z": x}, y), "with the model's inputs .* Received: none for"),
    ],
)
def test_examples_that_do_not_fit_are_refused_at_once(
    change, says, backbone, train, validation, tmp_path
):  # pipeline, Foreign errors
    changed = replace(train, examples=train.examples.map(change))
    with pytest.raises(DataError, match=says) as refused:
        CutSearch(backbone, changed, validation, folder=tmp_path)
    assert "train" in str(refused.value)
    with pytest.raises(DataError, match=says) as refused:
        rk.plan(backbone, [Trials("out2")], train, changed, FeatureStore(tmp_path))
    assert "validation" in str(refused.value)


@pytest.mark.parametrize("plain", [False, True])
def test_labels_that_are_no_classes_are_named(backbone, train, validation, tmp_path, plain):
    below = train.examples.map(lambda x, y: (x, y - 1))  # pipeline E
    changed = replace(train, examples=below, fingerprint="below")
    with pytest.raises(DataError, match=r"labels from 0 to 2 .* Received: .* position 0: -1\."):
        store = FeatureStore(tmp_path / "store")
        CutSearch(
            backbone,
            changed,
            validation,
            None,
            SearchConfig(plain=plain),
            folder=tmp_path,
            store=store,
        ).run()


def test_no_cut_is_offered_in_the_end_of_a_classifier(train, validation, tmp_path):  # pipeline W3
    def ends(*layers, name="m"):
        x = y = keras.Input((8, 8, 1), name="x")
        y = keras.layers.Conv2D(4, 3, name="maps")(y)
        y = keras.layers.GlobalAveragePooling2D(name="pooled")(y)
        y = keras.layers.Dense(12, activation="relu", name="features")(y)
        for layer in layers:
            y = layer(y)
        return keras.Model(x, y, name=name)

    dense, softmax = keras.layers.Dense, keras.layers.Softmax
    kept = ["maps", "pooled", "features"]
    assert list(feature_cuts(ends(dense(5, activation="softmax", name="old")))) == kept
    assert list(feature_cuts(ends(dense(5, name="logits"), softmax(name="end")))) == kept
    assert list(feature_cuts(ends(dense(1, activation="sigmoid", name="old")))) == kept
    scaled = ends(dense(5, activation="softmax", name="old"), keras.layers.Rescaling(2.0))
    assert list(feature_cuts(scaled)) == kept
    # A softmax in the middle is no end, and an output of features is one of the cuts.
    gated = ends(dense(12, activation="softmax", name="gate"), dense(9, name="after"))
    assert list(feature_cuts(gated)) == [*kept, "gate", "after"]
    assert list(feature_cuts(gated, classes=9)) == ["maps", "features", "gate"]
    x = keras.Input((8, 8, 1))
    only = keras.Model(x, keras.layers.Conv2D(3, 1, activation="softmax", name="all")(x))
    assert list(feature_cuts(only)) == ["all"]
    wide = keras.Input(train.input_shape, name="x")
    y = keras.layers.Flatten(name="flat")(wide)
    y = keras.layers.Dense(6, activation="relu", name="features")(y)
    model = keras.Model(wide, keras.layers.Dense(3, activation="softmax", name="old")(y))
    assert list(CutSearch(model, train, validation, folder=tmp_path)._all_cuts.cuts) == ["features"]


def test_the_best_model_has_its_standardization_folded(search):  # pipeline W1
    space = SearchSpace(["out2"], units=[0, 4], dropout=[0.0], learning_rates=[0.03])
    one = search(space, keep=2)
    one.run()
    x = np.random.default_rng(0).uniform(0, 255, (6, *one.train.input_shape)).astype("float32")
    for position in (0, 1):
        folded, as_trained = one.best_model(position), one.best_model(position, folded=False)
        scaled = [isinstance(each, keras.layers.Normalization) for each in as_trained.layers]
        assert any(scaled)
        assert not any(isinstance(each, keras.layers.Normalization) for each in folded.layers)
        np.testing.assert_allclose(
            folded.predict(x, verbose=0), as_trained.predict(x, verbose=0), atol=1e-6
        )
        assert [v.path for v in folded.trainable_variables] == [
            v.path for v in as_trained.trainable_variables
        ]


@pytest.mark.parametrize("kind", [keras.layers.MixUp, keras.layers.CutMix])
@pytest.mark.parametrize("plain", [False, True])
def test_layers_that_mix_pictures_and_not_labels_are_refused(
    kind, plain, backbone, train, validation, tmp_path
):  # pipeline W6
    x = keras.Input(train.input_shape, name="x")
    model = keras.Model(x, backbone(kind(name="mixed")(x)))
    space = SearchSpace([f"{backbone.name}/out2"])
    with pytest.raises(
        ConfigError, match=rf"'mixed', a {kind.__name__}.*augment: \[{kind.__name__}\]"
    ):
        CutSearch(model, train, validation, space, SearchConfig(plain=plain), folder=tmp_path)


def test_a_search_that_is_over_leaves_nothing_behind(search):  # faults G1
    def alive():
        gc.collect()
        ours = (CutSearch, CutHyperModel, TrialData, FeatureSource)
        kinds = (*ours, keras.optimizers.Adam, keras_tuner.Oracle, tf.__internal__.FuncGraph)
        return sum(isinstance(each, kinds) for each in gc.get_objects())

    space = SearchSpace(["out2"], units=[0], dropout=[0.0], learning_rates=[0.1])
    search(space, "warm").run()  # makes the model by which the machine is measured
    before = alive()
    for number in range(2):
        one = search(space, f"search{number}")
        one.run()
        one.best_model()
    del one
    assert alive() <= before


def test_another_backend_is_one_sentence(search, train, validation, tmp_path, monkeypatch):
    # pipeline, Foreign errors and F: a TypeError
    model, store = small_backbone(), FeatureStore(tmp_path)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    for make in (search, lambda: rk.plan(model, [Trials("out2")], train, validation, store)):
        with pytest.raises(ConfigError, match=r"the TensorFlow backend .* Received: 'jax'"):
            make()


def test_names_that_tensorflow_cannot_run_are_refused_where_they_are_run(train, validation):
    keras.utils.set_random_seed(0)
    given = keras.Input(train.input_shape, name="given")
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(given)
    early = keras.layers.Dense(3, name="frühe Schicht")(pooled)
    model = keras.Model(given, keras.layers.Dense(2, name="späte Schicht")(early), name="one")
    with pytest.raises(ConfigError, match=r"'frühe Schicht'\. Set its name to 'fr_he_Schicht'\."):
        CutSearch(model, train, validation, SearchSpace(["frühe Schicht"]))
    CutSearch(model, train, validation, SearchSpace(["pooled"]))  # runs neither
    for name, valid in (("my model", "my_model"), ("_über", "ber")):
        model.name = name
        with pytest.raises(ConfigError, match=f"Set its name to '{valid}'"):
            CutSearch(model, train, validation, SearchSpace(["pooled"]))
