import keras
import pytest
from zoo import ZOO

from reusekit.graph import (
    AddressError,
    AmbiguousAddressError,
    ForeignTensorError,
    UnknownAddressError,
    cut_points,
    read,
    resolve,
)


@pytest.fixture
def graph():
    return read(ZOO["layer_called_twice"]())


def found(graph, at):
    return [tensor.address for tensor in resolve(graph, at)]


def test_numbers_may_be_written_where_they_are_not_needed(graph):
    assert found(graph, "head@0") == found(graph, "head:0") == found(graph, "head@0:0") == ["head"]


def test_structures_are_flattened_and_each_tensor_comes_once(graph):
    assert found(graph, ["head", ("scale0", {"again": "head"})]) == ["head", "scale0"]


def test_keras_tensors_cut_points_and_tensors_are_addresses_too(graph):
    tensor = graph.names["scale0"]
    point = cut_points(graph)["scale0"]
    assert resolve(graph, [tensor.source, point, tensor]) == [tensor]


@pytest.mark.parametrize(
    ("at", "kind", "message"),
    [
        ("heat", UnknownAddressError, "received 'heat'. Did you mean 'head'?"),
        ("shared", AmbiguousAddressError, "may mean 'shared@0', 'shared@1'"),
        ("shared@7", UnknownAddressError, "Did you mean 'shared@"),
        ([], AddressError, "at least one address"),
        (3, AddressError, "received int: 3"),
        (keras.KerasTensor((2,)), ForeignTensorError, "not part of it"),
    ],
)
def test_what_means_nothing_is_refused(graph, at, kind, message):
    with pytest.raises(kind, match=message):
        resolve(graph, at)


def test_a_tensor_made_twice_is_ambiguous():
    model = ZOO["siamese"]()
    with pytest.raises(AmbiguousAddressError, match="2 times: 'tower@0/a', 'tower@1/a'"):
        resolve(read(model), model.get_layer("tower").get_layer("a").output)


def test_a_nested_models_output_is_known_by_the_tensor_its_call_returned():
    x = keras.Input((4,), name="x")
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")], name="inner")
    model = keras.Model(x, inner(x), name="m")
    assert [t.address for t in resolve(read(model), model.output)] == ["inner/d"]


def test_a_layers_tensor_in_another_model_is_pointed_to_by_its_address():
    x = keras.Input((4,), name="x")
    layer = keras.layers.Dense(4, name="d")
    first = keras.Model(x, layer(x), name="first")
    other = keras.Input((4,), name="other")
    second = keras.Model(other, layer(other), name="second")
    with pytest.raises(ForeignTensorError, match="calls its layer at 'd'"):
        resolve(read(second), first.output)
