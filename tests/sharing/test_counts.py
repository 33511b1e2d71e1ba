"""Parameters counted once, by what becomes of them in training."""

import keras
import pytest

import reusekit as rk
from reusekit.sharing import count_params


def test_freezing_moves_parameters_and_loses_none():
    model = rk.load_backbone("reusekit/glyphnet").model
    before = count_params(model)
    assert before.frozen == 0
    assert before.state == sum(
        2 * layer.moving_mean.shape[0]
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    model.trainable = False
    after = count_params(model)
    assert (after.total, after.trainable, after.state) == (before.total, 0, before.state)
    assert after.frozen == before.trainable
    model.trainable = True


def test_a_shared_layer_counts_once():
    layer = keras.layers.Dense(4)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layer(layer(inputs)))
    assert count_params(model).trainable == 20


@pytest.mark.parametrize("what", [keras.Sequential([keras.layers.Dense(3)]), "model"])
def test_what_has_no_weights_yet_is_refused(what):
    with pytest.raises(rk.errors.TieError, match=r"Expected (a model that|model to be)"):
        count_params(what)
