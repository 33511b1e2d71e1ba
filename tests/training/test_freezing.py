import keras
import numpy as np
import pytest
from keras import layers
from verify_freezing import freeze_and_train
from zoo import ZOO

import reusekit as rk
from reusekit.errors import TrainingError
from reusekit.training import freeze


def values(variables):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]


def data(model, examples=8):
    rng = np.random.default_rng(0)
    x = rng.random((examples, *model.input_shape[1:]), dtype="float32")
    return x, rng.random((examples, *model.output_shape[1:]), dtype="float32")


def train(model, steps=3, jit_compile="auto", optimizer=None):
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
    x, y = data(model)
    model.fit(x, y, batch_size=len(x), epochs=steps, verbose=0)


def states(report):
    return {variable.path: variable.state for variable in report.variables}


def check_training(model, report, still=()):
    """Trains, and compares what moved with what the report says. `still`: paths that may not move.

    A bias before a BatchNormalization has no gradient to speak of, and may or may not move.
    """
    weights = model.weights
    before = values(weights)
    train(model)
    for variable, told, old, new in zip(
        weights, report.variables, before, values(weights), strict=True
    ):
        assert variable.path == told.path
        if told.state in ("frozen", "state"):
            np.testing.assert_array_equal(old, new, err_msg=told.path)
        elif told.path not in still:
            assert not np.array_equal(old, new), told.path


@pytest.mark.parametrize("policy", ["frozen", "statistics", "train"])
def test_what_is_frozen_stays_bit_equal_and_the_rest_moves(policy):
    model = ZOO["residual"]()
    report = freeze(model, "out0", batch_norm=policy)
    found = states(report)
    moved = {
        "frozen": ("frozen", "frozen", "state", "state"),
        "statistics": ("frozen", "frozen", "statistics", "statistics"),
        "train": ("trainable", "trainable", "statistics", "statistics"),
    }[policy]
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    assert tuple(found[f"bn0/{name}"] for name in names) == moved
    assert found["stem/kernel"] == found["conv0/kernel"] == "frozen"
    assert found["conv1/kernel"] == found["bn1/gamma"] == found["head/kernel"] == "trainable"
    assert found["bn1/moving_mean"] == "statistics"
    check_training(model, report)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX optimizers train all or nothing")
def test_a_model_that_was_trained_need_not_be_compiled_again_to_be_frozen():
    model = ZOO["residual"]()
    train(model, steps=1)
    report = freeze(model, "out0")
    before = values(model.weights)
    model.fit(*data(model), verbose=0)
    for told, old, new in zip(report.variables, before, values(model.weights), strict=True):
        assert np.array_equal(old, new) == (told.state in ("frozen", "state")), told.path


def test_a_cut_inside_a_branch_leaves_the_other_branch_trainable():
    model = ZOO["several_branches"]()
    found = states(freeze(model, "deep"))
    assert {path for path, state in found.items() if state == "frozen"} == {
        "deep/kernel",
        "deep/bias",
    }
    frontier = rk.split(model, "deep").frontier
    freeze(model, frontier)
    assert not model.get_layer("one").trainable
    assert not model.get_layer("three").trainable
    assert model.get_layer("up").trainable


def test_at_a_clean_cut_the_bottom_is_frozen():
    model = ZOO["residual"]()
    for point in rk.cut_points(model):
        freeze(model, point)
        bottom, top = rk.split(model, point)
        assert bottom.trainable_variables == []
        assert top.non_trainable_weights == [
            v for v in top.weights if v.path.split("/")[-1].startswith("moving")
        ]


def test_inside_nested_models_flags_are_set_by_layer():
    model = ZOO["nested_three_deep"]()
    model.trainable = False
    report = freeze(model, "middle/inner/core")
    trained = {variable.path for variable in model.trainable_variables}
    assert trained == {p for p, state in states(report).items() if state == "trainable"}
    addresses = {v.address for v in report.variables if v.state == "frozen"}
    assert addresses == {"outer_a", "middle/middle_a", "middle/inner/inner_a"} | {
        "middle/inner/core/deep"
    }
    assert model.trainable
    check_training(model, report)


