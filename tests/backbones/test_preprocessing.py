"""Every builder's preprocessing, as stock layers, equals Keras's own function."""

import inspect

import keras
import numpy as np
import pytest

from reusekit.backbones.applications import builders
from reusekit.backbones.preprocessing import as_layers
from reusekit.errors import BackboneError


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (2, 5, 7, 3)).astype("float32")


@pytest.mark.parametrize("name", builders())
def test_equals_preprocess_input(name):
    preprocess = inspect.getmodule(builders()[name]).preprocess_input
    layers = as_layers(preprocess, (5, 7, 3))
    x = images()
    expected = np.asarray(preprocess(x.copy()))
    received = x if layers is None else keras.ops.convert_to_numpy(layers(x))
    np.testing.assert_allclose(received, expected, atol=1e-4)


def test_survives_saving(tmp_path):
    model = as_layers(lambda x: x[..., ::-1] * [1, 2, 3] - [4, 5, 6], (5, 7, 3))
    model.save(tmp_path / "preprocessing.keras")
    loaded = keras.saving.load_model(tmp_path / "preprocessing.keras")
    np.testing.assert_array_equal(loaded(images()), model(images()))


def test_mixing_channels_is_refused():
    with pytest.raises(BackboneError, match="mixes channels"):
        as_layers(lambda x: x.mean(axis=-1, keepdims=True).repeat(3, axis=-1), (5, 7, 3))
