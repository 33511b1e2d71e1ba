"""One bottom looks at two inputs; the head compares."""

import keras
import numpy as np
import pytest
from keras import layers

import reusekit as rk
from reusekit import heads


def bottom() -> keras.Model:
    x = keras.Input((6, 6, 2), name="x")
    y = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    y = layers.BatchNormalization(name="bn")(y)
    return keras.Model(x, layers.ReLU(name="relu")(y), name="bottom")


def pairs() -> list[np.ndarray]:
    return list(np.random.default_rng(0).normal(size=(2, 5, 6, 6, 2)).astype("float32"))


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


BY_NUMBERS = {
    "difference": lambda a, b: np.abs(a - b),
    "product": lambda a, b: a * b,
    "concatenated": lambda a, b: np.concatenate([a, b], axis=1),
    "cosine": lambda a, b: cosine(a, b)[:, None],
    "distance": lambda a, b: ((a - b) ** 2).sum(axis=1, keepdims=True),
}


@pytest.mark.parametrize("join", BY_NUMBERS)
def test_compares_what_the_one_bottom_makes_of_both(join):
    below = bottom()
    model = rk.attach(below, heads.Siamese(join, logits=True))
    left, right = (np.asarray(below(x)).mean(axis=(1, 2)) for x in pairs())
    kernel, bias = model.get_layer("head_logit").get_weights()
    expected = BY_NUMBERS[join](left, right) @ kernel + bias
    np.testing.assert_allclose(model(pairs()), expected, rtol=1e-4, atol=1e-5)
    assert rk.count_params(model).total == rk.count_params(below).total + kernel.size + 1


def test_both_calls_have_an_address_and_one_weight():
    below = bottom()
    model = rk.attach(below, heads.Siamese(pooling="attention"))
    assert model.get_layer("conv") is below.get_layer("conv")
    assert len([layer for layer in model.layers if layer.name == "head_key"]) == 1
    parts = rk.split(model, ["conv@0", "conv@1"])
    assert parts.verify(pairs()).exact
    assert rk.extract(model, "head_pooling@1").output_shape == (None, 4)


def test_what_is_standardized_is_each_of_the_two():
    left, right = features = list(np.random.default_rng(0).normal(size=(2, 50, 3)) * 7 + 3)
    head = heads.Siamese("distance", standardize=np.concatenate(features)).build((3,))
    distance = rk.extract(head, "head_distance")(features)
    deviation = np.concatenate(features).std(axis=0)
    expected = (((left - right) / deviation) ** 2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(distance, expected, rtol=1e-4)


def test_a_bottom_of_several_inputs_takes_a_pair_of_each():
    inputs = {name: keras.Input((3,), name=name) for name in ("a", "b")}
    below = keras.Model(
        inputs, layers.Dense(2, name="mix")(layers.Add(name="sum")([*inputs.values()]))
    )
    model = rk.attach(below, heads.Siamese("product", logits=True))
    one, two = (
        {name: np.full((4, 3), value * n) for n, name in enumerate("ab", 1)} for value in (1, 2)
    )
    kernel, bias = model.get_layer("head_logit").get_weights()
    expected = np.asarray(below(one)) * np.asarray(below(two)) @ kernel + bias
    np.testing.assert_allclose(model([one, two]), expected, rtol=1e-5)


@pytest.mark.parametrize("join", ["difference", "product", "cosine", "distance"])
def test_the_order_of_the_two_makes_no_difference(join):
    model = rk.attach(bottom(), heads.Siamese(join))
    left, right = pairs()
    np.testing.assert_allclose(model([left, right]), model([right, left]), rtol=1e-5)


def test_trains_on_equal_inputs():
    """Where the distance is zero, a square root would have no slope."""
    head = heads.Siamese("distance")
    model = rk.attach(bottom(), head)
    model.compile("adam", **head.compile_args)
    left, _ = pairs()
    model.fit([left, left], np.ones(5), epochs=2, verbose=0)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(rk.errors.HeadError, match="Did you mean 'cosine'"):
        heads.Siamese("cosinus")
    with pytest.raises(rk.errors.HeadError, match=r"join='cosine' gives one number.*units=8"):
        heads.Siamese("cosine", units=8)
    below = rk.extract(bottom(), ["conv", "relu"])
    with pytest.raises(rk.errors.HeadError, match=r"for a siamese head\. Received: 2: rk\.extract"):
        rk.attach(below, heads.Siamese())
