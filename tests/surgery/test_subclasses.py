"""Models of a class of their own: with a graph they work, without one they are refused."""

import warnings

import keras
import numpy as np
import pytest
from contract import arrays, assert_equal
from zoo import ZOO
from zoo_hub import HUB

from reusekit.errors import NoGraphError
from reusekit.graph import count_flops, cut_points, keras_internals, read
from reusekit.surgery import (
    Insert,
    clone,
    edit,
    expand,
    extract,
    flatten,
    insert,
    prepend,
    remove,
    replace,
    segment,
    split,
)
from reusekit.surgery.certificate import random_inputs

layer = keras.layers.Identity


class WithoutGraph(keras.Model):
    """Its computation is Python code."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3, name="dense")

    def call(self, x):
        return self.dense(x)


OPERATIONS = {
    "cut_points": cut_points,
    "count_flops": lambda model: count_flops(read(model)),
    "split": lambda model: split(model, "a"),
    "segment": lambda model: segment(model, ["a"]),
    "extract": lambda model: extract(model, "a"),
    "insert": lambda model: insert(model, layer(), after="a"),
    "replace": lambda model: replace(model, "a", layer()),
    "remove": lambda model: remove(model, "a"),
    "edit": lambda model: edit(model, Insert(layer(), after="a")),
    "edit a copy": lambda model: edit(model, Insert(layer(), after="a"), weights="copy"),
    "flatten": flatten,
    "expand": lambda model: expand(model, "a"),
    "clone": clone,
    "clone fresh": lambda model: clone(model, "fresh"),
    "clone sharing": lambda model: clone(model, "share"),
    "prepend": lambda model: prepend(model, layer()),
    "prepend it": lambda model: prepend(ZOO["linear"](), model),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_class_without_a_graph_is_refused_in_one_sentence(name):
    model = WithoutGraph(name="net")
    model(np.ones((1, 4)))
    with pytest.raises(NoGraphError) as caught:
        OPERATIONS[name](model)
    message = str(caught.value)
    assert "Received: 'net' of class WithoutGraph" in message
    assert "make it with keras.Model(inputs, model.call(inputs))" in message
    assert message.count(". ") == 1 and message.endswith(".")


def test_what_the_refusal_says_can_be_done():
    model = WithoutGraph(name="net")
    x = np.ones((1, 4), "float32")
    expected = model(x)
    inputs = keras.Input((4,), name="x")
    functional = keras.Model(inputs, model.call(inputs))
    np.testing.assert_array_equal(flatten(functional)(x), expected)


def backbone():
    return HUB["resnet"].build()


@pytest.mark.parametrize("weights", ["copy", "fresh"])
def test_a_clone_of_a_backbone_is_one(weights):
    model = backbone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin = clone(model, weights)
    assert type(twin) is type(model)
    assert twin.get_config() == model.get_config()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda model: clone(model, "share"), "clone"),
        (lambda model: insert(model, layer(name="i"), after="conv1_bn"), "edited form"),
        (lambda model: edit(model, Insert(layer(name="i"), after="conv1_bn")).model, "edited form"),
        (
            lambda model: insert(model, layer(name="i"), after="conv1_bn", weights="copy"),
            "edited form",
        ),
    ],
)
def test_where_a_class_would_be_expected_and_is_lost_one_warning_says_so(change, what):
    model = backbone()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = change(model)
    (said,) = [str(each.message) for each in caught]
    assert said.startswith(f"The {what} of 'resnet' is a plain functional model, not a ResNetBack")
    assert keras_internals.is_plain_functional(result)
    x = random_inputs(read(model))
    assert_equal(arrays(result(x, training=False)), arrays(model(x, training=False)))


@pytest.mark.parametrize(
    "part",
    [
        flatten,
        lambda model: extract(model, "conv1_bn"),
        lambda model: split(model, "conv1_bn").top,
        lambda model: segment(model, ["conv1_bn"])[0],
        lambda model: prepend(model, keras.layers.Rescaling(2.0)),
    ],
)
def test_parts_are_plain_functional_models_and_nothing_is_said(part):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert keras_internals.is_plain_functional(part(backbone()))


def test_an_edit_of_a_plain_model_says_nothing():
    for name in ("linear", "sequential"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            insert(ZOO[name](), layer(name="i"), after="a", weights="copy")
