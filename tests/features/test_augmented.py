"""Augmentation before a cut works on every batch, or in views that come out the same again."""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from processes import run_python

import reusekit as rk
from reusekit.data import DataSplit, Task
from reusekit.errors import CacheError
from reusekit.features import Extraction, FeatureStore, frontier, stored_features
from reusekit.features.bottoms import augmented, tapped
from reusekit.graph import read

SIZE = 30


@keras.saving.register_keras_serializable("test_augmented")
class Jitter(layers.Layer):
    """A user's augmentation, with a default that Keras records as if the caller had said it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.numbers = keras.random.SeedGenerator()

    def call(self, x, training=False):
        return x + keras.random.uniform(keras.ops.shape(x), seed=self.numbers) if training else x


@keras.saving.register_keras_serializable("test_augmented")
class Sampling(Jitter):
    def call(self, x):
        return x + keras.random.uniform(keras.ops.shape(x), seed=self.numbers)


@keras.saving.register_keras_serializable("test_augmented")
class Block(layers.Layer):
    """An augmentation beside layers that must not notice."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.jitter, self.drop = Jitter(), layers.Dropout(0.5)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build(shape)

    def call(self, x, training=None):
        return self.norm(self.drop(self.jitter(x, training=training), training=training))


def images():
    return np.random.default_rng(0).uniform(0, 1, (SIZE, 6, 6, 1)).astype("float32")


def data():
    examples = tf.data.Dataset.from_tensor_slices((images(), np.arange(SIZE)))
    return DataSplit(
        "made:1.0.0", "train", examples, SIZE, Task("classification", ("a", "b")), "print"
    )


def augmented_bottom(model, at, pooling=None, seed=None):
    graph = read(model)
    wanted = frontier(graph, at, pooling).crossing
    bottom, reseed = augmented(graph, wanted if len(wanted) > 1 else wanted[0], pooling)
    if seed is not None:
        reseed(seed)
    return bottom


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path, block_bytes=4000)


def flipping(prefix=""):
    """Flips in a nested model; BatchNormalization and Dropout follow; a skip connection crosses."""
    keras.utils.set_random_seed(0)
    inner = keras.Input((6, 6, 1))
    nested = layers.RandomFlip("horizontal", name=f"{prefix}flip")(inner)
    nested = keras.Model(inner, nested, name=f"{prefix}treatment")
    x = keras.Input((6, 6, 1), name=f"{prefix}x")
    y = nested(x)
    z = layers.BatchNormalization(name=f"{prefix}norm")(y)
    z = layers.Dropout(0.5, name=f"{prefix}drop")(z)
    z = layers.Add(name=f"{prefix}sum")([layers.Conv2D(1, 3, padding="same")(z), y])
    z = layers.GlobalAveragePooling2D()(z)
    return keras.Model(x, layers.Dense(2, name=f"{prefix}head")(z))


def state(model):
    return [variable.numpy() for variable in model.variables]


def assert_flipped(features, of):
    """Each example as it was or mirrored, some of each; returns which were mirrored."""
    same = [np.allclose(one, other, atol=1e-6) for one, other in zip(features, of, strict=True)]
    mirrored = [
        np.allclose(one[:, ::-1], other, atol=1e-6) for one, other in zip(features, of, strict=True)
    ]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert 0 < sum(same) < len(same)
    return mirrored


def test_a_bottom_augments_in_predict_and_changes_nothing_of_the_model():
    model = flipping()
    before = state(model)
    bottom = augmented_bottom(model, "norm")
    plain = rk.split(model, "norm").bottom.predict(images(), verbose=0)
    mirrored = []
    for _ in range(2):
        made = bottom.predict(images(), verbose=0)
        flips = [assert_flipped(one, other) for one, other in zip(made, plain, strict=True)]
        assert flips[0] == flips[1]  # what crosses together was flipped together
        mirrored += flips[:1]
    assert mirrored[0] != mirrored[1]
    for one, other in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_bottom_gives_what_a_top_takes():
    model = flipping()
    parts = rk.split(model, "drop")
    made = augmented_bottom(model, "drop", seed=1).predict(images(), verbose=0)
    assert [tuple(each.shape) for each in made] == [(SIZE, 6, 6, 1)] * 2
    whole = parts.top(made)
    known = parts.top(parts.bottom(images()))
    assert whole.shape == known.shape
    pooled = augmented_bottom(model, "norm", pooling="avg").predict(images(), verbose=0)
    expected = rk.extract(model, "norm", pooling="avg").predict(images(), verbose=0)
    np.testing.assert_allclose(pooled, expected, atol=1e-6)  # a mean does not mind a flip


def test_of_a_layer_that_holds_an_augmentation_the_rest_stays_as_it_is():
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 1))
    block = Block(name="block")
    model = keras.Model(x, layers.Rescaling(1.0, name="end")(block(x)))
    block.norm.moving_mean.assign([3.0])
    made = augmented_bottom(model, "end").predict(images(), verbose=0)
    noise = np.asarray(made) * np.sqrt(1.001) + 3 - images()
    assert noise.min() >= -1e-5
    assert noise.max() <= 1 + 1e-5
    assert 0.4 < noise.mean() < 0.6
    assert len(np.unique(noise.round(5))) > 900
    assert (block.drop.rate, block.norm.trainable) == (0.5, True)


