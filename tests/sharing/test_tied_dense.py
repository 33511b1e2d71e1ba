"""TiedDense multiplies with the very weight of another layer."""

import keras
import numpy as np
import pytest
from keras import layers

import reusekit as rk
from reusekit.sharing.layers import TiedDense

RNG = np.random.default_rng(0)


def array(*shape):
    return RNG.normal(size=shape).astype("float32")


def built(layer, shape):
    layer.build(shape)
    return layer


SOURCES = {
    "embedding": (layers.Embedding(9, 4), None, (2, 3, 4), "...a,ba->...b", True),
    "embedding as it is": (layers.Embedding(9, 4), None, (2, 3, 9), "...a,ab->...b", False),
    "reversible": (layers.ReversibleEmbedding(9, 4), None, (2, 4), "...a,ba->...b", True),
    "dense": (layers.Dense(4), (None, 6), (2, 3, 4), "...a,ba->...b", True),
    "dense as it is": (layers.Dense(4), (None, 6), (2, 6), "...a,ab->...b", False),
    "einsum": (
        layers.EinsumDense("abc,cde->abde", (None, 2, 5)),
        (None, 3, 4),
        (2, 3, 2, 5),
        "abde,cde->abc",
        True,
    ),
    "einsum as it is": (
        layers.EinsumDense("abc,cde->abde", (None, 2, 5), bias_axes="de"),
        (None, 3, 4),
        (2, 3, 4),
        "abc,cde->abde",
        False,
    ),
    "output in the middle": (
        layers.EinsumDense("abc,bd->adc", (7, None)),
        (None, 3, 4),
        (2, 7, 4),
        "adc,bd->abc",
        True,
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_it_computes_what_the_equation_says(name):
    source, shape, given, equation, transpose = SOURCES[name]
    built(source, shape)
    x = array(*given)
    tied = TiedDense(source, transpose=transpose, bias_initializer="normal", scale=True)
    y = tied(x)
    tied.multiplier.assign(3.0)
    y = keras.ops.convert_to_numpy(tied(x))
    kernel = keras.ops.convert_to_numpy(
        source.embeddings if hasattr(source, "embeddings") else source.kernel
    )
    bias = keras.ops.convert_to_numpy(tied.bias)
    if name == "output in the middle":
        bias = bias[:, None]
    np.testing.assert_allclose(y, 3 * np.einsum(equation, x, kernel) + bias, rtol=1e-4, atol=1e-5)
    assert tied.compute_output_shape(given) == y.shape


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_convolution_of_size_one_is_a_matrix(rank):
    kind = (layers.Conv1D, layers.Conv2D, layers.Conv3D)[rank - 1]
    source = built(kind(4, 1), (None, *[5] * rank, 6))
    x = array(2, *[5] * rank, 4)
    kernel = keras.ops.convert_to_numpy(source.kernel).reshape(6, 4)
    np.testing.assert_allclose(TiedDense(source)(x), x @ kernel.T, rtol=1e-4, atol=1e-5)


def test_gradients_of_both_uses_reach_the_one_variable():
    tokens = keras.Input((3,), dtype="int32")
    embedding = layers.Embedding(8, 4, name="embedding")
    model = keras.Model(tokens, TiedDense(embedding, use_bias=False)(embedding(tokens)))
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    x = np.array([[0, 1, 2]])
    before = keras.ops.convert_to_numpy(embedding.embeddings)
    target = array(1, 3, 8)
    model.train_on_batch(x, target)
    step = before - keras.ops.convert_to_numpy(embedding.embeddings)
    hidden = before[x[0]]
    error = 2 * (hidden @ before.T - target[0]) / target.size
    expected = error.T @ hidden  # as an output
    np.add.at(expected, x[0], error @ before)  # as an input
    np.testing.assert_allclose(step, expected, rtol=1e-4, atol=1e-6)
    # Adam's two slots for the one weight, and its counters.
    model.compile("adam", loss="mse")
    model.train_on_batch(x, target)
    assert sum(tuple(v.shape) == (8, 4) for v in model.optimizer.variables) == 2


def test_it_may_be_built_before_its_source():
    embedding = layers.Embedding(8, 4)
    assert TiedDense(embedding)(array(2, 4)).shape == (2, 8)
    encoder = layers.Dense(4)
    assert TiedDense(encoder, units=6)(array(2, 4)).shape == (2, 6)
    assert encoder.kernel.shape == (6, 4)
    with pytest.raises(rk.errors.TieError, match="pass units="):
        TiedDense(layers.Dense(4))(array(2, 4))


@keras.saving.register_keras_serializable("reusekit_tests")
class Autoencoder(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = layers.Dense(3, name="encoder")
        self.decoder = TiedDense(self.encoder, name="decoder")

    def call(self, x):
        return self.decoder(self.encoder(x))


def test_it_works_in_a_sequential_and_in_a_subclass(tmp_path):
    encoder = layers.Dense(3, name="encoder")
    stack = keras.Sequential([keras.Input((5,)), encoder, TiedDense(encoder)])
    assert stack.output_shape == (None, 5)
    assert stack.count_params() == 5 * 3 + 3 + 5

    model = Autoencoder()
    assert model(array(2, 5)).shape == (2, 5)
    assert model.count_params() == stack.count_params()
    for each in (stack, model):
        each.save(tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras")
        assert rk.tied_weights(loaded)[0].owners[0] == "encoder"
        x = array(2, 5)
        np.testing.assert_allclose(loaded(x), each(x), rtol=1e-5, atol=1e-6)


def test_training_goes_on_where_it_was_saved(tmp_path):
    policy = keras.DTypePolicy("mixed_bfloat16")
    tokens = keras.Input((3,), dtype="int32")
    embedding = layers.Embedding(8, 4, dtype=policy)
    model = keras.Model(tokens, TiedDense(embedding, scale=True, dtype=policy)(embedding(tokens)))
    model.compile("adam", "mse")
    x, y = np.array([[0, 1, 2]]), array(1, 3, 8)
    model.train_on_batch(x, y)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for each in (model, loaded):
        each.train_on_batch(x, y)
    for one, other in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_mixed_precision_computes_in_half_and_keeps_the_weight_whole():
    policy = keras.DTypePolicy("mixed_bfloat16")
    embedding = layers.Embedding(8, 4, dtype=policy)
    tied = TiedDense(embedding, dtype=policy)
    y = tied(embedding(np.array([[1, 2]])))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert embedding.embeddings.dtype == tied.bias.dtype == "float32"


# What has eight features and gives four, and the shape of what comes back to it.
BUILDERS = {
    "Embedding": (lambda: built(layers.Embedding(8, 4), None), (2, 4)),
    "ReversibleEmbedding": (lambda: built(layers.ReversibleEmbedding(8, 4), None), (2, 4)),
    "Dense": (lambda: built(layers.Dense(4), (None, 8)), (2, 4)),
    "EinsumDense": (
        lambda: built(layers.EinsumDense("abc,cde->abde", (None, 2, 2)), (None, 3, 8)),
        (2, 3, 2, 2),
    ),
    "Conv2D": (lambda: built(layers.Conv2D(4, 1), (None, 3, 3, 8)), (2, 3, 3, 4)),
}


def with_lora(source):
    source.enable_lora(2)
    part = source.lora_embeddings_b if hasattr(source, "embeddings") else source.lora_kernel_b
    part.assign(array(*part.shape))


def outputs_of_all_words(source):
    return keras.ops.convert_to_numpy(source(np.arange(8)))


@pytest.mark.parametrize("kind", BUILDERS)
def test_lora_on_the_source_counts_here_too(kind):
    make, shape = BUILDERS[kind]
    source, x = make(), array(*shape)
    tied = TiedDense(source, use_bias=False)
    tied(x)
    with_lora(source)
    weight = source.embeddings if hasattr(source, "embeddings") else source.kernel
    weight = keras.ops.convert_to_numpy(weight).reshape(8, 4)
    expected = x.reshape(-1, 4) @ weight.T
    np.testing.assert_allclose(np.reshape(tied(x), (-1, 8)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["Embedding", "ReversibleEmbedding"])
def test_a_quantised_embedding_is_what_it_gives_for_each_word(kind, mode):
    source, x = BUILDERS[kind][0](), array(2, 4)
    tied = TiedDense(source, use_bias=False)
    before = keras.ops.convert_to_numpy(tied(x))
    source.quantize(mode)
    after = keras.ops.convert_to_numpy(tied(x))
    most = np.abs(before).max() * (0.02 if mode == "int8" else 0.3)
    assert 0 < np.abs(after - before).max() < most
    np.testing.assert_allclose(after, x @ outputs_of_all_words(source).T, rtol=1e-4, atol=1e-5)
    with_lora(source)
    np.testing.assert_allclose(tied(x), x @ outputs_of_all_words(source).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "mode"), [("Dense", "int8"), ("Dense", "float8"), ("EinsumDense", "float8")]
)
def test_a_quantised_dense_layer_is_scaled_back(kind, mode):
    make, shape = BUILDERS[kind]
    source, x = make(), array(*shape)
    tied = TiedDense(source, use_bias=False)
    before = keras.ops.convert_to_numpy(tied(x))
    source.quantize(mode)
    after = keras.ops.convert_to_numpy(tied(x))
    most = 0.02 * np.abs(before).max() if mode == "int8" else 0
    assert np.abs(after - before).max() <= most


@pytest.mark.parametrize(
    ("kind", "mode", "lora"),
    [("Dense", "int4", False), ("Dense", "int8", True), ("EinsumDense", "int8", False)],
)
def test_where_quantisation_leaves_no_matrix_it_is_refused(kind, mode, lora):
    make, shape = BUILDERS[kind]
    source, x = make(), array(*shape)
    tied = TiedDense(source)
    tied(x)
    source.quantize(mode)
    if lora:
        with_lora(source)
    with pytest.raises(rk.errors.TieError, match=mode):
        tied(x)


def test_a_quantised_model_is_saved_and_loaded_with_its_tie(tmp_path):
    tokens = keras.Input((3,), dtype="int32")
    embedding = layers.Embedding(8, 4, name="embedding")
    model = keras.Model(tokens, TiedDense(embedding, name="logits")(embedding(tokens)))
    model.quantize("int8", filters="embedding")
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.get_layer("logits").source is loaded.get_layer("embedding")
    assert loaded.count_params() == model.count_params()
    x = np.array([[1, 2, 3]])
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TiedDense(layers.Dropout(0.1)), "Received: Dropout"),
        (lambda: TiedDense("embedding"), "source to be a Keras layer"),
        (lambda: TiedDense(layers.Conv2D(4, 3)), r"kernel_size=\(3, 3\)"),
        (lambda: TiedDense(layers.Conv2D(4, 1, groups=2)), "groups=2"),
        (lambda: TiedDense(layers.Conv2D(4, 1, data_format="channels_first")), "channels_first"),
        (lambda: TiedDense(layers.Embedding(8, 4))(array(2, 5)), r"Received: \(2, 5\)"),
        (lambda: TiedDense(layers.Embedding(8, 4), units=9)(array(2, 4)), "units=8"),
    ],
)
def test_bad_input_is_one_clear_error(make, said):
    with pytest.raises(rk.errors.TieError, match=said):
        make()
