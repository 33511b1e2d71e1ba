"""A bottom and a head joined: the same numbers, the same weights, addresses kept."""

import keras
import numpy as np
import pytest

import reusekit as rk


def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 1)).astype("float32")


@pytest.fixture
def bottom():
    return rk.extract(rk.load_backbone("reusekit/glyphnet").model, "block2_out")


def test_computes_what_the_two_compute(bottom):
    head = rk.heads.classifier(bottom.output_shape[1:], classes=4, units=8, dropout=0.5)
    whole = rk.attach(bottom, head)
    expected = head(bottom(images(), training=False), training=False)
    np.testing.assert_allclose(whole(images(), training=False), expected, rtol=1e-6)
    assert whole.get_layer("head_hidden").kernel is head.get_layer("head_hidden").kernel
    assert whole.count_params() == bottom.count_params() + head.count_params()
    assert "block1_out" in [point.at for point in rk.cut_points(whole)]


def test_is_saved_without_a_trace_of_reusekit(bottom, tmp_path):
    head = rk.heads.classifier(bottom.output_shape[1:], classes=4)
    whole = rk.attach(bottom, head)
    whole.save(tmp_path / "whole.keras")
    assert "reusekit" not in whole.to_json()
    loaded = keras.saving.load_model(tmp_path / "whole.keras")
    np.testing.assert_allclose(loaded(images()), whole(images()), rtol=1e-6)


def test_a_bottom_that_does_not_fit_is_refused(bottom):
    with pytest.raises(rk.SurgeryError, match=r"takes \(None, 7\)"):
        rk.attach(bottom, rk.heads.classifier((7,), classes=4))
    with pytest.raises(rk.SurgeryError, match=r"takes \(None, 4, 4, 7\)"):
        rk.attach(bottom, rk.heads.classifier((4, 4, 7), classes=4))
