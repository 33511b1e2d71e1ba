"""Also the examples by which the essay on models as graphs is known."""

import keras
import numpy as np
import pytest
from zoo import ZOO

from reusekit.errors import AddressError, CutOrderError, SurgeryError
from reusekit.graph import cut_points
from reusekit.surgery import extract, segment, split


@pytest.fixture(scope="module")
def resnet():
    return keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=5)


def test_the_output_of_one_inner_layer(resnet):
    """`get_outputs_of(resnet, "add_15")`: today the layer is `conv5_block3_add`."""
    features = extract(resnet, "conv5_block3_add")
    assert features.output.shape == (None, 1, 1, 2048)
    assert [id(v) for v in features.weights] == [
        id(v) for v in resnet.weights if "predictions" not in v.path
    ]


def test_two_inner_layers_at_once(resnet):
    shallow, deep = extract(resnet, ["conv2_block3_out", "conv4_block6_out"]).output
    assert (shallow.shape, deep.shape) == ((None, 8, 8, 256), (None, 2, 2, 1024))


def test_a_sequential_without_its_first_two_layers():
    model = keras.Sequential(
        [keras.Input((4,)), *(keras.layers.Dense(4, name=f"d{n}") for n in range(4))]
    )
    rest = split(model, "d1").top
    assert [layer.name for layer in rest.layers[1:]] == ["d2", "d3"]


def test_output_has_the_structure_of_at():
    model = ZOO["residual"]()
    found = extract(model, {"a": "stem", "b": ("out0", ["head"])})
    assert found.output["a"].shape == (None, 8, 8, 4)
    assert isinstance(found.output["b"], tuple)
    assert extract(model, cut_points(model)[1]).output.shape == (None, 8, 8, 4)


def test_the_first_token_of_a_sequence_and_the_rest_as_it_is():
    model = sequence()
    whole = extract(model, ["ids_embedded", "dense"])(np.array([[1, 2, 3]]), training=False)
    first = extract(model, ["ids_embedded", "dense"], "token")(np.array([[1, 2, 3]]))
    np.testing.assert_array_equal(first[0], np.asarray(whole[0])[:, 0])
    np.testing.assert_array_equal(first[1], whole[1])


def sequence():
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(9, 4, mask_zero=True, name="ids_embedded")(ids)
    x = keras.layers.LSTM(5, name="lstm")(x)
    return keras.Model(ids, keras.layers.Dense(2, name="dense")(x))


@pytest.mark.parametrize(("pooling", "reduce"), [("avg", np.mean), ("max", np.max)])
def test_pooling_reduces_what_has_space_and_leaves_the_rest(pooling, reduce):
    model = ZOO["residual"]()
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    plain = extract(model, ["out1", "head"])(x, training=False)
    pooled = extract(model, ["out1", "head"], pooling)(x, training=False)
    whole = keras.ops.convert_to_numpy(plain[0])
    np.testing.assert_allclose(pooled[0], reduce(whole, axis=(1, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled[1], plain[1])


def test_bad_input_is_refused():
    with pytest.raises(SurgeryError, match=r"'avg', 'max', 'token' or None\. Received: 'average'"):
        extract(ZOO["linear"](), "a", pooling="average")
    with pytest.raises(AddressError, match="at least one address"):
        extract(ZOO["linear"](), [])


def test_segments_hand_through_what_comes_late():
    model = ZOO["lstm_with_states"]()
    first, second, third = segment(model, ["lstm:0", "decoder"])
    assert len(first.outputs) == 3
    assert [len(part.outputs) for part in (second, third)] == [1, 1]


@pytest.mark.parametrize("at", [[], "a", ["b", "a"], ["a", "a"]])
def test_segments_must_be_a_list_from_shallow_to_deep(at):
    with pytest.raises((AddressError, CutOrderError)):
        segment(ZOO["linear"](), at)
