"""Features computed in one pass equal those computed one by one; what is wrong is refused."""

import keras
import numpy as np
import pytest

import reusekit as rk
from reusekit.features import extract_features, feed


@pytest.fixture(scope="module")
def backbone():
    return rk.load_backbone("reusekit/glyphnet").model


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    images = generator.uniform(0, 255, (50, 32, 32, 1)).astype("float32")
    return images, generator.integers(0, 10, 50)


CUTS = ["stem_out", "block3_out", "block7_out"]


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_one_pass_equals_a_pass_for_each_cut(backbone, data, kept, tmp_path):
    taps = rk.extract(backbone, {at: at for at in CUTS}, pooling="avg")
    folder = tmp_path if kept == "disk" else None
    features, labels = extract_features(taps, feed(*data, batch_size=16), 50, folder)
    np.testing.assert_array_equal(labels, data[1])
    assert list(features) == CUTS
    for at in CUTS:
        alone = rk.extract(backbone, at)(data[0], training=False)
        pooled = keras.ops.convert_to_numpy(alone).mean(axis=(1, 2))
        np.testing.assert_allclose(features[at], pooled, rtol=1e-4, atol=1e-5)
        assert isinstance(features[at], np.memmap) == (kept == "disk")


def test_random_layers_and_batch_statistics_do_not_act(data):
    inputs = keras.Input((32, 32, 1))
    x = keras.layers.Dropout(0.5)(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    model = keras.Model(inputs, {"out": x})
    features, _ = extract_features(model, feed(*data, batch_size=16), 50)
    np.testing.assert_allclose(features["out"], data[0] / np.sqrt(1 + 1e-3), rtol=1e-5)
    assert not model.get_layer("norm").moving_mean.numpy().any()


def test_features_that_are_not_finite_are_refused(data):
    inputs = keras.Input((32, 32, 1))
    model = keras.Model(inputs, {"log": keras.ops.log(inputs - 1000.0)})
    with pytest.raises(rk.ReusekitError, match="'log' are not finite"):
        extract_features(model, feed(*data, batch_size=16), 50)


@pytest.mark.parametrize("expected", [49, 51])
def test_another_number_of_examples_is_refused(backbone, data, expected):
    model = rk.extract(backbone, {"stem": "stem_out"})
    with pytest.raises(rk.ReusekitError, match=f"Expected {expected} examples"):
        extract_features(model, feed(*data, batch_size=16), expected)
