"""Kinds of randomness before a cut: augmentation, dropout, and what never stops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from zoo import ZOO
from zoo_hub import HUB

import reusekit as rk
from reusekit.features.randomness import Randomness, random_before
from reusekit.graph import read

NOTHING = Randomness((), (), ())


def at_the_end(model):
    graph = read(model)
    return random_before(graph, graph.outputs)


class Jitter(layers.Layer):
    """A user's augmentation: random in training."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.numbers = keras.random.SeedGenerator(3)

    def call(self, x, training=False):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.numbers) if training else x

    def compute_output_shape(self, shape):
        return shape


class Sampling(layers.Layer):
    """As in a variational autoencoder: random whenever it is called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(3)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seed_generator)


class Holding(layers.Layer):
    """A layer made of layers."""

    def __init__(self, *inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = list(inner)

    def call(self, x, training=None):
        for layer in self.inner:
            x = layer(x, training=training)
        return x


def images(*called, name=None):
    x = y = keras.Input((8, 8, 3), name="x")
    for layer in called:
        y = layer(y)
    return keras.Model(x, layers.Activation("linear", name="end")(y), name=name)


AUGMENTATIONS = [
    layers.AugMix(value_range=(0, 1)),
    layers.CutMix(),
    layers.MixUp(),
    layers.RandAugment(value_range=(0, 1)),
    layers.RandomBrightness(0.1, value_range=(0, 1)),
    layers.RandomColorJitter(value_range=(0, 1), hue_factor=0.1),
    layers.RandomContrast(0.1, value_range=(0, 1)),
    layers.RandomCrop(4, 4),
    layers.RandomErasing(value_range=(0, 1)),
    layers.RandomFlip(),
    layers.RandomRotation(0.1),
    layers.RandomTranslation(0.1, 0.1),
    layers.RandomZoom(0.1),
    layers.Solarization(value_range=(0, 1)),
    layers.Pipeline([layers.AutoContrast(value_range=(0, 1)), layers.RandomFlip()]),
    layers.TimeDistributed(Jitter()),
    Jitter(),
    Holding(layers.Conv2D(3, 1), Jitter()),
]


@pytest.mark.parametrize("layer", AUGMENTATIONS, ids=lambda layer: layer.name)
def test_augmentation_is_found(layer):
    assert at_the_end(images(layer)) == Randomness((layer.name,), (), ())


NOT_RANDOM = [
    layers.AutoContrast(value_range=(0, 1)),
    layers.CenterCrop(4, 4),
    layers.Resizing(4, 4),
    layers.Rescaling(1 / 255),
    layers.Dropout(0.0),
    layers.TimeDistributed(layers.LSTM(2, dropout=0.0)),
    layers.MultiHeadAttention(1, 2),
]


@pytest.mark.parametrize("layer", NOT_RANDOM, ids=lambda layer: layer.name)
def test_what_is_not_random_is_not_named(layer):
    x = keras.Input((8, 8, 3))
    attends = isinstance(layer, layers.MultiHeadAttention)
    assert at_the_end(keras.Model(x, layer(x, x) if attends else layer(x))) == NOTHING


SILENCED = [
    layers.Dropout(0.1),
    layers.SpatialDropout2D(0.1),
    layers.AlphaDropout(0.1),
    layers.GaussianDropout(0.1),
    layers.GaussianNoise(0.1),
    layers.TimeDistributed(layers.LSTM(2, recurrent_dropout=0.1)),
    layers.TimeDistributed(layers.Bidirectional(layers.GRU(2, dropout=0.1))),
]


@pytest.mark.parametrize("layer", SILENCED, ids=lambda layer: layer.name)
def test_what_drops_or_disturbs_is_told_apart(layer):
    found = at_the_end(images(layer))
    assert found == Randomness((), (layer.name,), ())
    model = images(layer)
    rk.freeze(model, "end")  # its rates are 0 now
    assert at_the_end(model) == NOTHING


def test_what_never_stops_is_told_apart():
    model = images(Sampling(name="sampling"), Jitter(name="jitter"))
    assert at_the_end(model) == Randomness(("jitter",), (), ("sampling",))
    one, other = (model.predict(np.zeros((1, 8, 8, 3)), verbose=0) for _ in range(2))
    assert not np.array_equal(one, other)


def test_a_layer_made_of_several_kinds_is_named_under_each():
    inner = Jitter(), layers.Dropout(0.5), Sampling()
    assert at_the_end(images(Holding(*inner[:2], name="both"))) == Randomness(
        ("both",), ("both",), ()
    )
    held = layers.Pipeline(list(inner), name="three")
    assert at_the_end(images(held)) == Randomness(("three",), ("three",), ("three",))


def test_only_what_the_cut_depends_on_counts():
    model = ZOO["random_layers"]()
    graph = read(model)
    assert random_before(graph, "x") == NOTHING
    assert random_before(graph, "flip") == Randomness(("flip",), (), ())
    assert random_before(graph, ["conv"]) == Randomness(("flip",), ("noise",), ())
    assert random_before(graph, "drop") == Randomness(("flip",), ("noise", "drop"), ())
    with pytest.raises(rk.errors.UnknownAddressError, match="'flip'"):
        random_before(graph, "filp")


def test_nested_models_and_single_calls():
    flip = layers.RandomFlip(name="flip")
    inner = images(flip, layers.Dropout(0.5, name="drop"), name="inner")
    x = keras.Input((8, 8, 3), name="x")
    y = layers.Add(name="sum")([inner(x), flip(x)])
    model = keras.Model(x, y)
    assert at_the_end(model) == Randomness(("inner/flip", "flip"), ("inner/drop",), ())


def test_a_recorded_training_false_holds():
    inner = images(layers.RandomFlip(name="flip"), layers.Dropout(0.5, name="drop"), name="inner")
    x = keras.Input((8, 8, 3), name="x")
    y = layers.RandomFlip(name="once")(inner(x, training=False), training=False)
    assert at_the_end(keras.Model(x, y)) == NOTHING
    z = layers.Dropout(0.1, name="last")(layers.RandomZoom(0.1, name="zoom")(y, training=True))
    assert at_the_end(keras.Model(x, z)) == Randomness(("zoom",), ("last",), ())


class Brighter(layers.Layer):
    """A user's augmentation that holds no generator; in half of the batches it does something."""

    def __init__(self, inner=None, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x, training=None):
        x = x if self.inner is None else self.inner(x)
        if not training:
            return x
        return tf.cond(tf.random.uniform([]) < 0.5, lambda: 2 * x, lambda: x)


