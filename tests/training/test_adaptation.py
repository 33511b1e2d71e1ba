"""Adaptation by few weights: what is trained, by role; counted, kept, undone and merged."""

import keras
import numpy as np
import pytest
from keras import layers
from zoo import ZOO

import reusekit as rk
from reusekit.errors import TrainingError
from reusekit.graph import read
from reusekit.training import adapt
from reusekit.training.roles import normalises, roles_of


def mixed_model(**dense):
    """A convolution, normalisation, attention and dense layers, with the roles that they have."""
    keras.utils.set_random_seed(4)
    x = keras.Input((6, 4), name="x")
    y = layers.Conv1D(8, 3, padding="same", name="conv")(x)
    y = layers.BatchNormalization(name="bn")(y)
    z = layers.MultiHeadAttention(2, 4, dropout=0.5, name="attention")(y, y)
    y = layers.LayerNormalization(name="norm")(layers.Add(name="add")([y, z]))
    z = layers.Dense(8, activation="gelu", name="mlp", **dense)(y)
    y = layers.Add(name="block_out")([y, z])
    y = layers.Dense(8, name="query")(y)
    y = layers.Attention(name="scores")([y, y])
    y = layers.GlobalAveragePooling1D(name="pool")(y)
    return keras.Model(x, layers.Dense(2, name="head")(y), name="mixed")


def data(model, examples=8):
    numbers = np.random.default_rng(0)
    shape = (examples, *model.input_shape[1:])
    return numbers.normal(size=shape).astype("float32"), numbers.normal(size=(examples, 2))


def train(model, steps=2):
    model.compile(keras.optimizers.Adam(0.02), "mse", run_eagerly=True)
    for _ in range(steps):
        model.train_on_batch(*data(model))


