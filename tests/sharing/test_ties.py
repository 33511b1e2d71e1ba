"""The ledger names every weight with more than one owner, and only those."""

import math

import keras
import pytest
from keras import layers
from tied_models import TIED
from zoo import ZOO

import reusekit as rk

APPLICATIONS = (
    "ConvNeXtTiny", "EfficientNetB0", "MobileNet", "MobileNetV2", "MobileNetV3Large",
    "MobileNetV3Small", "ResNet50", "ResNet50V2", "VGG16", "Xception",
)  # fmt: skip


@pytest.mark.parametrize("name", APPLICATIONS)
def test_application_models_have_no_ties_and_keras_counts_the_same(name):
    model = getattr(keras.applications, name)(weights=None, include_top=False)
    assert rk.tied_weights(model) == []
    counts = rk.count_params(model)
    assert counts.total == model.count_params()
    assert counts.total == counts.trainable + counts.frozen + counts.state
    assert counts.trainable == sum(math.prod(v.shape) for v in model.trainable_weights)


@pytest.mark.parametrize("kind", TIED)
def test_both_owners_are_named_in_order(kind):
    tied = TIED[kind]()
    ties = rk.tied_weights(tied.model)
    assert [tie.owners[0] for tie in ties] == [tied.source] * len(ties)
    source = tied.end
    assert [tie.variable for tie in ties] == source.weights
    counts = rk.count_params(tied.model)
    assert counts.tied == sum(tie.parameters for tie in ties) == source.count_params()
    assert counts.total == tied.model.count_params()


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_has_ties_only_where_a_layer_stands_in_two_places(name):
    model = ZOO[name]()
    owners = {tie.owners for tie in rk.tied_weights(model)}
    wanted = {("shared", "sub/shared")} if name == "layer_shared_inside_and_outside" else set()
    if name == "variables_as_arguments":
        wanted = {("embed", model.operations[-2].name)}
    assert owners == wanted
    counts = rk.count_params(model)
    assert counts.total == model.count_params()
    assert counts.total == counts.trainable + counts.frozen + counts.state


def test_a_tie_inside_one_layer_is_found_there():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.up = layers.Dense(8, name="up")
            self.down = rk.layers.TiedDense(self.up, name="down")

        def call(self, x):
            return self.down(self.up(x))

    x = keras.Input((4,))
    model = keras.Model(x, Block()(x))
    assert {tie.owners for tie in rk.tied_weights(model)} == {("block/up", "block/down/up")}


def test_a_variable_that_two_layers_merely_hold_is_found():
    class Borrower(keras.layers.Layer):
        def __init__(self, weight):
            super().__init__(name="borrower")
            self.weight = weight

        def call(self, x):
            return x * self.weight

    x = keras.Input((4,))
    dense = layers.Dense(4, name="dense")
    y = dense(x)
    model = keras.Model(x, Borrower(dense.bias)(y))
    [tie] = rk.tied_weights(model)
    assert tie.owners == ("dense", "borrower") and tie.parameters == 4
