"""Weights of trials on disk: whole files, of what was trained, of the best alone."""

import keras
import numpy as np
import pytest
from keras import layers

from reusekit.errors import ConfigError
from reusekit.search.folder import Checkpoints, load, trained_weights


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
    checkpoints.save(7, trained_weights(one))
    load(other, checkpoints.file(7))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_frozen_weights_are_not_stored_and_files_of_before_are_read(tmp_path):
    one, other = model(1), model(2)
    one.layers[1].trainable = other.layers[1].trainable = False
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, trained_weights(one))
    load(other, checkpoints.file(0))
    trained, kept = (each.layers[-1].get_weights() for each in (one, other))
    np.testing.assert_array_equal(kept[0], trained[0])
    assert np.abs(other.layers[1].get_weights()[0] - one.layers[1].get_weights()[0]).max() > 0
    one.save_weights(tmp_path / "0007.weights.h5")
    load(other, checkpoints.file(7))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_what_is_kept_stays_and_nothing_half_written(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for number in range(4):
        checkpoints.save(number, trained_weights(model(number)))
    (tmp_path / "part-0009.npz").write_bytes(b"killed while it was written")
    checkpoints.keep([1, 3])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "0001.npz",
        "0003.npz",
    ]
    checkpoints.keep([])
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_the_file_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, trained_weights(model(1)))
    before = checkpoints.file(0).read_bytes()
    checkpoints.save(0, trained_weights(model(2)))
    assert checkpoints.file(0).read_bytes() != before
    assert [file.name for file in tmp_path.iterdir()] == ["0000.npz"]


def test_weights_of_another_structure_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, trained_weights(model(1)))
    with pytest.raises(ConfigError, match="Expected weights of shapes"):
        load(model(1, units=5), checkpoints.file(0))