def test_seeds_decide():
    model = flipping()
    made = [
        np.asarray(augmented_bottom(model, "norm", seed=n).predict(images(), verbose=0)[0])
        for n in (4, 4, 5)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_two_augmentations_alike_of_one_tensor_differ():
    x = keras.Input((6, 6, 1))
    both = [Jitter(name=name)(x) for name in ("a", "b")]
    made = augmented_bottom(keras.Model(x, both), ["a", "b"], seed=0).predict(images(), verbose=0)
    assert not np.array_equal(*made)


def view(store, model, number, at="norm", **settings):
    how = Extraction(**settings)
    (features,) = stored_features(store, model, [at], data(), view=number, extraction=how)
    return [np.asarray(array) for array in features.stored.values()]


def test_views_differ_and_come_again(store, tmp_path):
    model = flipping()
    before, plain = state(model), rk.split(model, "norm").bottom.predict(images(), verbose=0)
    views = [view(store, model, number, batch_size=8) for number in (0, 1)]
    flips = [assert_flipped(one, other) for one, other in zip(views[0], plain, strict=True)]
    assert flips[0] == flips[1] != assert_flipped(views[1][0], plain[0])
    others = view(store, model, 0, seed=1, batch_size=8)
    assert flips[0] != assert_flipped(others[0], plain[0])
    for one, other in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(one, other)
    # Another model of the same content, other cuts beside it, another past.
    keras.random.uniform((3,))
    elsewhere = FeatureStore(tmp_path / "other")
    (_, again) = stored_features(
        elsewhere,
        flipping("b_"),
        ["b_sum", "b_norm"],
        data(),
        view=1,
        extraction=Extraction(batch_size=8),
    )
    for one, other in zip(views[1], again.stored.values(), strict=True):
        np.testing.assert_array_equal(one, np.asarray(other))
    # Found again, not computed again; and no view is taken for what is not augmented.
    assert len(store.entries()) == 3
    view(store, flipping("c_"), 1, at="c_norm", batch_size=8)
    assert len(store.entries()) == 3
    (still,) = stored_features(store, model, ["norm"], data())
    np.testing.assert_allclose(np.asarray(still.stored["norm"]), plain[0], atol=1e-6)


def test_a_view_is_the_same_in_every_process(store, tmp_path):
    known = view(store, flipping(), 3, seed=2)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, keras, test_augmented as t\n"
        "keras.random.uniform((5,))\n"
        "store = t.FeatureStore(sys.argv[2])\n"
        "np.save(sys.argv[3], t.view(store, t.flipping('z_'), 3, at='z_norm', seed=2)[0])\n"
    )
    file = tmp_path / "found.npy"
    done = run_python(code, os.path.dirname(__file__), tmp_path / "there", file)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(file), known[0])


def test_an_interrupted_view_goes_on_with_the_same_numbers(store, tmp_path, monkeypatch):
    known = view(store, flipping(), 0, batch_size=4)
    other = FeatureStore(tmp_path / "other", block_bytes=8 * (2 * 36 * 4 + 8))  # two batches
    model, calls = flipping(), []

    def stopping(*args, **kwargs):
        run, reseed = tapped(*args, **kwargs)

        def killed(inputs):
            calls.append(len(inputs))
            if len(calls) == 6:
                raise KeyboardInterrupt
            return run(inputs)

        return killed, reseed

    monkeypatch.setattr("reusekit.features.bottoms.tapped", stopping)
    with pytest.raises(KeyboardInterrupt):
        view(other, model, 0, batch_size=4)
    again = view(other, model, 0, batch_size=4)
    assert calls == [4] * 6 + [4, 4, 4, 2]  # from the third block on
    for one, found in zip(known, again, strict=True):
        np.testing.assert_array_equal(one, found)


def test_a_free_tensor_is_stored_as_it_was_augmented(store):
    x = keras.Input((6, 6, 1), name="x")
    y = layers.RandomFlip("horizontal", name="flip")(x)
    wide = layers.Concatenate(name="wide")([y, y, y])
    z = layers.Conv2D(1, 1, kernel_initializer="ones", name="conv")(y)
    model = keras.Model(x, layers.Multiply(name="times")([z, wide]))
    (features,) = stored_features(store, model, ["conv"], data(), view=0)
    assert list(features.stored) == ["conv", "wide"]
    for (conv, free), _ in features.batches(7):
        np.testing.assert_array_equal(conv, free[..., :1])


def test_what_never_stops_is_stored_in_views_only(store):
    x = keras.Input((6, 6, 1))
    model = keras.Model(x, layers.Rescaling(1.0, name="end")(Sampling(name="sampling")(x)))
    with pytest.raises(CacheError, match="'end', which depends on 'sampling', random in inference"):
        stored_features(store, model, ["end"], data())
    one, other = (view(store, model, number, at="end")[0] for number in (0, 1))
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(view(store, model, 0, at="end")[0], one)


@keras.saving.register_keras_serializable("test_augmented")
class Unseeded(layers.Layer):
    def call(self, x, training=None):
        return x + tf.random.uniform(tf.shape(x)) if training else x


def test_what_cannot_be_repeated_augments_on_the_fly_and_makes_no_view(store):
    x = keras.Input((6, 6, 1))
    model = keras.Model(x, layers.Rescaling(2.0, name="end")(Unseeded(name="bare")(x)))
    bottom = augmented_bottom(model, "end", seed=0)
    one, other = (bottom.predict(images(), verbose=0) for _ in range(2))
    assert not np.array_equal(one, other)
    with pytest.raises(CacheError, match=r"'end', which depends on 'bare'.* draw from a ker"):
        view(store, model, 0, at="end")
    (still,) = stored_features(store, model, ["end"], data())
    np.testing.assert_allclose(np.asarray(still.stored["end"]), 2 * images())


def test_wrong_views_are_refused(store):
    model = rk.replace(flipping(), "treatment", layers.Rescaling(1.0, name="treatment"))
    with pytest.raises(CacheError, match=r"'norm', with none before.* Leave out view=2"):
        view(store, model, 2)
    with pytest.raises(CacheError, match=r"at least 0\. Received: -1"):
        view(store, flipping(), -1)
    assert store.entries() == []
