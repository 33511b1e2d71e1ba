"""From features of any rank to one vector, by numbers."""

import keras
import numpy as np
import pytest

import reusekit as rk
from reusekit.training.heads.pooling import pool

SHAPES = {"sequence": (5, 6), "map": (4, 5, 6), "volume": (2, 3, 4, 6)}


def values(shape) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")


def pooled(features, pooling, shape=None) -> np.ndarray:
    inputs = keras.Input(features.shape[1:] if shape is None else shape)
    model = keras.Model(inputs, pool(inputs, pooling, "head"))
    return np.asarray(model(features))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_average_max_and_both(shape):
    x = values(shape)
    axes = tuple(range(1, x.ndim - 1))
    average, largest = x.mean(axis=axes), x.max(axis=axes)
    np.testing.assert_allclose(pooled(x, "avg"), average, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled(x, "max"), largest)
    both = np.concatenate([average, largest], axis=1)
    np.testing.assert_allclose(pooled(x, "concatenated"), both, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_flatten_keeps_every_position(shape):
    x = values(shape)
    np.testing.assert_array_equal(pooled(x, "flatten"), x.reshape(len(x), -1))


def test_token_is_the_first_of_a_sequence():
    x = values((5, 6))
    np.testing.assert_array_equal(pooled(x, "token"), x[:, 0])
    np.testing.assert_array_equal(pooled(x, "token", (None, 6)), x[:, 0])


@pytest.mark.parametrize("pooling", ["avg", "max", "concatenated", "attention", "flatten"])
def test_a_vector_is_taken_as_it_is(pooling):
    x = values((6,))
    np.testing.assert_array_equal(pooled(x, pooling), x)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_attention_starts_as_the_average(shape):
    x = values(shape)
    axes = tuple(range(1, x.ndim - 1))
    np.testing.assert_allclose(pooled(x, "attention"), x.mean(axis=axes), rtol=1e-4, atol=1e-6)


def test_attention_learns_where_to_look():
    """One position carries the class, the others noise that an average does not get rid of."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    labels, place = generator.integers(0, 2, 256), generator.integers(0, 20, 256)
    x = generator.normal(size=(256, 20, 6)).astype("float32") * 3
    x[..., 0] = 0
    x[np.arange(256), place] = 0
    x[np.arange(256), place, 0] = 6
    x[np.arange(256), place, 1] = 2 * labels - 1
    accuracy = {}
    for pooling in ("avg", "attention"):
        head = rk.heads.Classifier(2, pooling=pooling)
        model = head.build((4, 5, 6))
        model.compile(keras.optimizers.Adam(0.02), **head.compile_args)
        history = model.fit(x.reshape(256, 4, 5, 6), labels, 32, epochs=40, verbose=0).history
        accuracy[pooling] = history["accuracy"][-1]
    assert accuracy["attention"] > 0.9 > 0.8 > accuracy["avg"]


@pytest.mark.parametrize("pooling", ["avg", "max", "concatenated", "attention"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_axes_between_batch_and_channels_may_be_unknown(shape, pooling):
    x = values(shape)
    unknown = (*[None] * (len(shape) - 1), shape[-1])
    expected = pooled(x, pooling)  # attention starts as the average, so it is comparable too
    np.testing.assert_allclose(pooled(x, pooling, unknown), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["avg", "attention"])
def test_masked_positions_do_not_count(pooling):
    keras.utils.set_random_seed(0)
    ids = keras.Input((None,), dtype="int32", name="ids")
    embedded = keras.layers.Embedding(9, 4, mask_zero=True, name="embed")(ids)
    model = rk.attach(keras.Model(ids, embedded), rk.heads.Classifier(2, pooling=pooling))
    if pooling == "attention":
        kernel = model.get_layer("head_query").kernel
        kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    short = model(np.array([[3, 7, 2]]))
    np.testing.assert_allclose(model(np.array([[3, 7, 2, 0, 0]])), short, rtol=1e-5)
    assert np.abs(np.asarray(model(np.array([[3, 7, 2, 1, 1]])) - short)).max() > 1e-4


@pytest.mark.parametrize(
    ("shape", "pooling", "message"),
    [
        ((4, None, 6), "flatten", r"known axes, to flatten them\. Received: .*\(4, None, 6\)"),
        ((6,), "token", r"a sequence, \(length, channels\).*Received: .*\(6,\)"),
        ((4, 4, 6), "token", r"a sequence, \(length, channels\).*Received: .*\(4, 4, 6\)"),
        ((4, None), "avg", r"a known number of channels\. Received: .*\(4, None\)"),
        ((2, 2, 2, 2, 6), "avg", r"up to three axes before\. Received: .*\(2, 2, 2, 2, 6\)"),
        ((4, 6), "average", r"Received: 'average'\. Did you mean 'avg'\?"),
    ],
)
def test_what_cannot_be_pooled_is_refused(shape, pooling, message):
    with pytest.raises(rk.errors.HeadError, match=message):
        rk.heads.Classifier(3, pooling=pooling).build(shape)


@pytest.fixture
def channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_channels_come_last_whatever_the_keras_json_says(channels_first, pooling):  # pipeline F
    x = values((4, 5, 6))
    expected = x.mean(axis=(1, 2)) if pooling == "avg" else x.max(axis=(1, 2))
    np.testing.assert_allclose(pooled(x, pooling), expected, rtol=1e-5, atol=1e-6)
    image = keras.Input((4, 5, 6), name="image")
    model = keras.Model(image, keras.layers.Rescaling(1.0, name="same")(image))
    features = rk.extract(model, "same", pooling=pooling)(x)
    np.testing.assert_allclose(np.asarray(features), expected, rtol=1e-5, atol=1e-6)
