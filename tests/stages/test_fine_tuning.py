"""Fine-tuning: what is frozen stays bit-equal, what is open moves, what does not help is undone."""

from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest

import reusekit as rk
from reusekit import stages
from reusekit.backbones import Backbone
from reusekit.data import Task
from reusekit.settings import FineTuneSettings, HeadSettings
from reusekit.stages import fine_tuning
from reusekit.stages.evaluation import predict
from reusekit.stages.fine_tuning import phase_optimizer
from reusekit.tracking import EpochMetrics
from reusekit.training import fit_model
from reusekit.training.drawing import draw_cut

CUT, OPEN_FROM = "block4_out", "block2_out"


@pytest.fixture(scope="module")
def tune(module_tracking, backbone, splits, store, tmp_path_factory):
    """Go on from a head, trained once a store, with the top unfrozen, as given settings say."""
    heads = {}

    def tuned(folder=None, store=store, splits=splits, **second):
        settings = FineTuneSettings(**{"frozen_up_to": OPEN_FROM, "epochs": 2} | second)
        if store not in heads:
            head = HeadSettings(epochs=8, patience=8)
            heads[store] = stages.train_head(backbone, CUT, head, splits, store, seed=0)
        begun = replace(heads[store], whole=rk.clone(heads[store].whole))
        folder = folder or tmp_path_factory.mktemp("tuned")
        return stages.finetune(begun, backbone, settings, splits, store, folder, seed=0)

    return tuned


@pytest.fixture(scope="module")
def usual(tune, tmp_path_factory):
    """The training of the settings above, and the folder that it was given."""
    folder = tmp_path_factory.mktemp("usual")
    return tune(folder), folder


def weights_by_layer(model) -> dict[str, list[np.ndarray]]:
    return {layer.name: layer.get_weights() for layer in model.layers}


def test_frozen_layers_stay_bit_equal_and_the_others_move(usual, tune, backbone, store):
    before = weights_by_layer(backbone.model)
    digest = replace(backbone).digest
    stored = {entry.digest for entry in store.entries()}
    assert {CUT, OPEN_FROM} <= {entry.about["cut"] for entry in store.entries()}
    tuned = tune(learning_rate=1e-3)
    assert tuned.phases[1].kept
    # What is frozen ran once for both trainings.
    assert {entry.digest for entry in store.entries()} == stored

    frozen = {layer.name for layer in rk.split(backbone.model, OPEN_FROM).bottom.layers}
    for layer in rk.extract(backbone.model, CUT).layers:
        after = tuned.whole.get_layer(layer.name).get_weights() if before[layer.name] else []
        equal = all(np.array_equal(a, b) for a, b in zip(before[layer.name], after, strict=True))
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        assert equal == (layer.name in frozen or is_norm or not before[layer.name]), layer.name

    # The backbone that was given is as it was.
    for name, weights in weights_by_layer(backbone.model).items():
        for one, other in zip(weights, before[name], strict=True):
            np.testing.assert_array_equal(one, other)
    assert replace(backbone).digest == digest


def test_rates_fall_and_blocks_open_as_the_settings_say(tune, backbone):
    before = weights_by_layer(backbone.model)
    said = {"learning_rate": 1e-3, "decay": 0.01, "unfreeze_every": 1, "batch_norm": "train"}
    tuned = tune(epochs=3, **said)
    assert tuned.phases[1].kept

    def moved(block):
        return max(
            np.abs(one - other).max()
            for name, weights in weights_by_layer(tuned.whole).items()
            if name.startswith(block) and name.endswith("conv")
            for one, other in zip(weights, before[name], strict=True)
        )

    assert moved("block2") == 0 < moved("block3") < moved("block4") / 10
    assert any(
        not np.array_equal(layer.get_weights()[-1], before[layer.name][-1])
        for layer in tuned.whole.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )


