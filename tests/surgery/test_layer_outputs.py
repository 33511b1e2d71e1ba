"""Keras's own way to a part of a model, `keras.Model(model.input, layer.output)`, kept open."""

import keras
import numpy as np
import pytest
from contract import arrays
from zoo import ZOO

import reusekit as rk
from reusekit.graph import cut_points, read
from reusekit.surgery import clone, extract, flatten, insert, split
from reusekit.surgery.certificate import random_inputs
from reusekit.surgery.prefix import take_over


def reached(model, x):
    """The values of layers' outputs by the names of those of which Keras makes a model."""
    found = {}
    for layer in model.layers:
        try:
            part = keras.Model(model.input, layer.output)
        except (ValueError, AttributeError, KeyError, IndexError):
            continue
        found[layer.name] = arrays(part(x, training=False))
    return found


def assert_same(found, before):
    assert found.keys() == before.keys()
    for name, values in before.items():
        for one, other in zip(found[name], values, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("name", ZOO)
def test_what_is_made_of_a_model_leaves_its_layers_their_outputs(name):
    model = ZOO[name]()
    x = random_inputs(read(model))
    before = reached(model, x)
    for point in cut_points(model):
        split(model, point.at)
        extract(model, point.at)
        insert(model, keras.layers.Identity(), after=point.at)
    for how in ("share", "copy"):
        clone(model, how)
    flatten(model)
    rk.freeze(model, up_to=None)
    assert_same(reached(model, x), before)


# The layers of that one are called on masks that a part of it does not have.
@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"masked_by_insertion"}))
def test_a_model_that_is_taken_over_has_its_layers_for_itself(name):
    model = ZOO[name]()
    x = random_inputs(read(model))
    before = reached(model, x)
    expected = arrays(model(x, training=False))
    inputs = [keras.Input(batch_shape=i.shape, dtype=i.dtype, name=i.name) for i in model.inputs]
    whole = take_over(model, keras.Model(inputs, inputs))
    x = keras.tree.flatten(x)
    for one, other in zip(arrays(whole(x, training=False)), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    found = reached(whole, x)
    assert_same({name: values for name, values in found.items() if name in before}, before)
