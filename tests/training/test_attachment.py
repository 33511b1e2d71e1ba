"""A bottom and a head joined: the same numbers, the same weights, addresses kept."""

import keras
import numpy as np
import pytest

import reusekit as rk
from reusekit.graph import keras_internals


def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 1)).astype("float32")


@pytest.fixture
def bottom():
    return rk.extract(rk.load_backbone("reusekit/glyphnet").model, "block2_out")


def test_a_head_that_was_built_keeps_its_weights(bottom):
    head = rk.heads.Classifier(4, units=8, dropout=0.5).build(bottom.output_shape[1:])
    whole = rk.attach(bottom, head)
    expected = head(bottom(images(), training=False), training=False)
    np.testing.assert_allclose(whole(images(), training=False), expected, rtol=1e-6)
    assert whole.get_layer("head_hidden").kernel is head.get_layer("head_hidden").kernel
    assert whole.count_params() == bottom.count_params() + head.count_params()
    assert "block1_out" in [point.at for point in rk.cut_points(whole)]


def test_a_head_that_was_not_built_gets_new_weights_on_each_bottom(bottom):
    head = rk.heads.Classifier(4, units=8)
    first, second = rk.attach(bottom, head), rk.attach(bottom, head)
    kernels = [model.get_layer("head_hidden").kernel for model in (first, second)]
    assert kernels[0] is not kernels[1]
    assert kernels[0].shape == (bottom.output_shape[-1], 8)
    stems = [model.get_layer("stem_conv").kernel for model in (first, second, bottom)]
    assert stems[0] is stems[1] is stems[2]


def test_is_not_nested_and_named_by_both(bottom):
    nested = keras.Sequential([keras.Input(bottom.input_shape[1:]), bottom])
    whole = rk.attach(nested, rk.heads.Classifier(4, name="digits"))
    # What is nested in the bottom stays so: its addresses stay good (pipeline C).
    assert [layer for layer in whole.layers if isinstance(layer, keras.Model)] == [bottom]
    assert whole.name == f"{nested.name}_digits"
    assert whole.layers[-1].name == "digits_probabilities"


def test_features_of_half_precision_are_taken_as_they_are():
    x = keras.Input((4,), name="x")
    bottom = keras.Model(x, keras.layers.Dense(3, dtype="mixed_bfloat16", name="a")(x))
    whole = rk.attach(bottom, rk.heads.Classifier(2, units=5))
    assert [layer.name for layer in whole.layers] == ["x", "a", "head_hidden", "head_probabilities"]
    assert whole.output.dtype == "float32"


def test_a_bottom_that_does_not_fit_is_refused(bottom):
    with pytest.raises(rk.SurgeryError, match=r"output is \(None, 7\)"):
        rk.attach(bottom, rk.heads.Classifier(4).build((7,)))
    with pytest.raises(rk.SurgeryError, match=r"output is \(None, 4, 4, 7\)"):
        rk.attach(bottom, rk.heads.Classifier(4).build((4, 4, 7)))
    with pytest.raises(rk.SurgeryError, match=r"output is \[\(None, 7\), \(None, 7\)\]"):
        rk.attach(bottom, rk.heads.Multitap(4).build([(7,), (7,)]))
    for no_head in (rk.heads.Classifier, "classifier", keras.layers.Dense(4)):
        with pytest.raises(
            rk.errors.HeadError, match=r"such as rk\.heads\.Classifier\(10\), or a keras"
        ):
            rk.attach(bottom, no_head)


def test_a_refused_head_leaves_the_bottom_as_it_was(bottom):
    layers = {layer: keras_internals.calls_of(layer) for layer in bottom.layers}
    with pytest.raises(
        rk.errors.HeadError, match=r"a sequence, \(length, channels\).*\(16, 16, 32\)"
    ):
        rk.attach(bottom, rk.heads.Classifier(4, pooling="token"))
    taps = rk.extract(bottom, ["block1_out", "block2_out"])
    with pytest.raises(
        rk.errors.HeadError, match=r"one tensor of features for a classifier.* 2: rk\.extract"
    ):
        rk.attach(taps, rk.heads.Classifier(4))
    assert layers == {layer: keras_internals.calls_of(layer) for layer in bottom.layers}
