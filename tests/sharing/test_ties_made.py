"""Two weights of a model become one."""

import keras
import numpy as np
import pytest
from keras import layers
from tied_models import TiedHead

import reusekit as rk
from reusekit.graph import read
from reusekit.surgery.certificate import random_inputs


def language_model():
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    hidden = layers.Embedding(30, 4, name="embedding")(tokens)
    hidden = layers.Dense(4, name="hidden")(hidden)
    logits = layers.Dense(30, activation="softmax", bias_initializer="normal", name="logits")
    return keras.Model(tokens, logits(hidden), name="lm")


def maps():
    x = keras.Input((8, 8, 4), name="x")
    y = layers.Conv2D(4, 1, name="c1")(x)
    y = layers.Conv2D(4, 1, name="c2", activation="relu")(y)
    y = layers.Dense(4, name="d")(y)
    equation = layers.EinsumDense("abcd,de->abce", (None, None, 4), bias_axes="e", name="e")
    return keras.Model(x, equation(y), name="maps")


def value(weight):
    return keras.ops.convert_to_numpy(weight)


@pytest.mark.parametrize("keep", ["a", "b"])
@pytest.mark.parametrize("names", [("embedding", "logits"), ("logits/kernel", "embedding")])
def test_an_output_is_tied_to_the_embedding(names, keep):
    model = language_model()
    before = [value(v) for v in model.weights]
    tied = rk.tie(model, *names, transform="transpose", keep=keep)
    assert tied.count_params() == model.count_params() - 30 * 4
    assert rk.tied_weights(tied)[0].owners == ("embedding", "logits")
    kept = names["ab".index(keep)]
    expected = value(model.get_layer("embedding").embeddings)
    if kept.startswith("logits"):
        expected = value(model.get_layer("logits").kernel).T
    np.testing.assert_array_equal(tied.get_layer("embedding").embeddings, expected)
    # Where the other layer had that value too, nothing else has changed.
    model.get_layer("embedding").embeddings.assign(expected)
    model.get_layer("logits").kernel.assign(expected.T)
    x = random_inputs(read(model))
    np.testing.assert_allclose(tied(x), model(x), rtol=1e-5, atol=1e-6)
    for now, then in zip(model.weights, before, strict=True):
        if now.shape not in {(30, 4), (4, 30)}:
            np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("keep", ["a", "b"])
@pytest.mark.parametrize(
    ("a", "b", "transform"),
    [
        ("c1", "c2", None),
        ("c1", "d", "transpose"),
        ("d", "c1", None),
        ("e", "d", None),
        ("d", "e", "transpose"),
    ],
)
def test_matrices_of_any_layers(a, b, transform, keep):
    model = maps()
    tied = rk.tie(model, a, b, transform, keep)
    assert tied.count_params() == model.count_params() - 16
    assert set(rk.tied_weights(tied)[0].owners) == {a, b}
    kept, other = (a, b) if keep == "a" else (b, a)
    matrix = value(model.get_layer(kept).kernel).reshape(4, 4)
    target = model.get_layer(other).kernel
    target.assign((matrix.T if transform else matrix).reshape(target.shape))
    x = random_inputs(read(model))
    np.testing.assert_allclose(tied(x), model(x), rtol=1e-4, atol=1e-5)


def test_layers_with_one_weight_and_equal_configurations_become_one():
    a, b = (keras.Input((3,), dtype="int32", name=name) for name in "ab")
    p, q = (layers.Embedding(9, 4, name=name) for name in "pq")
    model = keras.Model([a, b], layers.Add(name="sum")([p(a), q(b)]))
    tied = rk.tie(model, "p", "q", keep="b")
    assert tied.count_params() == 36
    np.testing.assert_array_equal(tied.get_layer("p").embeddings, q.embeddings)


def encoder_and_decoder():
    x = keras.Input((4,), name="x")
    y = layers.Dense(4, name="first")(x)
    second = layers.Dense(4, name="second", kernel_initializer="glorot_normal")
    y = rk.layers.TiedDense(second, bias_initializer="normal", name="back")(second(y))
    return keras.Model(x, y, name="chain")