def outputs(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


def values(model):
    """The values of a model's weights, without those of LoRA."""
    return {v.path: np.array(v) for v in model.weights if "lora" not in v.path}


def trained(model):
    return {v.path for v in model.trainable_variables}


def moved(before, model):
    after = values(model)
    return {path for path in before if not np.array_equal(before[path], after[path])}


def flags(model):
    variables = [(v.path, v.trainable) for v in model.weights]
    return variables, [layer.trainable for layer in model._flatten_layers()]


def test_layers_have_roles():
    model = mixed_model()
    graph = read(model)
    found = roles_of(graph, graph.calls)
    parts = {id(part): part for part in model._flatten_layers()}
    assert {parts[key].name: role for key, role in found.items()} == {
        "conv": "convolution",
        **dict.fromkeys(("query", "key", "value", "attention_output"), "attention"),
        **dict.fromkeys(("mlp", "head"), "mlp"),
    }


@pytest.mark.parametrize(
    ("adaptation", "options", "layers_of_it"),
    [
        ("lora:2", {}, {"conv", "attention", "mlp", "query"}),
        ("lora:3", {"targets": "attention"}, {"attention", "query"}),
        ("lora:2", {"targets": ["mlp", "convolution"], "layers": "mlp"}, {"conv"}),
        ("lora:2", {"from_": "add"}, {"mlp", "query"}),
        ("norms", {}, {"bn", "norm"}),
        ("biases", {"from_": "conv"}, {"bn", "attention", "norm", "mlp", "query"}),
    ],
)
def test_only_what_was_asked_for_is_trained_counted_merged_and_undone(
    adaptation, options, layers_of_it
):
    model, up_to = mixed_model(), "scores"
    x, _ = data(model)
    before, had, out = values(model), flags(model), outputs(model, x)
    record = adapt(model, adaptation, up_to=up_to, **options)
    np.testing.assert_array_equal(outputs(model, x), out)  # at first nothing changes
    counts = rk.count_params(model)
    assert counts.trainable == record.parameters()["trainable"]
    assert counts.trainable == sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert {path.split("/")[0] for path in trained(model)} == layers_of_it | {"head"}
    train(model)
    lora = adaptation.startswith("lora")
    head = {"head/kernel", "head/bias"}
    expected = head if lora else trained(model)
    assert moved(before, model) <= expected
    assert moved(before, model) >= head
    assert not any("moving" in path for path in moved(before, model))
    if adaptation == "norms":
        assert {"bn/gamma", "bn/beta", "norm/gamma", "norm/beta"} <= moved(before, model)

    twin = rk.clone(model, weights="copy")
    adapted = outputs(model, x)
    np.testing.assert_array_equal(outputs(twin, x), adapted)
    assert trained(twin) == trained(model)
    record.merge(twin, x)
    np.testing.assert_allclose(outputs(twin, x), adapted, rtol=1e-5, atol=1e-5)
    record.undo(model)
    for one in (model, twin):
        assert flags(one) == had
        assert [v.path for v in one.weights] == [v.path for v in mixed_model().weights]
    if lora:
        assert moved(before, model) <= head  # the kernels are those from before
        assert np.abs(adapted - outputs(model, x)).max() > 1e-4


def test_dropout_is_silent_and_comes_back():
    model = mixed_model()
    record = adapt(model, "biases")
    assert record.silenced == ("attention",)
    record.undo(model)
    assert model.get_layer("attention").dropout == 0.5


def test_a_saved_model_gives_the_same_and_is_adapted_again(tmp_path):
    model = mixed_model()
    x, _ = data(model)
    record = adapt(model, "lora:2", from_="bn")
    train(model)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(outputs(loaded, x), outputs(model, x), rtol=1e-5, atol=1e-6)
    again = adapt(loaded, "lora:2", from_="bn")
    assert again.lora == record.lora  # which some layers have already
    assert trained(loaded) == trained(model)
    with pytest.raises(TrainingError, match=r"of rank 1 for LoRA\. Received: .*, LoRA of rank 2"):
        adapt(loaded, "lora:1", from_="bn")
    again.merge(loaded)
    assert not any("lora" in v.path for v in loaded.weights)


def test_parts_rates_and_freezing_of_an_adapted_model():
    model = mixed_model()
    adapt(model, "lora:2", from_="add", up_to="scores")
    split = rk.split(model, "block_out")
    split.verify()
    assert {v.path.split("/")[0] for v in split.top.trainable_variables} == {"query", "head"}
    assert rk.count_params(split.bottom).trainable == 2 * (8 + 8)
    rates = rk.layerwise_optimizer(model, keras.optimizers.SGD(0.1), decay=0.5).rates
    rated = {rate.path for rate in rates}
    assert {"mlp/lora_kernel_a", "query/lora_kernel_b"} <= rated
    assert "mlp/kernel" not in rated
    model.compile(rk.layerwise_optimizer(model, "sgd"), "mse")
    rk.freeze(model, up_to="block_out")  # the rest goes on as it was adapted
    assert {path.split("/")[0] for path in trained(model)} == {"query", "head"}
    assert "query/kernel" not in trained(model)
    before = model.predict(data(model)[0], verbose=0)
    model = rk.replace(model, "head", layers.Identity(name="through"))
    assert model.predict(data(model)[0], verbose=0).shape != before.shape


def test_a_layer_that_is_used_before_the_cut_too_stays_as_it_is():
    x = keras.Input((4,), name="x")
    twice, own = layers.Dense(4, name="twice"), layers.Dense(4, name="own")
    y = layers.ReLU(name="cut")(twice(x))
    model = keras.Model(x, own(twice(y)), name="shared")
    adapt(model, "lora:2", from_="cut")
    assert (twice.lora_enabled, own.lora_enabled) == (False, True)
    called_twice = keras.Model(x, twice(layers.ReLU()(twice(x))), name="often")
    record = adapt(called_twice, "lora:2")
    twice.lora_kernel_b.assign(np.ones((2, 4)))
    record.merge(called_twice)  # proved over both calls


def test_a_tied_embedding_adapts_in_both_its_places():
    x = keras.Input((3,), dtype="int32", name="tokens")
    embedding = layers.Embedding(7, 4, name="embedding")
    y = layers.Dense(4, name="hidden")(embedding(x))
    model = keras.Model(x, rk.layers.TiedDense(embedding, name="tied")(y), name="language")
    record = adapt(model, "lora:2", targets=["embedding", "mlp"])
    assert [one.address for one in record.lora] == ["embedding", "hidden"]
    embedding.lora_embeddings_b.assign(np.ones((2, 4)))
    tokens = np.arange(6).reshape(2, 3)
    before = model.predict(tokens, verbose=0)
    record.merge(model, tokens)
    np.testing.assert_allclose(model.predict(tokens, verbose=0), before, rtol=1e-5, atol=1e-6)


def test_what_was_compiled_before_is_compiled_anew():
    x = np.ones((2, 4), "float32")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="dense")])
    before = model.predict_on_batch(x)
    record = adapt(model, "lora:2")
    model.get_layer("dense").lora_kernel_b.assign(np.ones((2, 3)))
    adapted = model.predict_on_batch(x)
    assert np.abs(adapted - before).max() > 1e-3
    record.undo(model)
    np.testing.assert_array_equal(model.predict_on_batch(x), before)


def test_kernels_are_merged_in_double_precision_under_mixed_precision():
    x = keras.Input((4,), name="x")
    dense = layers.Dense(4, dtype="mixed_bfloat16", name="dense")
    model = keras.Model(x, dense(x), name="half")
    record = adapt(model, "lora:1")
    dense.lora_kernel_b.assign(np.full((1, 4), 1 / 3))
    expected = np.array(dense.kernel) * 0 + np.array(dense._kernel)
    expected = expected + np.array(dense.lora_kernel_a) @ np.array(dense.lora_kernel_b)
    record.merge(model)
    np.testing.assert_allclose(np.array(dense.kernel), expected, rtol=1e-6)


