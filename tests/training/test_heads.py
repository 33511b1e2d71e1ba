"""Classification heads: probabilities from features of any scale, maps or vectors."""

import numpy as np
import pytest

import reusekit as rk
from reusekit import heads


@pytest.mark.parametrize("shape", [(6,), (4, 5, 6), (None, None, 6)])
@pytest.mark.parametrize("units", [0, 16])
def test_gives_probabilities(shape, units):
    head = heads.classifier(shape, classes=3, units=units, dropout=0.3)
    features = np.random.default_rng(0).normal(size=(2, *(s or 7 for s in shape)))
    probabilities = np.asarray(head(features))
    assert probabilities.shape == (2, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_maps_are_averaged():
    maps = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype("float32")
    head = heads.classifier((4, 5, 6), classes=3)
    pooled = heads.classifier((6,), classes=3)
    pooled.set_weights(head.get_weights())
    np.testing.assert_allclose(head(maps), pooled(maps.mean(axis=(1, 2))), rtol=1e-5)


def test_standardizing_takes_out_scale_and_offset():
    features = np.random.default_rng(0).normal(size=(100, 6)).astype("float32")
    head = heads.classifier((6,), classes=3, standardize=features)
    scaled = heads.classifier((6,), classes=3, standardize=features * 1000 + 50)
    scaled.layers[-1].set_weights(head.layers[-1].get_weights())
    np.testing.assert_allclose(scaled(features * 1000 + 50), head(features), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"input_shape": (None, 4, 4, 8)}, {"input_shape": (4, 8)}, {"classes": 0}]
)
def test_what_makes_no_head_is_refused(wrong):
    with pytest.raises(rk.HeadError, match="without the batch axis"):
        heads.classifier(**{"input_shape": (8,), "classes": 3} | wrong)
