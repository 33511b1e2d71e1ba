"""Explanations, beside the same computed by hand with a tape, on nested models and odd heads."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import reusekit as rk
from reusekit.errors import AddressError, SurgeryError

IMAGES = np.random.default_rng(1).normal(size=(5, 8, 8, 3)).astype("float32")


def inner() -> keras.Model:
    x = keras.Input((8, 8, 3), name="pixels")
    y = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    z = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 1, name="conv")(y))
    return keras.Model(x, layers.Add(name="sum")([y, z]), name="backbone")


def nested(units: int = 3, activation: str | None = "softmax") -> keras.Model:
    """A backbone as a layer, called with `training=False`, and a head of any kind."""
    x = keras.Input((8, 8, 3), name="x")
    y = layers.GlobalAveragePooling2D(name="pool")(inner()(x, training=False))
    y = layers.Dropout(0.5, name="drop")(y)
    head = layers.Dense(units, activation, name="head", bias_initializer="random_normal")
    return keras.Model(x, head(y), name="whole")


def by_hand(model: keras.Model, of: np.ndarray) -> np.ndarray:
    """Grad-CAM at `backbone/conv`, layer by layer."""
    layer = model.get_layer("backbone").get_layer
    stem = layer("stem")(IMAGES)
    conv = layer("conv")(stem)
    with tf.GradientTape() as tape:
        tape.watch(conv)
        pooled = tf.reduce_mean(stem + layer("norm")(conv, training=False), (1, 2))
        logits = pooled @ model.get_layer("head").kernel + model.get_layer("head").bias
        score = tf.reduce_sum(tf.one_hot(of, logits.shape[-1]) * logits)
    weights = tf.reduce_mean(tape.gradient(score, conv), (1, 2), keepdims=True)
    return np.maximum(np.sum(weights * conv, axis=-1), 0)


@pytest.mark.parametrize(("units", "activation"), [(3, "softmax"), (4, "sigmoid"), (2, None)])
def test_grad_cam_inside_a_nested_model_is_what_a_tape_gives(units, activation):
    model = nested(units, activation)
    found = rk.explain(model, IMAGES, "backbone/conv", batch_size=2)
    outputs = model.predict(IMAGES, verbose=0)
    np.testing.assert_array_equal(found.of, outputs.argmax(-1))
    np.testing.assert_allclose(found.outputs, outputs, rtol=1e-5, atol=1e-6)
    assert found.values.max() > 0
    np.testing.assert_allclose(found.values, by_hand(model, found.of), rtol=1e-4, atol=1e-6)
    chosen = np.arange(5) % units
    found = rk.explain(model, IMAGES, "backbone/conv", of=chosen)
    np.testing.assert_allclose(found.values, by_hand(model, chosen), rtol=1e-4, atol=1e-6)


def test_each_call_of_a_layer_has_an_explanation_of_its_own():
    x = keras.Input((3,), name="x")
    twice = layers.Dense(3, use_bias=False, name="twice")
    once = twice(x)
    model = keras.Model(x, layers.Dense(2, name="head")(twice(once)), name="m")
    inputs = IMAGES[:, 0, 0]
    kernel, head = twice.kernel.numpy(), model.get_layer("head").kernel.numpy()
    for at, value, gradient in (
        ("x", inputs, kernel @ kernel @ head),
        ("twice@0", inputs @ kernel, kernel @ head),
        ("twice@1", inputs @ kernel @ kernel, head),
    ):
        found = rk.explain(model, inputs, at, "gradient", of=1)
        np.testing.assert_allclose(found.values, value * gradient[:, 1], rtol=1e-4, atol=1e-6)


def test_tokens_are_explained_at_their_embedding_where_filling_counts_nothing():
    x = keras.Input((6,), dtype="int32", name="tokens")
    y = layers.Embedding(9, 4, mask_zero=True, name="embedding")(x)
    y = layers.GlobalAveragePooling1D(name="pool")(y)
    model = keras.Model(x, layers.Dense(2, "softmax", name="head")(y), name="texts")
    tokens = np.array([[1, 2, 3, 0, 0, 0], [8, 7, 6, 5, 4, 3]])
    found = rk.explain(model, tokens, "embedding", "gradient", of=[0, 1]).values
    kernel = model.get_layer("head").kernel.numpy()[:, [0, 1]].T
    rows = model.get_layer("embedding").embeddings.numpy()[tokens]
    counts = (tokens > 0).sum(1)[:, None]
    expected = np.where(tokens > 0, np.einsum("btc,bc->bt", rows, kernel) / counts, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(AddressError, match=r"such as 'embedding'\. Received: 'tokens' of int32"):
        rk.explain(model, tokens, "tokens", "gradient")


def test_channels_are_where_the_layer_says_and_never_moved_in_texts(monkeypatch):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    rows = np.random.default_rng(0).normal(size=(5, 6, 3)).astype("float32")
    x = keras.Input((6, 3), name="x")
    y = layers.LayerNormalization(name="norm")(layers.Dense(4, name="words")(x))
    z = layers.ReLU(name="act")(layers.Conv1D(2, 3, data_format="channels_last", name="last")(y))
    pooled = layers.GlobalAveragePooling1D("channels_last", name="pool")(z)
    model = keras.Model(x, layers.Dense(2, name="head")(pooled), name="texts")
    for at, positions in (("words", 6), ("norm", 6), ("act", 4)):
        assert rk.explain(model, rows, at, "gradient").values.shape == (5, positions)
    x = keras.Input((3, 8, 8), name="x")
    y = layers.ReLU(name="act")(layers.Conv2D(4, 3, data_format="channels_first", name="conv")(x))
    pooled = layers.GlobalAveragePooling2D("channels_first", name="pool")(y)
    model = keras.Model(x, layers.Dense(2, name="head")(pooled), name="first")
    assert rk.explain(model, IMAGES.transpose(0, 3, 1, 2), "act").values.shape == (5, 6, 6)


def test_a_sure_prediction_is_explained_though_its_gradient_vanishes():
    model = nested()
    head = model.get_layer("head")
    head.bias.assign([60.0, 0.0, 0.0])
    found = rk.explain(model, IMAGES, "backbone/sum")
    assert (found.outputs[:, 0] == 1).all()
    assert found.values.max() > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"at": "pool"}, "axes of positions .* such as 'backbone/sum'. Received: 'pool'"),
        ({"at": "backbone/cnv"}, "Did you mean 'backbone/conv'"),
        ({"at": ["pool", "drop"]}, "address of one tensor"),
        ({"of": 3}, "place below 3"),
        ({"of": [0, 1]}, "one for each of 5 inputs"),
        ({"inputs": IMAGES[:, :, :, :1]}, "takes, of shape"),
        ({"inputs": IMAGES[:0]}, "length above 0"),
        ({"method": "grad"}, "Did you mean 'grad"),
    ],
)
def test_what_cannot_be_explained_is_refused(arguments, said):
    with pytest.raises(SurgeryError, match=said):
        rk.explain(**{"model": nested(), "inputs": IMAGES, "at": "backbone/conv", **arguments})
