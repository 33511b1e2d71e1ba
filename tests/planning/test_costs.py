"""Measurements of this machine and of a bottom."""

import shutil
from dataclasses import asdict
from time import sleep

import keras
import numpy as np
import pytest
import tensorflow as tf

from reusekit.errors import CacheError, DataError
from reusekit.features import FeatureStore
from reusekit.planning import measure
from reusekit.planning.costs import rehearse


def bottoms(function=keras.ops.square):
    return lambda x: [{"made": function(x)}, {"twice": 2 * x}]


def batches(count=40, size=8):
    inputs = np.random.default_rng(0).normal(size=(count, 4)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((inputs, np.arange(count))).batch(size)


def test_every_speed_is_measured_and_nothing_is_left(tmp_path):
    store = FeatureStore(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    costs = asdict(measure(store))
    assert costs.pop("bottom_seconds") is None
    assert {costs.pop(f"{name}_seconds") for name in ("input", "augment", "trace")} == {0}
    assert min(costs.values()) > 0
    # Slower and faster than any disk and processor.
    assert 1e6 < costs["read_bytes_per_second"] < 1e12
    assert 1e-14 < costs["seconds_per_flop"] < 1e-7
    assert sorted(tmp_path.rglob("*")) == before


def test_the_bottoms_speed_gives_that_of_what_is_trained(tmp_path):
    found = rehearse(bottoms(), batches())
    costs = measure(FeatureStore(tmp_path), found, flops=10)
    assert costs.bottom_seconds == found.bottom_seconds > 0
    assert costs.seconds_per_flop == found.bottom_seconds / 10


def test_a_rehearsal_tells_what_is_stored_of_an_example():
    found = rehearse(bottoms(), batches())
    made = found.outputs[0]["made"]
    assert (made.shape, made.dtype) == ((4,), "float32")
    assert (found.input_bytes, found.label_bytes) == (16, 8)
    assert found.unsteady == [False, False]


def test_augmentation_is_timed():
    def slow(entropy, inputs, labels):
        sleep(0.02)
        return inputs, labels

    seconds = rehearse(bottoms(), batches(), slow).augment_seconds
    assert 0.02 / 8 < seconds < 1


def test_a_rehearsal_sees_what_differs_from_run_to_run():
    def jitter(x):
        return x + 0.01 * tf.random.normal(tf.shape(x))

    assert rehearse(bottoms(jitter), batches()).unsteady == [True, False]


def test_a_step_of_more_parameters_takes_longer(tmp_path):
    few, many = (measure(FeatureStore(tmp_path), parameters=count) for count in (10, 10**6))
    assert many.seconds_per_parameter * 10**6 > 3 * few.step_overhead


def test_few_examples_are_enough_and_a_whole_batch_is_timed():
    sizes = []

    def run(x):
        sizes.append(len(x))
        return [{"made": x}]

    rehearse(run, batches(size=20))
    assert sizes == [8, 8, 20, 20]
    sizes.clear()
    assert rehearse(run, batches(count=5)).outputs[0]["made"].shape == (4,)
    assert max(sizes) == 5


def test_a_rehearsal_without_examples():
    with pytest.raises(DataError, match="Received: an empty one"):
        rehearse(bottoms(), batches(count=0))


def test_a_disk_that_is_gone(tmp_path):
    store = FeatureStore(tmp_path / "store")
    shutil.rmtree(store.path)
    with pytest.raises(CacheError, match="that can be used"):
        measure(store)