class Noise(layers.Layer):
    """Always random, from Keras's own generator."""

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x))


class Twice(layers.Layer):
    """A user's layer that is not random, and differs in training."""

    def call(self, x, training=None):
        return 2 * x if training else x


def test_layers_that_draw_without_a_generator_are_found_by_tracing():
    called = [
        Brighter(name="brighter"),
        layers.Conv2D(3, 1, name="conv"),
        Twice(name="twice"),
        Noise(name="noise"),
        layers.Lambda(lambda x: tf.image.random_hue(x, 0.1), name="hue"),
        layers.Lambda(lambda x: x + 1, name="one"),
        Brighter(layers.Conv2D(3, 1), name="holding"),
    ]
    assert at_the_end(images(*called)) == Randomness(
        ("brighter", "holding"), (), ("noise", "hue"), ("brighter", "noise", "hue", "holding")
    )
    assert at_the_end(images(called[1], called[2], called[5])) == NOTHING
    x = keras.Input((8, 8, 3), name="x")
    assert at_the_end(keras.Model(x, called[0](x, training=False))) == NOTHING


@pytest.mark.parametrize(
    ("build", "silenced"),
    [
        (keras.applications.MobileNetV2, 0),
        (keras.applications.EfficientNetB0, 10),  # nine of its blocks, and before the classifier
        (keras.applications.MobileNet, 1),
    ],
)
def test_of_application_models_nothing_but_dropout_is_random(build, silenced):
    found = at_the_end(build(weights=None, input_shape=(32, 32, 3), classes=2))
    assert (found.augmenting, len(found.silenced), found.always) == ((), silenced, ())


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_of_transformers_nothing_but_dropout_is_random(name):
    found = at_the_end(HUB[name].build())
    assert set(HUB[name].blocks) <= set(found.silenced)
    assert (found.augmenting, found.always) == ((), ())
