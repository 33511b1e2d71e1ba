"""Saved models as people have them: other files, sizes, ranges, names and classes."""

import json

import h5py
import keras
import numpy as np
import pytest

import reusekit as rk
from reusekit.backbones import glyphnet
from reusekit.backbones.preprocessing import range_ratio

layers = keras.layers
PIXELS = np.random.default_rng(0).uniform(0, 255, (8, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def model():
    """A network of any size that was trained on pixels from 0 to 1."""
    images = keras.Input((None, None, 3), name="images")
    x = layers.Conv2D(4, 3, name="conv")(images)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    found = keras.Model(images, layers.Dense(2, name="out")(x), name="small")
    seen = np.asarray(rk.extract(found, "conv")(PIXELS / 255)).reshape(-1, 4)
    norm = found.get_layer("norm")
    norm.moving_mean.assign(seen.mean(axis=0))
    norm.moving_variance.assign(seen.var(axis=0))
    return found


@pytest.mark.parametrize("file", ["small.h5", "small.hdf5"])
def test_a_file_of_hdf5_is_a_backbone(model, tmp_path, file):
    model.save(tmp_path / file)  # surgery F19
    found = rk.load_backbone(tmp_path / file)
    np.testing.assert_array_equal(found.model(PIXELS), model(PIXELS))
    assert found.digest == rk.load_backbone(tmp_path / file).digest
    fresh = rk.load_backbone(tmp_path / file, weights=None)
    assert not np.array_equal(fresh.model(PIXELS), model(PIXELS))


@pytest.mark.parametrize("file", ["a.keras", "a.h5"])
def test_what_a_file_says_is_frozen_is_not_trained(tmp_path, file):
    x = keras.Input((4, 8))
    attention = layers.MultiHeadAttention(2, 4, name="attention")
    inner = keras.Model(x, attention(x, x), name="inner")
    both = layers.Bidirectional(layers.LSTM(2), name="both")
    model = keras.Model(x, layers.Dense(3, name="out")(both(inner(x))))
    attention.trainable = both.backward_layer.trainable = False
    model.save(tmp_path / file)
    assert keras.saving.load_model(tmp_path / file).get_layer("inner").trainable_weights  # Keras
    loaded = rk.load_backbone(tmp_path / file).model
    assert not loaded.get_layer("inner").trainable_weights
    assert len(loaded.trainable_weights) == len(model.trainable_weights) == 3 + 2
    loaded.compile("sgd", "mse")
    before = loaded.get_layer("inner").get_weights()
    loaded.fit(np.ones((2, 4, 8)), np.ones((2, 3)), verbose=0)
    for one, other in zip(before, loaded.get_layer("inner").get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def of_keras_2(file, layer: dict, weights: dict[str, np.ndarray]) -> None:
    """Write a file as Keras 2 did: an input of 4 numbers, and one layer."""
    given = {
        "class_name": "InputLayer",
        "config": {"batch_input_shape": [None, 4], "dtype": "float32", "name": "input_1"},
        "name": "input_1",
        "inbound_nodes": [],
    }
    layer |= {"name": layer["config"]["name"], "inbound_nodes": [[["input_1", 0, 0, {}]]]}
    config = {
        "name": "model",
        "layers": [given, layer],
        "input_layers": [["input_1", 0, 0]],
        "output_layers": [[layer["name"], 0, 0]],
    }
    with h5py.File(file, "w") as f:
        f.attrs["keras_version"] = "2.11.0"
        f.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config})
        stored = f.create_group("model_weights")
        stored.attrs["layer_names"] = [b"input_1", layer["name"].encode()]
        stored.create_group("input_1").attrs["weight_names"] = []
        group = stored.create_group(layer["name"])
        group.attrs["weight_names"] = [name.encode() for name in weights]
        for name, value in weights.items():
            group.create_dataset(name, data=value)


def test_a_file_of_keras_2_is_a_backbone(tmp_path):
    dense = {"name": "dense", "dtype": "float32", "units": 2, "activation": "relu"}
    weights = {"dense/kernel:0": np.ones((4, 2), "f4"), "dense/bias:0": np.ones(2, "f4")}
    of_keras_2(tmp_path / "old.h5", {"class_name": "Dense", "config": dense}, weights)
    found = rk.load_backbone(tmp_path / "old.h5").model
    assert found.predict(np.ones((1, 4)), verbose=0).tolist() == [[5, 5]]


def test_a_file_of_keras_2_runs_no_code(tmp_path):
    config = {"name": "f", "function": ["4wEAAAA=", None, None], "function_type": "lambda"}
    of_keras_2(tmp_path / "l.h5", {"class_name": "Lambda", "config": config}, {})
    with pytest.raises(rk.BackboneError, match="arbitrary code"):
        rk.load_backbone(tmp_path / "l.h5")


def test_what_holds_no_graph_says_what_to_do(model, tmp_path):
    model.save_weights(tmp_path / "small.weights.h5")
    (tmp_path / "only.h5").write_bytes((tmp_path / "small.weights.h5").read_bytes())
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("model.onnx", "model.tflite", "broken.h5"):
        (tmp_path / name).write_bytes(b"model")
    for name, says in [
        ("small.weights.h5", "model.load_weights"),
        ("only.h5", "holds weights and no model"),
        ("saved", "SavedModel.*TFSMLayer.*model.save"),
        ("folder", "folder of a KerasHub preset"),
        ("model.onnx", "Expected a .keras, .h5 or .hdf5 file"),
        ("model.tflite", "Expected a .keras, .h5 or .hdf5 file"),
        ("broken.h5", "can be loaded. Received: .*broken.h5"),
        ("none.h5", "file or folder that is there"),
    ]:
        with pytest.raises(rk.BackboneError, match=says):
            rk.load_backbone(tmp_path / name)


def test_the_class_that_is_missing_is_named(tmp_path):
    @keras.saving.register_keras_serializable("elsewhere")
    class Odd(layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((4,))
    keras.Model(inputs, Odd()(inputs)).save(tmp_path / "odd.keras")
    keras.Model(inputs, Odd()(inputs)).save(tmp_path / "odd.h5")
    del keras.saving.get_custom_objects()["elsewhere>Odd"]
    for name in ("odd.keras", "odd.h5"):
        with pytest.raises(rk.BackboneError, match=r"needs Odd,.*--import MODULE"):
            rk.load_backbone(tmp_path / name)


def test_a_model_of_any_size_takes_one(model, tmp_path):
    # pipeline A4: "choose --backbone.input_shape", which was then refused
    model.save(tmp_path / "open.keras")
    found = rk.load_backbone(tmp_path / "open.keras", input_shape=(8, 8, 3)).model
    assert found.input_shape == (None, 8, 8, 3)
    np.testing.assert_array_equal(found(PIXELS), model(PIXELS))
    for shape, says in [
        ((8, 8, 1), r"Expected input_shape \(None, None, 3\)"),
        ((8, 8), "Expected input_shape"),
        ((2, 2, 3), r"can take\. Received: \(2, 2, 3\)"),
    ]:
        with pytest.raises(rk.BackboneError, match=says):
            rk.load_backbone(tmp_path / "open.keras", input_shape=shape)


def test_pixels_are_brought_to_the_range_that_is_asked_for(model, tmp_path):
    # pipeline B4: a file trained on pixels / 255, scaled outside, got pixels from 0 to 255
    file = tmp_path / "small.h5"
    model.save(file)
    caffe = keras.applications.imagenet_utils.preprocess_input(PIXELS.copy(), mode="caffe")
    torch = keras.applications.imagenet_utils.preprocess_input(PIXELS.copy(), mode="torch")
    for scale, fed in [
        ("0..1", PIXELS / 255),
        ("-1..1", PIXELS / 127.5 - 1),
        ("0..255", PIXELS),
        ((0.5, 2), PIXELS * 0.5 + 2),
        ("caffe", caffe),
        ("torch", torch),
    ]:
        found = rk.load_backbone(file, scale=scale).model(PIXELS)
        np.testing.assert_allclose(found, model(fed), rtol=1e-4, atol=1e-4)
    assert 0.9 < range_ratio(rk.load_backbone(file, scale="0..1").model, PIXELS) < 1.1
    assert range_ratio(rk.load_backbone(file).model, PIXELS) > 200
    assert range_ratio(rk.load_backbone(file, weights=None).model, PIXELS) is None
    for scale in ("0-1", (1.0,), (1.0, float("nan")), "none"):
        with pytest.raises(rk.BackboneError, match="Expected scale"):
            rk.load_backbone(file, scale=scale)
    with pytest.raises(rk.BackboneError, match="brings the preprocessing"):
        rk.load_backbone(glyphnet.SOURCE, scale="0..1")


@pytest.mark.parametrize(
    ("file", "name"),
    [("2024-05-01T10:30.keras", "2024-05-01T10-30"), ("bob's 50% net.keras", "bob-s-50-net")],
)
def test_any_name_of_a_file_gives_a_name_for_the_registry(model, tmp_path, monkeypatch, file, name):
    monkeypatch.chdir(tmp_path)  # pipeline D
    model.save(file)
    assert rk.load_backbone(file).name == name


def test_channels_come_last_whatever_keras_prefers(tmp_path):
    # pipeline F: keras.json with channels_first
    before = rk.load_backbone(glyphnet.SOURCE)
    keras.config.set_image_data_format("channels_first")
    try:
        digest = rk.load_backbone(glyphnet.SOURCE).digest
        shape = rk.load_backbone(
            "keras.applications/MobileNet", weights=None, input_shape=(32, 32, 3), alpha=0.25
        ).model.output_shape
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")
    assert digest == before.digest
    assert shape == (None, 1, 1, 256)