REFUSED = {
    "unknown": (mixed_model, "lor:8", {}, r"Expected lora:RANK, .*'lor:8'. Did you mean 'lora:8'"),
    "no rank": (mixed_model, "lora:0", {}, "Expected lora:RANK"),
    "rank": (mixed_model, "lora:3", {}, "rank of at most 2, as of the kernel of 'head'"),
    "targets": (mixed_model, "norms", {"targets": "mlp"}, "targets with LoRA alone"),
    "nothing there": (
        ZOO["residual"],
        "lora:1",
        {"targets": "attention"},
        r"\(attention\) in the part of 'residual' to adapt. Received: 3 convolution, 1 mlp",
    ),
    "no norms": (ZOO["linear"], "norms", {}, "Expected normalisation .* Received: 2 mlp"),
    "quantised": (ZOO["quantised_dense"], "lora:1", {}, "floating point .*'wide', one in int8"),
    "constrained": (
        lambda: mixed_model(kernel_constraint="non_neg"),
        "lora:2",
        {"from_": "add", "up_to": "scores"},
        "without a constraint for LoRA. Received: 'mlp'",
    ),
    "has some": (ZOO["lora_dense"], "lora:1", {}, "or of rank 1 for LoRA. Received: 'wide'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_adapted_is_refused_before_anything_changes(case):
    build, adaptation, options, message = REFUSED[case]
    model = build()
    before = flags(model)
    with pytest.raises(TrainingError, match=message):
        adapt(model, adaptation, **options)
    assert flags(model) == before


def test_a_weight_of_two_owners_is_refused():
    x = keras.Input((4,), name="x")
    dense = layers.Dense(4, name="dense")
    y = keras.ops.matmul(dense(x), dense.kernel)
    with pytest.raises(TrainingError, match="'dense', whose weight is used elsewhere"):
        adapt(keras.Model(x, y, name="given"), "lora:1")


def test_a_record_is_of_one_model_alone():
    record = adapt(mixed_model(), "lora:2", from_="add", up_to="scores")
    for other in (mixed_model(), ZOO["linear"]()):
        with pytest.raises(TrainingError, match="Expected the model that was frozen"):
            record.merge(other)


class OwnAttention(layers.Layer):
    """Attention as users and KerasHub write it."""

    def build(self, shape):
        width = shape[-1]
        for name in ("one", "two", "three", "four"):
            setattr(self, f"{name}_dense", layers.Dense(width, name=name))
            getattr(self, f"{name}_dense").build(shape)

    def call(self, x):
        q, k, v = self.one_dense(x), self.two_dense(x), self.three_dense(x)
        scores = keras.ops.softmax(keras.ops.matmul(q, keras.ops.transpose(k, (0, 2, 1))))
        return self.four_dense(keras.ops.matmul(scores, v))


class OwnBlock(layers.Layer):
    """A block that holds attention, and a mixture whose gate is no attention."""

    def build(self, shape):
        self.attend, self.gate = OwnAttention(name="attend"), layers.Dense(shape[-1], name="gate")
        self.wide, self.scale = layers.Dense(shape[-1], name="wide"), OwnScale(name="scale")
        for part in (self.attend, self.gate, self.wide, self.scale):
            part.build(shape)

    def call(self, x):
        x = x + self.scale(self.attend(x))
        return x + keras.ops.softmax(self.gate(x)) * self.wide(x)


class OwnScale(layers.Layer):
    """Scales of channels, which normalise nothing, or after a root mean square."""

    def __init__(self, normalised=False, **kwargs):
        super().__init__(**kwargs)
        self.normalised = normalised

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x):
        root = keras.ops.sqrt(keras.ops.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return x / root * self.scale if self.normalised else x * self.scale


def test_attention_and_normalisation_are_known_by_what_they_do():
    x = keras.Input((5, 4), name="x")
    y = OwnScale(normalised=True, name="rms")(OwnBlock(name="block")(x))
    q, k, v = (layers.Dense(4, name=name)(y) for name in "qkv")
    scores = keras.ops.softmax(keras.ops.einsum("bij,bkj->bik", q, k))
    y = layers.Dense(3, name="after")(keras.ops.matmul(layers.Dropout(0.1)(scores), v))
    model = keras.Model(x, layers.Softmax()(y), name="own")
    graph = read(model)
    found, parts = roles_of(graph, graph.calls), model._flatten_layers()
    attending = {part.name for part in parts if found.get(id(part)) == "attention"}
    assert attending == {"one", "two", "three", "four", *"qkv"}
    others = [part.name for part in parts if found.get(id(part)) == "mlp"]
    assert sorted(others) == ["after", "gate", "wide"]
    assert [part.name for part in parts if normalises(part)] == ["rms"]