def test_a_layer_on_both_sides_of_the_cut_is_frozen_and_named():
    model = ZOO["layer_called_twice"]()
    report = freeze(model, "scale0")
    assert report.shared == ("shared@0",)
    assert not model.get_layer("shared").trainable
    assert "Frozen though used after the cut as well: shared@0" in str(report)
    check_training(model, report)


def test_a_weight_that_an_operation_before_the_cut_takes_is_frozen_and_named():
    x = keras.Input((4,), name="x")
    late = layers.Dense(4, name="late")
    late.build((None, 4))
    y = layers.Dense(4, name="mid")(keras.ops.matmul(x, late.kernel))
    model = keras.Model(x, late(y))
    # Keras numbers operations by how many of their kind the process has made.
    (at,) = (one.name for one in model.operations if not isinstance(one, layers.Layer))
    report = freeze(model, at)
    assert report.shared == (at,)
    assert states(report)["late/kernel"] == "frozen"
    check_training(model, report)
    assert freeze(model, None).parameters()["frozen"] == 0


def test_a_call_of_the_tower_of_a_siamese_model_freezes_it_for_both():
    model = ZOO["siamese"]()
    report = freeze(model, "tower@0")
    assert {v.path for v in model.trainable_variables} == {"head/kernel", "head/bias"}
    assert report.shared == ("tower@0/a", "tower@0/b")


def test_a_tied_weight_is_frozen_where_it_stands_before_the_cut(tmp_path):
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    embedding = layers.Embedding(9, 4, name="embedding")
    y = layers.Dense(4, name="dense")(embedding(tokens))
    logits = rk.layers.TiedDense(embedding, name="logits")(y)
    model = keras.Model(tokens, logits, name="tied")
    report = freeze(model, "embedding")
    assert report.shared == ("embedding",)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, rk.clone(model), loaded):
        freeze(each, "embedding")
        before = values(each.weights)
        each.compile("sgd", "mse")
        each.fit(np.arange(10).reshape(2, 5) % 9, np.ones((2, 5, 9)), verbose=0)
        moved = [
            v.path
            for v, old in zip(each.weights, before, strict=True)
            if np.any(keras.ops.convert_to_numpy(v) != old)
        ]
        assert moved == ["dense/kernel", "dense/bias", "logits/bias"]


def test_none_thaws_and_one_call_says_all():
    model = ZOO["residual"]()
    model.trainable = False
    everything = states(freeze(model, None))
    assert "frozen" not in everything.values()
    freeze(model, "out1")
    freeze(model, "stem")
    assert {v.path for v in model.non_trainable_weights if "moving" not in v.path} == {
        "stem/kernel",
        "stem/bias",
    }
    freeze(model, "out0", batch_norm="statistics")
    assert states(freeze(model, None)) == everything


def test_weights_replaced_by_low_rank_ones_stay_frozen_when_thawed():
    model = ZOO["lora_dense"]()
    before = {v.path: v.trainable for v in model.weights}
    freeze(model, model.layers[-1].name)
    assert model.trainable_variables == []
    freeze(model, None)
    assert {v.path: v.trainable for v in model.weights} == before
    assert not all(before.values())


# --- frozen means inference ----------------------------------------------------------------------


def noisy():
    x = keras.Input((6, 8), name="x")
    y = layers.Dense(8, name="a")(x)
    for layer in (
        layers.Dropout(0.5, name="dropout"),
        layers.SpatialDropout1D(0.5, name="spatial"),
        layers.GaussianDropout(0.5, name="gaussian"),
        layers.GaussianNoise(1.0, name="noise"),
        layers.AlphaDropout(0.5, name="alpha"),
        layers.BatchNormalization(name="bn"),
    ):
        y = layer(y)
    y = layers.MultiHeadAttention(2, 4, dropout=0.5, name="attention")(y, y)
    y = layers.Attention(dropout=0.5, name="plain_attention")([y, y])
    y = layers.Bidirectional(
        layers.GRU(3, dropout=0.5, recurrent_dropout=0.5, return_sequences=True), name="both"
    )(y)
    y = layers.LSTM(4, dropout=0.5, recurrent_dropout=0.5, name="lstm")(y)
    y = layers.Dropout(0.5, name="later")(y)
    return keras.Model(x, layers.Dense(4, name="head")(y), name="noisy")


