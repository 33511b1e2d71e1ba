"""Weights of trials on disk: whole files, of what was trained, of the best alone."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

from reusekit.search.folder import Checkpoints, load


def model(seed, units=4):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((3,))
    x = layers.BatchNormalization()(layers.Dense(units)(inputs))
    made = keras.Model(inputs, layers.Dense(2)(x))
    made.compile("adam", "mse")
    return made


def test_weights_come_back_into_another_model_of_the_structure(tmp_path):
    one, other = model(1), model(2)
    one.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
    checkpoints = Checkpoints(tmp_path / "new" / "folder")
    checkpoints.save(7, one)
    load(other, checkpoints.file(7))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_what_is_kept_stays_and_nothing_half_written(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for number in range(4):
        checkpoints.save(number, model(number))
    (tmp_path / "part-0009.weights.h5").write_bytes(b"killed while it was written")
    checkpoints.keep([1, 3])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "0001.weights.h5",
        "0003.weights.h5",
    ]
    checkpoints.keep([])
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_the_file_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, model(1))
    before = checkpoints.file(0).read_bytes()
    checkpoints.save(0, model(2))
    assert checkpoints.file(0).read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["0000.weights.h5"]


def test_weights_of_another_structure_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, model(1))
    with warnings.catch_warnings(), pytest.raises(ValueError, match="shape"):
        warnings.filterwarnings("ignore", "Skipping nested container")
        load(model(1, units=5), checkpoints.file(0))
