"""Fixtures of the tests of stages: a small backbone, the demo's data, and a store of their own."""

import keras
import pytest

import reusekit as rk
from reusekit import stages
from reusekit.backbones import Backbone
from reusekit.settings import DataSettings


@pytest.fixture(scope="module")
def backbone():
    """Five blocks in the manner of glyphnet, of a few layers each."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 1), name="image")
    y = keras.layers.Rescaling(1 / 255, name="scale")(x)
    for number in range(1, 6):
        y = keras.layers.Conv2D(
            8, 3, padding="same", kernel_initializer="he_normal", name=f"block{number}_1_conv"
        )(y)
        y = keras.layers.BatchNormalization(momentum=0.5, name=f"block{number}_1_norm")(y)
        y = keras.layers.ReLU(name=f"block{number}_out")(y)
    model = keras.Model(x, y, name="blocks")
    images, _ = rk.data.load("sklearn_digits", "train[:100]").arrays()
    for _ in range(10):  # so that its normalizations know such images, as pretrained ones do
        model(images.astype("float32"), training=True)
    return Backbone(model, None, "blocks", None)


@pytest.fixture(scope="module")
def splits(backbone):
    return stages.load_data(
        DataSettings(name="sklearn_digits", examples_per_class=5), backbone, seed=0
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return rk.FeatureStore(tmp_path_factory.mktemp("features"))