def in_training(model, at, x):
    """A tensor of the model as a training step computes it."""
    return keras.ops.convert_to_numpy(rk.extract(model, at)(x, training=True))


def mean_square_in_fit(model, at, x):
    """The mean square of a tensor of the model as `fit` sees it."""
    tapped = rk.extract(model, at)
    tapped.compile(keras.optimizers.SGD(0.0), "mse")
    y = np.zeros((len(x), *tapped.output_shape[1:]))
    return tapped.fit(x, y, batch_size=len(x), verbose=0).history["loss"][0]


def test_before_the_cut_fit_runs_in_inference_mode_exactly():
    model = noisy()
    x, _ = data(model)
    noisy_outputs = in_training(model, "lstm", x)  # which moves statistics, hence first
    expected = keras.ops.convert_to_numpy(rk.extract(model, "lstm")(x))
    with_dropout = expected
    assert abs((noisy_outputs**2).mean() / (expected**2).mean() - 1) > 0.01
    report = freeze(model, "lstm")
    assert report.silenced == (
        *("dropout", "spatial", "gaussian", "noise", "alpha"),
        *("attention", "plain_attention", "both", "lstm"),
    )
    # Attention without dropout takes Keras's quicker way, which rounds otherwise.
    expected = keras.ops.convert_to_numpy(rk.extract(model, "lstm")(x))
    np.testing.assert_allclose(expected, with_dropout, atol=1e-5)
    np.testing.assert_array_equal(in_training(model, "lstm", x), expected)
    assert mean_square_in_fit(model, "lstm", x) == pytest.approx((expected**2).mean(), rel=1e-5)
    assert not np.allclose(in_training(model, "later", x), expected)
    check_training(model, report)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_silence_holds_in_other_precisions(dtype):
    x = keras.Input((6,), dtype="float32", name="x")
    y = layers.Dropout(0.5, dtype=dtype, name="dropout")(x)
    y = layers.GaussianNoise(1.0, dtype=dtype, name="noise")(y)
    model = keras.Model(x, layers.Dense(1, name="head")(y))
    freeze(model, "noise")
    x, _ = data(model, 200)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(rk.extract(model, "noise")(x, training=True)),
        keras.ops.convert_to_numpy(rk.extract(model, "noise")(x)),
    )


def rates(model):
    cell = model.get_layer("lstm").cell
    attention = model.get_layer("attention").get_config()["dropout"]
    return [
        *(model.get_layer(name).rate for name in ("dropout", "spatial", "alpha", "later")),
        *(model.get_layer("noise").stddev, cell.dropout, cell.recurrent_dropout, attention),
    ]


def test_frozen_rates_are_zero_in_memory_and_on_file_and_come_back_exactly(tmp_path):
    model = noisy()
    model.get_layer("dropout").rate = 0.1
    before = rates(model)
    report = freeze(model, "lstm")
    again = freeze(model, "lstm")
    assert again.rates == report.rates
    assert [rate for rate in rates(model) if rate] == [0.5]  # of "later", which is not frozen
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert rates(loaded) == rates(model)
    for frozen in (model, rk.clone(model)):
        freeze(frozen, None)
        assert rates(frozen) == before
    # A file knows nothing of what the rates were; what `freeze` returned does.
    for frozen in (loaded, rk.clone(loaded)):
        freeze(frozen, None)
        assert rates(frozen) == [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]
        report.undo(frozen)
        assert rates(frozen) == before
        assert not np.array_equal(*(in_training(frozen, "dropout", data(model)[0]) for _ in "12"))


