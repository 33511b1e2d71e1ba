import keras
import pytest
from zoo import ZOO

from reusekit.errors import NoGraphError
from reusekit.graph import read


def addresses(name):
    return [tensor.address for tensor in read(ZOO[name]()).tensors]


def test_nested_models_are_inlined_to_any_depth():
    assert addresses("nested_three_deep") == [
        "outer_in",
        "outer_a",
        "middle/middle_a",
        "middle/inner/inner_a",
        "middle/inner/core/deep",
        "middle/inner/inner_out",
        "middle/middle_out",
        "outer_out",
    ]


def test_calls_of_a_shared_layer_are_numbered_from_zero():
    assert addresses("layer_called_twice") == [
        "x",
        "shared@0",
        "scale0",
        "shared@1",
        "scale1",
        "head",
    ]


def test_calls_of_a_nested_model_are_numbered():
    found = addresses("siamese")
    assert "tower@0/a" in found
    assert "tower@1/b" in found


def test_outputs_of_one_call_are_numbered():
    graph = read(ZOO["lstm_with_states"]())
    assert {"lstm:0", "lstm:1", "lstm:2"} <= set(graph.names)
    assert graph.ambiguous["lstm"] == ("lstm:0", "lstm:1", "lstm:2")


def test_a_nested_model_and_its_input_are_names_for_what_they_stand_for():
    graph = read(ZOO["sequential_in_functional"]())
    assert graph.names["stack"] is graph.names["stack/b"]


def test_masks_are_tensors_of_the_graph():
    graph = read(ZOO["masked_attention"]())
    attention = graph.maker[graph.names["attention"]]
    ((masked, mask),) = attention.masks
    assert (masked.address, mask.dtype) == ("project", "bool")
    assert mask in graph.free


def test_a_mask_that_attention_takes_off_is_not_read_later():
    """The sum after an attention has no mask when the model runs, so the next one reads none."""
    graph = read(ZOO["masked_attention"]())
    assert graph.maker[graph.names["again"]].masks == ()


def test_a_mask_is_followed_into_a_nested_model():
    graph = read(ZOO["mask_into_a_nested_model"]())
    pairs = graph.maker[graph.names["block/attention"]].masks
    assert [tensor.address for tensor, _ in pairs] == ["block/project", "embed"]


def test_a_training_flag_reaches_the_layers_of_the_nested_model_it_was_given_to():
    graph = read(ZOO["recorded_training_flag"]())
    assert graph.maker[graph.names["base/drop"]].kwargs == {"training": False}
    assert graph.maker[graph.names["head"]].kwargs == {}


def test_a_conversion_at_the_border_of_a_nested_model_is_a_call():
    graph = read(ZOO["mixed_precision"]())
    conversion = graph.maker[graph.names["sub/inner"]]
    assert conversion.inputs[0].dtype == "bfloat16"
    assert conversion.outputs[0].dtype == "float32"


def test_what_no_output_depends_on_is_left_out():
    inner = keras.Input((3,), name="inner")
    a, b = (keras.layers.Dense(2, name=name)(inner) for name in "ab")
    sub = keras.Model(inner, [a, b], name="sub")
    x = keras.Input((3,), name="x")
    graph = read(keras.Model(x, sub(x)[0], name="m"))
    assert [call.address for call in graph.calls] == ["x", "sub/a"]
    assert "sub/b" not in graph.names


def test_reading_twice_gives_the_same_order_and_changes_nothing():
    model = ZOO["residual"]()
    calls = [len(layer._inbound_nodes) for layer in model.layers]
    one, two = read(model), read(model)
    assert [call.address for call in one.calls] == [call.address for call in two.calls]
    assert [len(layer._inbound_nodes) for layer in model.layers] == calls


def test_a_subclassed_model_is_refused_with_what_can_be_done():
    class Net(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(NoGraphError, match=r"class Net.*keras.Model\(inputs, model.call"):
        read(Net(name="net"))


def test_a_sequential_without_a_shape_is_refused():
    with pytest.raises(NoGraphError, match=r"model.build\(input_shape\)"):
        read(keras.Sequential([keras.layers.Dense(2)]))


def test_what_is_no_model_is_refused():
    with pytest.raises(NoGraphError, match="Received: str: 'ResNet50'"):
        read("ResNet50")
