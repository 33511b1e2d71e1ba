"""Targets stay what they are, wherever examples are held: numbers, several labels, classes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import reusekit as rk
from reusekit.data import DataSplit, Task
from reusekit.features.source import InputSource

SIZE = 40
IMAGES = np.random.default_rng(0).normal(size=(SIZE, 6, 6, 1)).astype("float32")
TARGETS = {
    "numbers": IMAGES.mean(axis=(1, 2, 3)),
    "several labels": (IMAGES[:, 0, :3, 0] > 0).astype("float32"),
    "classes": (IMAGES[:, 0, 0, 0] > 0).astype("int64"),
}


def split_of(targets: np.ndarray, name: str = "train") -> DataSplit:
    examples = tf.data.Dataset.from_tensor_slices((IMAGES, targets))
    kind = "classification" if targets.dtype == np.int64 else "regression"
    names = "abc"[: targets.shape[1] if targets.ndim > 1 else 2 if kind == "classification" else 1]
    task = Task(kind, tuple(names))
    return DataSplit("made", name, examples, SIZE, task, f"{name} {targets.dtype}")


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_held_targets_keep_dtype_and_shape(targets):
    # pipeline B1: cut to int64 wherever inputs are held; several labels crashed
    data = split_of(targets)
    for labels in (data.arrays()[1], InputSource(data, None, SIZE).labels):
        assert labels.dtype == targets.dtype
        np.testing.assert_array_equal(labels, targets)
    batches = InputSource(data, None, SIZE).batches(16)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), targets)


def test_a_regression_scores_alike_held_and_stored(tmp_path):
    # pipeline B1: val_mse 0.0000 where inputs were held, as every target had become 0
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="deep")(x))
    space = rk.SearchSpace(
        cuts=["conv"],
        learning_rates=[0.05],
        heads={"numbers": rk.heads.Regression(1)},
    )
    found = []
    for plain in (False, True):
        search = rk.CutSearch(
            model,
            split_of(TARGETS["numbers"]),
            split_of(TARGETS["numbers"], "validation"),
            space,
            rk.SearchConfig(objective="val_loss", epochs=3, plain=plain),
            folder=tmp_path / str(plain),
            store=None if plain else rk.FeatureStore(tmp_path / "features"),
        )
        search.run()
        found.append(search.results()["val_loss"].min())
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[1] > 1e-6
