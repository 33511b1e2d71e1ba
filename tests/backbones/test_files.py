"""A saved model as a backbone."""

import keras
import numpy as np
import pytest

import reusekit as rk

X = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((6,), name="features")
    x = keras.layers.Dense(5, name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="out")(x), name="small")


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "small.keras"
    model.save(path)
    return path


def test_it_is_what_was_saved(file, model):
    found = rk.load_backbone(file)
    assert np.array_equal(found.model.predict(X, verbose=0), model.predict(X, verbose=0))
    assert (found.source, found.name, found.preprocessing) == (str(file), "small", None)
    assert found.digest == rk.load_backbone(str(file)).digest
    bottom, _ = rk.split(found.model, "hidden")
    assert bottom.output_shape == (None, 5)


def test_random_weights_on_demand(file, model):
    fresh = rk.load_backbone(file, weights=None)
    assert not np.array_equal(fresh.model.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_file_that_asks_for_code_to_be_run_is_refused(tmp_path):
    inputs = keras.Input((6,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs)).save(tmp_path / "l.keras")
    with pytest.raises(rk.BackboneError, match=r"can be loaded.*l\.keras: .*lambda"):
        rk.load_backbone(tmp_path / "l.keras")


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_truncated_file_is_refused(file, tmp_path, size):
    broken = tmp_path / "broken.keras"
    broken.write_bytes(file.read_bytes()[:size])
    with pytest.raises(rk.BackboneError, match=r"broken\.keras, which is damaged"):
        rk.load_backbone(broken)


def test_what_it_does_not_take_is_refused(file):
    with pytest.raises(rk.BackboneError, match="file or folder that is there"):
        rk.load_backbone("no/such.keras")
    with pytest.raises(rk.BackboneError, match=r"input_shape \(6,\)"):
        rk.load_backbone(file, input_shape=(7,))
    with pytest.raises(rk.BackboneError, match="its own weights"):
        rk.load_backbone(file, weights="imagenet")
    with pytest.raises(rk.BackboneError, match="Expected no options"):
        rk.load_backbone(file, alpha=1)


def test_an_adapted_vocabulary_that_the_file_lacks_is_missed(tmp_path):  # an h5 file holds none
    words = keras.Input((1,), dtype="string")
    adapted = keras.layers.StringLookup(name="adapted")
    adapted.adapt(np.array(["a", "b"]))
    given = keras.layers.StringLookup(vocabulary=["a", "b"], name="given")
    for name, layer in (("adapted", adapted), ("given", given)):
        keras.Model(words, layer(words)).save(tmp_path / f"{name}.h5")
    with pytest.raises(rk.BackboneError, match=r"a \.keras file.* the vocabulary of 'adapted'"):
        rk.load_backbone(tmp_path / "adapted.h5")
    assert rk.load_backbone(tmp_path / "given.h5").model.get_layer("given").vocabulary_size() == 3