def test_undo_gives_back_the_flags_and_rates_of_before():
    model = noisy()
    model.get_layer("a").trainable = False
    flags = [v.trainable for v in model.weights]
    before = rates(model)
    report = freeze(model, "lstm", batch_norm="statistics")
    report.undo(model)
    assert [v.trainable for v in model.weights] == flags
    assert rates(model) == before
    with pytest.raises(TrainingError, match="which has other layers"):
        report.undo(ZOO["residual"]())


class Depth(layers.Layer):
    """Stochastic depth as people write it."""

    def __init__(self, survival_prob=0.5, **kwargs):
        super().__init__(**kwargs)
        self.survival_prob = survival_prob

    def call(self, x, training=None):
        if not training:
            return x
        drawn = keras.random.uniform((keras.ops.shape(x)[0], 1))
        return x * keras.ops.floor(self.survival_prob + drawn)

    def compute_output_shape(self, shape):
        return shape


class Shaken(layers.Layer):
    def call(self, x, training=None):
        return x + np.random.normal() if training else x


class Seeded(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.numbers = keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        return keras.random.dropout(x, 0.5, seed=self.numbers) if training else x


class Holding(layers.Layer):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x, training=None):
        return self.inner(x, training=training)


class Twice(layers.Layer):
    def call(self, x, training=None):
        return 2 * x if training else x


class Counting(layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        if training:
            self.calls.assign_add(1.0)
        return x


class Halved(layers.Dropout):
    """Heeds its own rate alone."""


def test_what_is_frozen_and_still_random_is_named():  # surgery F14
    x = y = keras.Input((4,), name="x")
    called = [
        layers.Dense(4, name="a"),
        Depth(name="depth"),
        Shaken(name="shaken"),
        Seeded(name="seeded"),
        Counting(name="counting"),
        Twice(name="twice"),
        Halved(0.5, name="halved"),
        Holding(layers.Dropout(0.5), name="holds_dropout"),
        Holding(Depth(), name="holds_depth"),
        layers.Lambda(lambda x: x / 255, name="scale"),
        layers.Lambda(lambda x: keras.random.dropout(x, 0.5), lambda shape: shape, name="dropped"),
        layers.TimeDistributed(Depth(), name="each"),
    ]
    for layer in called[:-1]:
        y = layer(y)
    y = called[-1](layers.Reshape((2, 2), name="pairs")(y))
    model = keras.Model(x, layers.Dense(1, name="head")(y))
    numbers = np.random.get_state()[1].copy()
    state = values(model.variables)
    report = freeze(model, "each")
    named = ("depth", "shaken", "seeded", "holds_depth", "dropped", "each")
    assert report.random == named
    assert report.otherwise == ("twice",)
    assert report.silenced == ("halved", "holds_dropout")
    assert f"Still random in training: {', '.join(named)}" in str(report)
    for old, new in zip(state, values(model.variables), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(numbers, np.random.get_state()[1])


def test_any_set_of_layers_can_be_frozen():  # surgery, asked for 6
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="one"), layers.Dropout(0.5, name="drop")],
        name="discriminator",
    )
    x = keras.Input((4,), name="x")
    y = inner(layers.Dense(4, name="generator")(x))
    head = layers.Dense(1, name="head")
    model = keras.Model(x, head(y), name="gan")
    for wanted in ("discriminator", inner, ["discriminator/one", "discriminator/drop"]):
        report = freeze(model, layers=wanted)
        assert {path for path, state in states(report).items() if state == "frozen"} == {
            "discriminator/one/kernel",
            "discriminator/one/bias",
        }
        assert report.silenced == ("discriminator/drop",)
        check_training(model, report)
    report = freeze(model, up_to="generator", layers=[head])
    assert all(v.path.startswith("discriminator/one") for v in model.trainable_variables)
    assert inner.get_layer("drop").rate == 0.5
    assert "frozen" not in states(freeze(model, None)).values()
    with pytest.raises(rk.errors.UnknownAddressError, match="'head'"):
        freeze(model, layers="haed")
    with pytest.raises(rk.errors.AddressError, match="which the model does not call"):
        freeze(model, layers=layers.Dense(1))
    with pytest.raises(TrainingError, match="Pass up_to=None to thaw the model"):
        freeze(model)


