"""Limits on what a model may cost, and what a model costs."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reusekit.data.task import Task
from reusekit.errors import ConfigError
from reusekit.graph import read
from reusekit.graph.flops import count_flops
from reusekit.search import CutHyperModel, Limits, SearchSpace, Sizes, TrialSpec, measure_latency
from reusekit.search.sizes import SizeCounter, exceeded
from reusekit.search.trial_data import ArrayFeatures, TrialData
from reusekit.surgery import clone, extract
from reusekit.training import attach


@pytest.mark.parametrize("name", ["parameters", "flops", "latency", "bytes"])
@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_limit_that_nothing_keeps_is_refused(name, limit):
    with pytest.raises(ConfigError, match=f"Expected {name} to be .* a.* number"):
        Limits(**{name: limit})


def test_what_is_exceeded_is_named_and_what_is_just_kept_is_not():
    sizes = Sizes(parameters=100, flops=2000)
    assert exceeded(Limits(), sizes) is None
    assert exceeded(Limits(parameters=100, flops=2000, latency=0.1), sizes, 0.1) is None
    assert exceeded(Limits(parameters=80), sizes) == (1.25, "parameters: 100, and the limit is 80")
    assert exceeded(Limits(flops=1e3, parameters=99), sizes)[1].startswith("flops: 2,000")
    assert exceeded(Limits(latency=0.1), sizes, 0.2)[1].startswith("latency: 0.2")
    assert exceeded(Limits(latency=0.1), sizes) is None  # it was not measured


def test_latency_is_that_of_one_example_without_the_first_run():
    calls = []

    def wait(values):
        calls.append(len(values))
        time.sleep(1.0 if len(calls) == 1 else 0.02)
        return values

    class Slow(layers.Layer):
        def call(self, x):
            return tf.ensure_shape(tf.numpy_function(wait, [x], tf.float32), (None, 4))

    inputs = keras.Input((4,))
    quick = keras.Model(inputs, layers.Dense(2)(inputs))
    slow = keras.Model(inputs, Slow()(inputs))
    fast, waiting = measure_latency([quick, slow], runs=5)
    assert fast > 0
    assert 0.02 <= waiting < 0.5
    assert calls == [1] * 6


@pytest.mark.parametrize(
    "spec",
    [TrialSpec("stem", "stem", units=5), TrialSpec("out2", "out2"), TrialSpec("out2", "out0")],
    ids=["shallow", "deep", "trained top"],
)
def test_a_trials_sizes_are_those_of_the_whole_model(backbone, spec):
    labels = np.zeros(1, int)
    features = {
        (spec.cut, "avg"): ArrayFeatures(np.zeros((1, 8), "float32"), labels),
        (spec.frozen_up_to, None): ArrayFeatures(np.zeros((1, 8, 8, 8), "float32"), labels),
    }
    data = TrialData(features, features, Task("classification", ("a", "b", "c")), model=backbone)
    space = SearchSpace([spec.cut], standardize=False)
    own = CutHyperModel(data, space).build_for(spec)
    found = SizeCounter(data).whole(spec, own)
    whole = attach(clone(data.frozen(spec)), own)
    assert found.parameters == whole.count_params()
    assert found.bytes == 4 * whole.count_params()
    pooling = 8 * 8 * 8  # one addition for each number, which is not counted
    assert found.flops == sum(count_flops(read(whole)).per_call) - pooling
    bottom = extract(backbone, spec.cut)
    assert SizeCounter(data).bottom(spec.cut).parameters == bottom.count_params()