def test_the_rate_warms_up_and_falls_along_a_cosine():
    said = {"warmup": 2, "schedule": "cosine", "epochs": 6, "learning_rate": 0.5}

    def rates(**changed):
        x = keras.Input((1,))
        model = keras.Model(x, keras.layers.Dense(1)(x))
        optimizer = phase_optimizer(model, FineTuneSettings(**said | changed), steps=10)
        optimizer.build(model.trainable_variables)
        found = []
        for step in range(61):
            optimizer.iterations.assign(step)
            found.append(float(optimizer.learning_rate))
        return found

    both = rates()
    assert both[0] == 0
    assert both[10] == pytest.approx(0.25)
    assert both[20] == pytest.approx(0.5) == max(both)
    assert both[40] == pytest.approx(0.25)
    assert both[60] == pytest.approx(0, abs=1e-6)
    assert rates(schedule="constant")[20:] == pytest.approx([0.5] * 41)
    assert rates(warmup=0)[0] == pytest.approx(0.5)
    with pytest.raises(rk.ConfigError, match="warmup to be below epochs, 6"):
        rates(warmup=6)


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_weights_decay_but_biases_and_gradients_are_clipped(decay):
    x = keras.Input((2,))
    model = keras.Model(x, keras.layers.Dense(2, bias_initializer="ones")(x))
    kernel, bias = model.trainable_variables
    before = kernel.numpy()
    said = {"learning_rate": 0.1, "weight_decay": 0.5, "clip_norm": 1.0, "decay": decay}
    optimizer = phase_optimizer(model, FineTuneSettings(**said), steps=1)
    optimizer.build(model.trainable_variables)
    rate = 0.1 if decay == 1 else optimizer.rates[0].rate
    optimizer.apply([kernel * 0, bias * 0])
    np.testing.assert_allclose(kernel, before * (1 - 0.5 * rate), rtol=1e-5)
    np.testing.assert_array_equal(bias, [1, 1])

    # Unclipped, the first gradient would outweigh the second.
    model.set_weights([before, np.ones(2)])
    optimizer = phase_optimizer(model, FineTuneSettings(**said), steps=1)
    optimizer.build(model.trainable_variables)
    optimizer.apply([kernel * 0, bias * 0 + 1e6])
    once = bias.numpy()
    optimizer.apply([kernel * 0, bias * 0 - 0.7])
    assert (once < 1).all() and (bias.numpy() > once).all()


def test_no_bias_and_no_normalization_decays_whatever_its_shape():
    x = keras.Input((6, 8))
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    y = keras.layers.LayerNormalization(axis=[1, 2])(y)
    model = keras.Model(x, keras.layers.GRU(3)(y))
    optimizer = phase_optimizer(model, FineTuneSettings(learning_rate=0.5, weight_decay=1.0), 1)
    optimizer.build(model.trainable_variables)
    for one in model.trainable_variables:
        one.assign(keras.ops.ones_like(one))
    optimizer.apply([one * 0 for one in model.trainable_variables])
    kept = {one.name for one in model.trainable_variables if (one.numpy() == 1).all()}
    assert kept == {"bias", "gamma", "beta"}


def test_settings_that_the_task_has_not_are_refused_before_any_work(splits):
    task = Task("regression", ("stripes",))
    numbers = stages.Splits(
        *(replace(one, task=task) for one in (splits.train, splits.validation, splits.test))
    )
    for settings in (HeadSettings, FineTuneSettings):
        with pytest.raises(rk.ConfigError, match=r"the objective .* Received: 'val_f1'"):
            stages.check_phases(numbers, settings(objective="val_f1"))
        stages.check_phases(splits, settings(objective="val_f1"))
    with pytest.raises(rk.errors.HeadError, match="for label smoothing"):
        stages.check_phases(numbers, FineTuneSettings(label_smoothing=0.1))


def test_labels_are_smoothed_as_keras_does():
    outputs = np.random.default_rng(0).dirichlet(np.ones(3), 8).astype("float32")
    labels = np.arange(8) % 3
    expected = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)(np.eye(3)[labels], outputs)
    found = rk.heads.Classifier(3).smoothed_loss(0.2)(labels, outputs)
    assert float(np.mean(found)) == pytest.approx(float(expected))
    logits = rk.heads.Classifier(3, logits=True).smoothed_loss(0.2)(labels, np.log(outputs))
    assert float(np.mean(logits)) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(rk.errors.HeadError, match="for label smoothing"):
        rk.heads.Regression().smoothed_loss(0.2)