def test_a_set_of_layers_names_what_is_shared_and_obeys_the_policy():
    model = ZOO["layer_called_twice"]()
    assert freeze(model, layers="shared").shared == ()  # all of its calls are meant
    model = ZOO["residual"]()
    found = states(freeze(model, layers=["bn1", "head"], batch_norm="statistics"))
    assert found["bn1/gamma"] == found["head/kernel"] == "frozen"
    assert found["bn1/moving_mean"] == "statistics"
    assert found["stem/kernel"] == "trainable"
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    embedding = layers.Embedding(9, 4, name="embedding")
    logits = rk.layers.TiedDense(embedding, name="logits")(layers.Dense(4)(embedding(tokens)))
    assert freeze(keras.Model(tokens, logits), layers="logits").shared == ("logits",)


def test_thawing_leaves_frozen_what_enable_lora_froze():  # pipeline W11
    import keras_hub

    backbone = keras_hub.models.BertBackbone(20, 2, 2, 8, 16, max_sequence_length=8)
    pooled = backbone.output["pooled_output"]
    model = keras.Model(backbone.input, layers.Dense(2, name="head")(pooled), name="classifier")
    freeze(model, "token_embedding")  # an earlier call, which LoRA then overrules
    backbone.enable_lora(2)
    trained = {id(v) for v in backbone.trainable_variables}
    assert 0 < len(trained) < 30
    freeze(model, None)
    assert {id(v) for v in model.trainable_variables} == trained | {
        id(v) for v in model.get_layer("head").weights
    }
    freeze(model, list(backbone.output.values()))
    assert len(model.trainable_variables) == 2
    freeze(model, None)
    assert {id(v) for v in backbone.trainable_variables} == trained


def test_what_a_cell_of_a_notebook_shows_is_short():  # pipeline, looks
    report = freeze(keras.applications.MobileNetV2(weights=None), "out_relu")
    assert len(repr(report)) < 300
    assert len(str(report)) > 5000


def test_stochastic_depth_of_keras_applications_is_silenced():
    model = keras.applications.EfficientNetB0(weights=None, input_shape=(32, 32, 3), classes=3)
    report = freeze(model, "block2b_add")
    assert report.silenced == ("block2b_drop",)
    x, _ = data(model, 2)
    bottom = rk.split(model, "block2b_add").bottom
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(bottom(x, training=True)),
        keras.ops.convert_to_numpy(bottom(x)),
    )


def test_augmentation_stays_random_and_is_named():
    report = freeze(ZOO["random_layers"](), "conv")
    assert report.random == ("flip",)
    assert report.silenced == ("noise",)


def test_a_layer_that_training_changes_all_the_same_is_refused():
    x = keras.Input((4,), name="x")
    y = layers.SpectralNormalization(layers.Dense(3), name="normed")(layers.Dense(4, name="a")(x))
    model = keras.Model(x, layers.Dense(1, name="head")(y))
    with pytest.raises(TrainingError, match="Received: 'normed': SpectralNormalization"):
        freeze(model, "normed")
    assert model.get_layer("a").trainable
    freeze(model, "a")


# --- it holds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["frozen", "statistics", "train"])
def test_a_clone_is_frozen_alike(policy):
    model = noisy()
    report = freeze(model, "lstm", batch_norm=policy)
    clone = rk.clone(model)
    assert [v.trainable for v in clone.weights] == [v.trainable for v in model.weights]
    moving = {path for path, state in states(report).items() if state == "statistics"}
    assert len(moving) == (0 if policy == "frozen" else 2)
    before = values(clone.weights)
    clone(data(model)[0], training=True)
    for told, old, new in zip(report.variables, before, values(clone.weights), strict=True):
        assert np.array_equal(old, new) == (told.path not in moving), told.path


@pytest.mark.parametrize("policy", ["frozen", "train"])
@pytest.mark.parametrize("name", ["residual", "nested_three_deep", "masked_lstm"])
def test_a_saved_model_is_frozen_alike(tmp_path, name, policy):
    model = ZOO[name]()
    at = rk.cut_points(model)[-1].at
    freeze(model, at, batch_norm=policy)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    flags = [v.trainable for v in model.weights]
    assert [v.trainable for v in loaded.weights] == flags
    assert not all(flags)


