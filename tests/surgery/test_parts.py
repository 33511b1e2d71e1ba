import gc
import weakref

import keras
import numpy as np
import pytest
from contract import arrays, assert_equal
from zoo import ZOO

from reusekit.errors import (
    AmbiguousAddressError,
    CertificateError,
    CutOrderError,
    ForeignTensorError,
    NoGraphError,
    UnknownAddressError,
    WideCutError,
)
from reusekit.graph import cut_points, read
from reusekit.surgery import clone, split
from reusekit.surgery.certificate import random_inputs


def call_counts(model):
    return [len(layer._inbound_nodes) for layer in model.layers]


def names(model):
    return [layer.name for layer in model.layers]


@pytest.mark.parametrize("application", ["MobileNetV3Small", "EfficientNetV2B0", "NASNetMobile"])
def test_a_sample_of_the_application_models(application):
    maker = getattr(keras.applications, application)
    model = maker(weights=None, input_shape=(32, 32, 3), classes=5)
    graph = read(model)
    x = random_inputs(graph, batch=1)
    expected = model(x, training=False)
    tensors = graph.tensors
    for tensor in tensors[len(tensors) // 6 :: len(tensors) // 3]:
        assert split(model, tensor.address).verify(x, expected).parameters_conserved


def test_skip_connections_cross_as_well():
    parts = split(ZOO["residual"](), "conv0")
    assert parts.frontier == ("conv0", "stem")
    assert [tuple(t.shape) for t in parts.top.inputs] == [(None, 8, 8, 4)] * 2
    assert [tensor.name for tensor in parts.top.inputs] == ["conv0", "stem"]


def test_a_cut_between_two_calls_of_a_layer_shares_it():
    model = ZOO["layer_called_five_times"]()
    parts = split(model, "shared@2")
    shared = model.get_layer("shared")
    assert parts.bottom.get_layer("shared") is parts.top.get_layer("shared") is shared
    assert parts.shared == tuple(variable.path for variable in shared.weights)


def test_a_cut_inside_a_nested_model_leaves_the_others_whole():
    parts = split(ZOO["nested_three_deep"](), "middle/inner/inner_a")
    assert names(parts.top) == [
        "middle.inner.inner_a",
        "core",
        "inner_out",
        "middle_out",
        "outer_out",
    ]


def test_layers_that_share_a_name_come_out_under_their_addresses():
    parts = split(ZOO["names_shared_across_nesting"](), "first/a")
    assert names(parts.top) == ["first.a", "b", "second", "a"]
    model = ZOO["names_shared_across_nesting"]()
    assert split(model, "second/a").verify().exact


def test_an_output_before_the_cut_passes_through():
    model = ZOO["early_output"]()
    parts = split(model, "middle")
    assert parts.frontier == ("middle", "early")
    assert len(parts.top.outputs) == 2


def test_several_tensors_at_once():
    parts = split(ZOO["several_inputs_and_outputs"](), ["da", "b"])
    assert parts.frontier == ("da", "b")
    assert parts.verify().exact


def test_cut_points_and_keras_tensors_are_taken():
    model = ZOO["residual"]()
    by_point = split(model, cut_points(model)["out0"])
    by_tensor = split(model, model.get_layer("out0").output)
    assert by_point.frontier == by_tensor.frontier == ("out0",)


def test_training_the_top_trains_the_model():
    model = ZOO["linear"]()
    _, top = split(model, "a")
    top.get_layer("b").bias.assign([7.0, 7.0])
    np.testing.assert_array_equal(model.get_layer("b").bias, [7.0, 7.0])


def test_a_strict_cut_names_what_is_missing_and_the_nearest_clean_cuts():
    model = ZOO["residual"]()
    before = call_counts(model)
    with pytest.raises(WideCutError) as caught:
        split(model, "relu1", strict=True)
    assert "'out0' would cross as well" in str(caught.value)
    assert "'out0' before it and 'out1' after it" in str(caught.value)
    assert call_counts(model) == before


def test_a_strict_cut_may_have_free_tensors():
    (mask,) = split(ZOO["masked_lstm"](), "lstm", strict=True).free
    assert mask.startswith("not_equal")


@pytest.mark.parametrize(
    ("name", "at", "kind"),
    [
        ("residual", "conv9", UnknownAddressError),
        ("layer_called_twice", "shared", AmbiguousAddressError),
        ("residual", keras.KerasTensor((None, 2)), ForeignTensorError),
        ("residual", ["conv0", "out1"], CutOrderError),
    ],
)
def test_a_refused_cut_leaves_no_trace(name, at, kind):
    model = ZOO[name]()
    before = call_counts(model)
    with pytest.raises(kind):
        split(model, at)
    assert call_counts(model) == before


def test_a_subclassed_model_is_refused():
    class Net(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(NoGraphError):
        split(Net(), "a")


def test_a_bottom_makes_no_new_calls():
    model = ZOO["residual"]()
    before = call_counts(model)
    split(model, "out1")
    after = dict(zip(names(model), call_counts(model), strict=True))
    grown = [n for n, b in zip(names(model), before, strict=True) if after[n] > b]
    assert grown == ["pool", "head"]


def test_a_clone_takes_the_records_of_its_splits_with_it():
    model = ZOO["residual"]()
    before = call_counts(model)
    twin = clone(model)
    parts = split(twin, "out0")
    assert parts.verify().exact
    gone = [weakref.ref(part) for part in (twin, parts.top, parts.top.get_layer("head"))]
    del twin, parts
    gc.collect()
    assert [reference() for reference in gone] == [None, None, None]
    assert call_counts(model) == before


def test_a_certificate_is_refused_where_parts_do_not_agree():
    # Some weights let nothing through the activation, and then the parts agree.
    keras.utils.set_random_seed(0)
    model = ZOO["linear"]()
    parts = split(model, "a")
    other = split(ZOO["linear"](), "a")
    with pytest.raises(CertificateError, match="outputs that differ by"):
        type(parts)(**{**vars(parts), "top": other.top}).verify()


def test_a_certificate_is_refused_where_flags_changed():
    model = ZOO["linear"]()
    parts = split(model, "a")
    model.get_layer("b").trainable = False
    with pytest.raises(CertificateError, match="trainable flags"):
        parts.verify()


def test_a_frozen_prefix_stays_frozen():
    bottom, _ = split(ZOO["frozen_parts"](), "frozen")
    assert bottom.trainable_weights == []


def test_random_state_does_not_disturb_a_certificate():
    model = ZOO["random_layers"]()
    seeds = [v for v in model.variables if "seed" in v.path]
    before = arrays(seeds)
    assert split(model, "noise").verify().exact
    assert_equal(arrays(seeds), before)


def test_a_deep_chain_needs_no_recursion():
    depth = 1500
    x = y = keras.Input((1,), name="x")
    for number in range(depth):
        y = keras.layers.Identity(name=f"i{number}")(y)
    deep = read_without_building(x, y)
    parts = split(deep, f"i{depth // 2}")
    assert len(parts.bottom.layers) == depth // 2 + 2


def read_without_building(x, y):
    """Keras sorts a graph by recursion, so that a model this deep needs room to be made."""
    import sys

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        return keras.Model(x, y, name="deep")
    finally:
        sys.setrecursionlimit(limit)


def test_parts_are_exported_where_the_source_could(tmp_path):
    pytest.importorskip("tensorflow")
    model = ZOO["linear"]()
    for part in split(model, "a"):
        part.export(tmp_path / part.name, verbose=False)
        assert (tmp_path / part.name).exists()