def test_a_phase_in_mixed_precision_is_kept_by_its_own_objective(tune, usual, splits, monkeypatch):
    trained = []

    def fitted(model, *args, **options):
        trained.append(model)
        return fit_model(model, *args, **options)

    monkeypatch.setattr(fine_tuning, "fit_model", fitted)
    said = {"precision": "mixed_bfloat16", "objective": "val_f1", "label_smoothing": 0.1}
    tuned = tune(**said, weight_decay=0.01, clip_norm=1.0, warmup=1, schedule="cosine")
    first, second = tuned.phases
    assert "val_f1" in second.fit.history and "val_f1" not in first.fit.history
    plain = usual[0].phases[1].fit.history["val_loss"]
    assert second.fit.history["val_loss"][0] > plain[0]  # of smoothed labels
    assert {layer.compute_dtype for layer in tuned.whole.layers} == {"float32"}
    computed = {layer.name: layer.compute_dtype for layer in trained[-1].layers}
    assert computed["head_probabilities"] == "float32"
    assert (
        trained[-1].predict_on_batch(np.ones((1, *trained[-1].input_shape[1:]))).dtype == "float32"
    )
    assert {computed[layer] for layer in computed if layer.startswith("block3")} == {"bfloat16"}
    labels = np.concatenate([labels for _, labels in splits.validation.batches(64)])
    right = predict(tuned.whole, splits.validation)[0].argmax(axis=1) == labels
    assert tuned.validation == pytest.approx(right.mean())


def test_a_phase_in_float16_trains_as_in_float32(tune, usual):
    second = tune(precision="mixed_float16", clip_norm=100.0).phases[1]
    assert isinstance(second.fit.history["val_loss"][-1], float)
    plain = usual[0].phases[1].fit.history["val_loss"]
    np.testing.assert_allclose(second.fit.history["val_loss"], plain, rtol=0.02)