def test_what_a_file_forgets_the_same_call_sets_again(tmp_path):
    model = noisy()
    report = freeze(model, "lstm", batch_norm="statistics")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    forgotten = {v.path for v in loaded.trainable_variables} - {
        v.path for v in model.trainable_variables
    }
    assert {path.split("/")[0] for path in forgotten} == {"bn", "attention"}
    again = freeze(loaded, "lstm", batch_norm="statistics")
    assert [v.state for v in again.variables] == [v.state for v in report.variables]


def test_weights_saved_before_freezing_load_into_the_frozen_model(tmp_path):
    model = noisy()
    model.save_weights(tmp_path / "m.weights.h5")
    frozen = noisy()
    freeze(frozen, "lstm")
    frozen.load_weights(tmp_path / "m.weights.h5")
    for old, new in zip(values(model.weights), values(frozen.weights), strict=True):
        np.testing.assert_array_equal(old, new)


def test_resumed_training_goes_on_frozen_with_the_same_numbers(tmp_path):
    def run(epochs, folder):
        keras.utils.set_random_seed(0)
        model = ZOO["residual"]()
        report = freeze(model, "out0", batch_norm="statistics")  # which no file remembers
        model.compile(keras.optimizers.Adam(0.01), "mse")
        x, y = data(model)
        backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
        model.fit(x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=[backup])
        return report, values(model.weights)

    _, straight = run(4, str(tmp_path / "straight"))
    _, half = run(2, str(tmp_path / "resumed"))
    report, resumed = run(4, str(tmp_path / "resumed"))
    for told, one, two, three in zip(report.variables, straight, half, resumed, strict=True):
        np.testing.assert_array_equal(one, three)
        assert np.array_equal(one, two) == (told.state in ("frozen", "state")), told.path


# --- the report and bad input --------------------------------------------------------------------


def test_the_report_is_data():
    model = ZOO["residual"]()
    report = freeze(model, "out0")
    frame = report.to_frame()
    assert list(frame.columns) == ["address", "path", "shape", "parameters", "state"]
    assert frame["path"].tolist() == [variable.path for variable in model.weights]
    counts = rk.count_params(model)
    assert report.parameters() == {
        "trainable": counts.trainable,
        "frozen": counts.frozen,
        "statistics": 8,
        "state": counts.state - 8,
    }
    assert frame["parameters"].sum() == model.count_params()


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_variable_of_every_model_is_listed_once(name):
    model = ZOO[name]()
    flags = [variable.trainable for variable in model.weights]
    points = rk.cut_points(model, max_width=None)
    report = freeze(model, points[len(points) // 2])
    assert [v.path for v in report.variables] == [v.path for v in model.weights]
    assert [v.state == "trainable" for v in report.variables] == [
        v.trainable for v in model.weights
    ]
    thawed = freeze(model, None)
    assert "frozen" not in states(thawed).values() or name in ("lora_dense",)
    assert len(flags) == len(thawed.variables)


def test_bad_input_changes_nothing():
    model = ZOO["residual"]()
    freeze(model, "out0")
    flags = [v.trainable for v in model.weights]
    with pytest.raises(rk.errors.UnknownAddressError, match="Did you mean 'out1'"):
        freeze(model, "outt1")
    with pytest.raises(TrainingError, match=r"Received: 'freeze'\. Did you mean 'frozen'"):
        freeze(model, "stem", batch_norm="freeze")
    with pytest.raises(rk.errors.AddressError):
        freeze(model, [])
    assert [v.trainable for v in model.weights] == flags


# --- an application at a clean cut ---------------------------------------------------------------


def test_an_application_frozen_at_a_clean_cut():
    at = "conv_pw_6_relu"  # scripts/verify_freezing.py takes them all, of ResNet50
    report, wrong = freeze_and_train("MobileNet", at)
    assert not wrong
    assert report.parameters()["trainable"] > 2_000_000
