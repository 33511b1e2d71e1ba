"""Features of several cuts, joined."""

import keras
import numpy as np
import pytest

import reusekit as rk
from reusekit import heads


def features(count=3, examples=4):
    generator = np.random.default_rng(0)
    shapes = [(4, 4, 6), (5, 3), (7,)][:count]
    return [generator.normal(size=(examples, *shape)).astype("float32") for shape in shapes]


def normalized(vectors):
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    return centred / np.sqrt(vectors.var(axis=1, keepdims=True) + 1e-3)


def test_every_tap_is_pooled_and_normalized_by_itself():
    maps, sequence, vector = taps = features()
    model = heads.Multitap(2, pooling="max").build([tap.shape[1:] for tap in taps])
    joined = rk.extract(model, "head_features")(taps)
    expected = [normalized(x) for x in (maps.max(axis=(1, 2)), sequence.max(axis=1), vector)]
    np.testing.assert_allclose(joined, np.concatenate(expected, axis=1), rtol=1e-4, atol=1e-5)


def test_a_single_tap_will_do():
    assert heads.Multitap(3).build((4, 4, 6)).output_shape == (None, 3)
    assert heads.Multitap(3).build([(4, 4, 6)]).output_shape == (None, 3)


def test_taps_may_go_by_addresses_inside_nested_models():
    inner = keras.Input((4, 4, 6), name="in")
    part = keras.Model(inner, keras.layers.Conv2D(3, 2, name="conv")(inner), name="part")
    x = keras.Input((4, 4, 6), name="x")
    whole = keras.Model(x, keras.layers.ReLU(name="relu")(part(x)))
    taps = rk.extract(whole, {at: at for at in ("part/conv", "relu")})
    assert rk.attach(taps, heads.Multitap(5)).output_shape == (None, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heads.Multitap(1), "classes to be .* at least 2"),
        (lambda: heads.Multitap(2, pooling="mean").build((6,)), "Received: 'mean'"),
        (lambda: heads.Multitap(2).build([(6,), (None,)]), "a known number of channels"),
    ],
)
def test_what_makes_no_head_is_refused(make, message):
    with pytest.raises(rk.errors.HeadError, match=message):
        make()