@pytest.mark.parametrize("transform", [None, "transpose"])
@pytest.mark.parametrize("names", [("first", "second"), ("first", "back")])
def test_a_third_layer_joins_a_tie(names, transform):
    model = encoder_and_decoder()
    tied = rk.tie(model, *names, transform=transform)
    assert tied.count_params() == model.count_params() - 16
    assert rk.tied_weights(tied)[0].owners == ("first", "second", "back")
    kernel = value(model.get_layer("first").kernel)
    model.get_layer("second").kernel.assign(kernel.T if transform else kernel)
    x = random_inputs(read(model))
    np.testing.assert_allclose(tied(x), model(x), rtol=1e-5, atol=1e-6)


def test_what_the_bias_and_the_output_are_held_to_is_kept():
    x = keras.Input((4,), name="x")
    held = {"bias_regularizer": "l2", "bias_constraint": "non_neg", "activity_regularizer": "l1"}
    y = layers.Dense(4, name="a")(x)
    model = keras.Model(x, layers.Dense(4, name="b", **held)(y), name="m")
    tied = rk.clone(rk.tie(model, "a", "b"))
    before, after = (each.get_layer("b").get_config() for each in (model, tied))
    assert {key: after[key] for key in held} == {key: before[key] for key in held}
    tied(random_inputs(read(model)))
    assert len(tied.losses) == 2


def test_a_class_of_ones_own_is_not_taken_for_the_layer_it_is_derived_from():
    class Doubled(layers.Dense):
        def call(self, x):
            return 2 * super().call(x)

    x = keras.Input((4,), name="x")
    model = keras.Model(x, Doubled(4, name="b")(layers.Dense(4, name="a")(x)), name="m")
    tied = rk.tie(model, "a", "b")
    assert tied.get_layer("a").source is tied.get_layer("b")
    np.testing.assert_array_equal(tied.get_layer("b").kernel, model.get_layer("a").kernel)


def test_a_layer_that_would_keep_what_is_given_up_is_named():
    x = keras.Input((4,), name="x")
    b = layers.Dense(4, name="b")
    model = keras.Model(x, TiedHead(b, name="head")(b(layers.Dense(4, name="a")(x))), name="m")
    with pytest.raises(rk.errors.TieError, match="'head' of TiedHead would keep"):
        rk.tie(model, "a", "b")
    assert rk.tie(model, "b", "a").count_params() == model.count_params() - 16


def test_flags_and_the_model_stay_as_they_were():
    model = language_model()
    model.get_layer("embedding").trainable = False
    tied = rk.tie(model, "embedding", "logits", "transpose")
    assert not tied.get_layer("embedding").trainable
    assert tied.get_layer("logits").trainable
    assert model.get_layer("logits").kernel is not None
    assert {id(v) for v in model.weights}.isdisjoint(id(v) for v in tied.weights)


@pytest.mark.parametrize(
    ("a", "b", "transform", "said"),
    [
        ("embeding", "logits", "transpose", "Did you mean 'embedding/embeddings'"),
        ("embedding", "embedding", None, "tied already"),
        ("embedding", "logits", None, "Pass transform='transpose'"),
        ("hidden", "logits", None, r"\(4, 4\)"),
        ("hidden/bias", "embedding", None, r"\(4,\)"),
        ("embedding", "logits", "flip", "'flip'"),
    ],
)
def test_bad_input_is_one_clear_error(a, b, transform, said):
    with pytest.raises(rk.errors.TieError, match=said):
        rk.tie(language_model(), a, b, transform)


def test_what_cannot_share_is_named():
    x = keras.Input((4,), name="x")
    model = keras.Model(
        x, layers.LayerNormalization(name="n")(layers.BatchNormalization(name="b")(x))
    )
    with pytest.raises(rk.errors.TieError, match="LayerNormalization"):
        rk.tie(model, "b/gamma", "n/gamma")
    with pytest.raises(rk.errors.TieError, match="Expected a weight"):
        rk.tie(model, keras.Variable(np.ones(4)), "n/gamma")


def test_layers_that_differ_are_told_in_what():
    a, b = (keras.Input((3,), dtype="int32", name=name) for name in "ab")
    p, q = layers.Embedding(9, 4, name="p"), layers.Embedding(9, 4, mask_zero=True, name="q")
    model = keras.Model([a, b], layers.Add(name="sum")([p(a), q(b)]))
    with pytest.raises(rk.errors.TieError, match="differ in mask_zero"):
        rk.tie(model, "p", "q")


def test_a_quantised_layer_is_refused_before_anything_is_made():
    model = language_model()
    model.get_layer("embedding").quantize("int8")
    with pytest.raises(rk.errors.TieError, match="floating point"):
        rk.tie(model, "embedding", "logits", "transpose")