def test_a_phase_that_was_killed_goes_on(tune, splits, tmp_path, monkeypatch):
    # Examples are augmented, and mixed, as they would have been.
    train = splits.train.augmented([keras.layers.RandomRotation(0.1), "MixUp"])
    splits = replace(splits, train=train)

    def killed(self, epoch, logs=None):
        if self.first_step and epoch == 1:
            raise KeyboardInterrupt

    folders = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    for folder in folders:
        folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(EpochMetrics, "on_epoch_begin", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(folders[0], splits=splits)
    assert len(list((tmp_path / "phases").iterdir())) == 1
    again = tune(folders[1], splits=splits).phases[1].fit
    assert not (tmp_path / "phases").exists()
    assert again.history == tune(folders[2], splits=splits).phases[1].fit.history


def test_the_parts_are_the_whole(usual, splits):
    tuned, _ = usual
    certificate = tuned.parts.verify()
    assert certificate.max_abs_error <= certificate.tolerance
    images = next(iter(splits.test.batches(8)))[0]
    pieces = tuned.parts.top(tuned.parts.bottom(images, training=False), training=False)
    np.testing.assert_allclose(pieces, tuned.whole(images, training=False), atol=1e-6)
    counts = rk.count_params(tuned.whole)
    assert 0 < counts.trainable < counts.total


def test_a_phase_that_does_not_help_is_undone(tune):
    ruined = tune(learning_rate=50.0, epochs=1)
    head_only = tune(share=0.0, frozen_up_to=None)
    assert [phase.name for phase in head_only.phases] == ["head"]
    assert not ruined.phases[1].kept
    assert ruined.frozen_up_to == ruined.cut
    assert rk.count_params(ruined.whole) == rk.count_params(head_only.whole)
    for one, other in zip(ruined.whole.weights, head_only.whole.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_nothing_is_left_behind_but_the_history_and_a_drawing(usual):
    tuned, folder = usual
    assert {file.name for file in folder.iterdir()} == {"phases.csv", "model.png"}
    assert (folder / "model.png").read_bytes().startswith(b"\x89PNG")
    history = pd.read_csv(folder / "phases.csv")
    second = history[history["phase"] == "finetune"]["val_loss"]
    np.testing.assert_allclose(second, tuned.phases[1].fit.history["val_loss"])


def test_what_lies_behind_the_cut_cannot_be_unfrozen(tune):
    tuned = tune(frozen_up_to="block5_out")
    assert tuned.frozen_up_to == tuned.cut
    assert [phase.name for phase in tuned.phases] == ["head"]


def test_where_there_is_no_room_the_frozen_part_runs_for_every_batch(usual, tune, tmp_path):
    small = rk.FeatureStore(tmp_path / "small", budget=1000)
    computed = tune(store=small)
    assert small.entries() == []
    for one, other in zip(computed.phases, usual[0].phases, strict=True):
        np.testing.assert_allclose(
            one.fit.history["val_loss"], other.fit.history["val_loss"], rtol=1e-3
        )


@pytest.fixture(scope="module")
def tutorial():
    """A backbone in the shape of Keras's tutorial: augmentation, a nested base, pooling, Dense."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 1), name="in")
    y = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(4, 3, name="conv1")(x))
    for number, width in enumerate((4, 8, 8), 1):
        y = keras.layers.Conv2D(width, 3, padding="same", name=f"more{number}")(y)
        y = keras.layers.ReLU(name=f"out{number}")(y)
    base = keras.Model(x, y, name="base")
    image = keras.Input((8, 8, 1), name="image")
    flip = keras.layers.RandomFlip("horizontal", name="flip")
    y = keras.Sequential([keras.Input((8, 8, 1)), flip], name="augmentation")(image)
    y = base(keras.layers.Rescaling(1 / 16, name="scale")(y), training=False)
    y = keras.layers.GlobalAveragePooling2D(name="pool")(y)
    y = keras.layers.Dense(10, activation="softmax", name="classes")(y)
    return Backbone(keras.Model(image, y, name="tutorial"), None, "tutorial", None)


# pipeline C
def test_a_search_that_trains_inside_a_nested_model_is_fine_tuned(
    module_tracking, tutorial, store, tmp_path
):
    space = rk.SearchSpace(
        ["base/out3", "pool"],
        frozen_up_to=["base/out2"],
        learning_rates=[0.01],
        units=[8],
        dropout=[0.0],
    )
    train, validation = (
        rk.data.load("sklearn_digits", part) for part in ("train[:60]", "validation[:30]")
    )
    digits = stages.Splits(train, validation, validation)
    before = tutorial.model.get_weights()
    search = rk.CutSearch(
        tutorial.model,
        train,
        validation,
        space,
        rk.SearchConfig(epochs=2, keep=2),
        folder=tmp_path / "search",
        store=store,
    )
    result = search.run()

    for position, trial in enumerate(result.completed):
        whole = search.best_model(position)
        reached = whole.evaluate(validation.batches(30), verbose=0)[0]
        assert reached == pytest.approx(trial.fit.metrics["val_loss"], rel=1e-4)
        addresses = [point.at for point in rk.cut_points(whole)]
        assert {"base/out1", "base/out2", "base/out3", trial.cut} <= {*addresses}
        frozen = rk.split(whole, "base/out2").bottom
        given = rk.extract(tutorial.model, "base/out2").get_weights()
        for one, other in zip(frozen.get_weights(), given, strict=True):
            np.testing.assert_array_equal(one, other)
        moved = rk.extract(whole, "base/out3").get_weights()[-2]
        assert not np.array_equal(moved, rk.extract(tutorial.model, "base/out3").get_weights()[-2])

    begun = stages.best_trial(stages.Searched(search, result, 0, 0.0))
    assert draw_cut(begun.whole, begun.cut, "nested") is not None
    settings = FineTuneSettings(frozen_up_to="base/out1", epochs=1)
    tuned = stages.finetune(begun, tutorial, settings, digits, store, tmp_path, seed=0)
    assert [phase.name for phase in tuned.phases] == ["search", "finetune"]
    assert tuned.parts.verify().parameters_conserved
    for one, other in zip(tutorial.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
