import keras
import pytest
from zoo import ZOO

import reusekit as rk
from reusekit.errors import (
    AddressError,
    AmbiguousAddressError,
    ForeignTensorError,
    UnknownAddressError,
)
from reusekit.graph import cut_points, find_layers, read, resolve


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
    assert resolve(graph, [tensor.keras_tensor, point, tensor]) == [tensor]


@pytest.mark.parametrize(
    ("at", "kind", "message"),
    [
        ("heat", UnknownAddressError, "Received: 'heat'. Did you mean 'head'?"),
        ("shared", AmbiguousAddressError, "may mean 'shared@0', 'shared@1'"),
        ("shared@7", UnknownAddressError, "Did you mean 'shared@"),
        ([], AddressError, "at least one address"),
        (3, AddressError, "Received: int: 3"),
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
    with pytest.raises(ForeignTensorError, match="calls of its layer: 'd'"):
        resolve(read(second), first.output)


@pytest.fixture(scope="module")
def towers():
    """Two calls of a nested model that holds another, a wrapped layer and an operation."""
    x = keras.Input((2, 4), name="x")
    deep = keras.Sequential([keras.Input((2, 4)), keras.layers.ReLU(name="r")], name="deep")
    y = keras.layers.TimeDistributed(keras.layers.Dense(4, name="d"), name="each")(x)
    tower = keras.Model(x, keras.layers.LeakyReLU(name="leaky")(deep(y)), name="tower")
    left, right = keras.Input((2, 4), name="left"), keras.Input((2, 4), name="right")
    shared = keras.layers.ReLU(max_value=6, name="shared")
    both = keras.layers.Add(name="both")([shared(tower(left)), shared(tower(right))])
    return keras.Model([left, right], keras.ops.relu(both), name="m")


def test_layers_are_found_by_kind_inside_nested_models(towers):
    relus = ("tower@0/deep/r", "shared@0", "tower@1/deep/r", "shared@1")
    assert sorted(find_layers(towers, keras.layers.ReLU)) == sorted(relus)
    mixed = find_layers(towers, [keras.layers.LeakyReLU, keras.layers.ReLU])
    assert set(mixed) == {*relus, "tower@0/leaky", "tower@1/leaky"}
    order = [call.address for call in read(towers).calls]
    assert list(mixed) == sorted(mixed, key=order.index)
    # What a composite layer wraps has no address.
    assert find_layers(towers, keras.layers.Dense) == ()
    limited = find_layers(read(towers), lambda layer: getattr(layer, "max_value", None) == 6)
    assert limited == ("shared@0", "shared@1")
    nested = find_layers(towers, keras.Model)
    assert set(nested) == {f"tower@{n}{end}" for n in (0, 1) for end in ("", "/deep")}
    assert nested.index("tower@0") < nested.index("tower@0/deep")


def test_all_layers_of_a_kind_are_edited(towers):
    found = find_layers(towers, keras.layers.ReLU)
    layers = [keras.layers.Rescaling(0.0, name=f"zero{number}") for number in range(len(found))]
    edited = rk.edit(towers, *map(rk.Replace, found, layers)).model
    assert find_layers(edited, keras.layers.ReLU) == ()
    assert len(find_layers(edited, keras.layers.Rescaling)) == 4
    ones = [keras.ops.ones((1, 2, 4))] * 2
    assert not keras.ops.any(edited(ones)) and find_layers(towers, keras.layers.ReLU) == found


@pytest.mark.parametrize("kind", ["ReLU", int, (), [keras.layers.ReLU, "x"], keras.layers.ReLU()])
def test_what_is_no_kind_of_layer_is_refused(towers, kind):
    with pytest.raises(rk.SurgeryError, match="Expected kind to be a layer class, a list of these"):
        find_layers(towers, kind)
