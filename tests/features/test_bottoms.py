"""A bottom that computes in bfloat16 is a copy with the same weights, named apart."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from zoo import ZOO
from zoo_hub import HUB

import reusekit as rk
from reusekit.data import DataSplit, Task
from reusekit.errors import CacheError
from reusekit.features import Extraction, FeatureStore, stored_features
from reusekit.features.bottoms import in_compute_dtype

SIZE = 10
HALF = Extraction(compute_dtype="bfloat16")


def images():
    return np.random.default_rng(0).uniform(0, 1, (SIZE, 8, 8, 3)).astype("float32")


def data():
    examples = tf.data.Dataset.from_tensor_slices((images(), np.arange(SIZE)))
    return DataSplit(
        "made:1.0.0", "train", examples, SIZE, Task("classification", ("a", "b")), "print"
    )


def policies(model):
    return [layer.dtype_policy.name for layer in model.layers]


def test_weights_stay_exact_and_values_come_near():
    keras.utils.set_random_seed(0)
    model = ZOO["residual"]()
    before = policies(model)
    copy = in_compute_dtype(model, "bfloat16").model
    assert policies(model) == before
    for one, other in zip(model.weights, copy.weights, strict=True):
        assert one is not other
        assert other.dtype == "float32"
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    exact, made = (each.predict(images(), verbose=0) for each in (model, copy))
    assert made.dtype.name == "bfloat16"
    wide = made.astype("float32")
    assert not np.array_equal(wide, exact)
    np.testing.assert_allclose(wide, exact, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("name", ["nested_three_deep", "masked_attention", "masked_lstm"])
def test_models_of_several_kinds(name):
    keras.utils.set_random_seed(0)
    model = ZOO[name]()
    generator = np.random.default_rng(0)

    def draw(tensor):
        shape = (SIZE, *(6 if size is None else size for size in tensor.shape[1:]))
        if "int" in tensor.dtype:
            return generator.integers(0, 3, shape).astype(tensor.dtype)
        return generator.uniform(size=shape).astype(tensor.dtype)

    inputs = keras.tree.map_structure(draw, model.input)
    copy = in_compute_dtype(model, "bfloat16").model
    exact, made = (keras.tree.flatten(m.predict(inputs, verbose=0)) for m in (model, copy))
    for one, other in zip(exact, made, strict=True):
        assert other.dtype.name == "bfloat16"
        np.testing.assert_allclose(other.astype("float32"), one, rtol=0.05, atol=0.03)


def test_a_transformer():
    keras.utils.set_random_seed(0)
    model = HUB["bert"].build()
    tokens = np.random.default_rng(0).integers(1, 10, (4, 8))
    inputs = {"token_ids": tokens, "segment_ids": tokens * 0, "padding_mask": tokens > 2}
    copy = in_compute_dtype(model, "bfloat16").model
    exact, made = (each.predict(inputs, verbose=0)["pooled_output"] for each in (model, copy))
    assert made.dtype.name == "bfloat16"
    np.testing.assert_allclose(made.astype("float32"), exact, atol=0.05)


def test_features_are_stored_as_they_were_computed(tmp_path):
    keras.utils.set_random_seed(0)
    model = ZOO["residual"]()
    store = FeatureStore(tmp_path)
    (exact,) = stored_features(store, model, ["out0"], data())
    (quick,) = stored_features(store, model, ["out0"], data(), extraction=HALF)
    assert len(store.entries()) == 2
    array = quick.stored["out0"]
    assert array.dtype == "bfloat16"
    assert 2 * array.nbytes == exact.stored["out0"].nbytes
    wide = np.asarray(array).astype("float32")
    np.testing.assert_allclose(wide, np.asarray(exact.stored["out0"]), rtol=0.05, atol=0.02)
    assert not np.array_equal(wide, np.asarray(exact.stored["out0"]))
    (inputs, _), *_ = quick.batches(5)
    top = rk.split(model, "out0").top
    np.testing.assert_allclose(top(inputs), model(images()[:5]), rtol=0.05, atol=0.02)
    wide_half = replace(HALF, dtype="float32")
    (again,) = stored_features(store, model, ["out0"], data(), extraction=wide_half)
    assert again.stored["out0"].dtype == "float32"
    np.testing.assert_array_equal(np.asarray(again.stored["out0"]), wide)


def test_augmentation_keeps_its_precision(tmp_path):
    x = keras.Input((8, 8, 3))
    y = layers.RandomTranslation(0.3, 0.3, name="shift", fill_mode="constant")(x)
    model = keras.Model(x, layers.Rescaling(2.0, name="twice")(y))
    store = FeatureStore(tmp_path)
    (exact,) = stored_features(store, model, ["shift"], data(), view=0)
    (quick,) = stored_features(store, model, ["twice"], data(), view=0, extraction=HALF)
    assert quick.stored["twice"].dtype == "bfloat16"
    wide = np.asarray(quick.stored["twice"]).astype("float32")
    np.testing.assert_allclose(wide, 2 * np.asarray(exact.stored["shift"]), rtol=0.01)


def test_other_dtypes_are_refused():
    with pytest.raises(CacheError, match="Did you mean 'bfloat16'"):
        Extraction(compute_dtype="bfloat61")
    with pytest.raises(CacheError, match=r"None or 'bfloat16'.*Received: 'float16'"):
        Extraction(compute_dtype="float16")
