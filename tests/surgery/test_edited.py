import keras
import numpy as np
import pytest
from contract import arrays, assert_equal
from zoo import ZOO

from reusekit.errors import AmbiguousAddressError, EditError, ShapeError, UnknownAddressError
from reusekit.surgery import Insert, Remove, Replace, edit, extract, insert, remove, replace
from reusekit.surgery.certificate import Snapshot


def names(model):
    return [layer.name for layer in model.layers]


def calls(model):
    return [len(layer._inbound_nodes) for layer in model.layers]


def ones(*shape):
    return np.ones(shape, "float32")


def test_insert_after_reaches_every_reader():
    model = ZOO["residual"]()
    edited = insert(model, keras.layers.Rescaling(0.0, name="zero"), after="stem")
    x = ones(1, 8, 8, 3)
    assert np.abs(extract(model, "out0")(x, training=False)).max() > 0
    np.testing.assert_array_equal(extract(edited, "out0")(x, training=False), 0)


def test_insert_before_reaches_that_call_alone():
    model = ZOO["residual"]()
    edited = insert(model, keras.layers.Rescaling(0.0, name="zero"), before="conv0")
    skip, stem = extract(edited, ["out0", "stem"])(ones(1, 8, 8, 3), training=False)
    np.testing.assert_array_equal(skip, stem)


def test_insert_after_all_calls_or_one():
    model = ZOO["layer_called_five_times"]()
    layer = keras.layers.Rescaling(1.0, name="same")
    every = insert(model, layer, after="shared")
    assert len(layer._inbound_nodes) == 5
    one = insert(model, keras.layers.Rescaling(0.0, name="zero"), after="shared@4")
    x = ones(2, 4)
    np.testing.assert_allclose(every(x), model(x), rtol=1e-6)
    bias = keras.ops.convert_to_numpy(model.get_layer("head").bias)
    np.testing.assert_allclose(one(x), np.broadcast_to(bias, (2, 1)))


def test_several_insertions_at_one_place_come_in_order():
    first, second = (keras.layers.Identity(name=name) for name in ("first", "second"))
    result = edit(ZOO["linear"](), Insert(first, after="a"), Insert(second, after="a"))
    assert names(result.model) == ["x", "a", "first", "second", "drop", "b"]
    assert result.moved["drop"] == "drop"


def test_replace_by_a_layer_of_the_same_name():
    model = ZOO["linear"]()
    result = edit(model, Replace("b", keras.layers.Dense(7, name="b")))
    assert result.model.output_shape == (None, 7)
    assert result.model.get_layer("a") is model.get_layer("a")
    assert result.moved == {"x": "x", "a": "a", "drop": "drop", "b": "b"}


def test_replace_one_call_of_several():
    model = ZOO["layer_called_twice"]()
    edited = replace(model, "shared@1", keras.layers.Dense(4, name="own"))
    assert names(edited) == ["x", "shared", "scale0", "own", "scale1", "head"]


def test_a_change_of_shape_that_still_fits_goes_through():
    edited = replace(ZOO["residual"](), "pool", keras.layers.GlobalMaxPooling2D(name="pool"))
    assert edited.output_shape == (None, 2)
    wider = replace(ZOO["weightless"](), "flat", keras.layers.GlobalAveragePooling2D(name="gap"))
    assert wider.output_shape == (None, 2)


def test_a_shape_that_no_longer_fits_names_the_layer_where_it_breaks():
    model = ZOO["linear"]()
    before, snapshot = calls(model), Snapshot.of(model)
    new = keras.layers.Dense(5, name="wide")
    with pytest.raises(ShapeError, match=r"'b', which took \(None, 3\),.*: \(None, 5\)"):
        edit(model, Replace("a", new))
    assert calls(model) == before
    assert snapshot.changes(model) == []
    assert not new.built


def test_remove_from_a_residual_block():
    model = ZOO["residual"]()
    result = edit(model, Remove("relu0"), Remove("bn1"))
    assert result.moved["relu0"] == "bn0"
    assert result.moved["bn1"] == "conv1"
    assert names(result.model) == [n for n in names(model) if n not in ("relu0", "bn1")]


def test_removing_the_first_layers_of_a_sequential():
    model = keras.Sequential(
        [keras.Input((3,), name="x")]
        + [keras.layers.Dense(3, name=f"d{number}") for number in range(4)],
        name="stack",
    )
    result = edit(model, Remove("d0"), Remove("d1"))
    rest = model.layers[3](model.layers[2](ones(2, 3)))
    np.testing.assert_array_equal(result.model(ones(2, 3)), rest)


def test_editing_inside_a_nested_model_inlines_it():
    model = ZOO["nested_three_deep"]()
    result = edit(model, Remove("middle/inner/core/deep"))
    assert result.moved["middle/inner/core/deep"] == "inner_a"
    assert "inner_a" in names(result.model)
    x = ones(2, 4)
    assert_equal(arrays(remove(model, "middle/inner/core")(x)), arrays(result.model(x)))


def test_editing_both_calls_of_a_nested_model():
    model = ZOO["siamese"]()
    edited = replace(model, "tower", keras.layers.Dense(2, name="simpler"))
    assert names(edited) == ["left", "right", "simpler", "difference", "head"]


def test_copies_leave_the_source_alone():
    model = ZOO["linear"]()
    edited = insert(model, keras.layers.Identity(name="i"), after="a", weights="copy")
    assert {id(v) for v in edited.weights}.isdisjoint(id(v) for v in model.weights)
    np.testing.assert_array_equal(edited(ones(1, 4)), model(ones(1, 4)))


def test_edited_models_can_be_saved(tmp_path):
    edited = insert(ZOO["masked_attention"](), keras.layers.Dense(4, name="extra"), after="project")
    ids = np.array([[1, 2, 3, 0, 0]])
    edited.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(ids), edited(ids), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda i: [Insert(i)], EditError, "after=, before= or both"),
        (lambda i: [Insert(i, after="b", before="a")], EditError, "'a' is called on"),
        (lambda i: [Insert("a", after="a")], EditError, "layer to be a Keras layer"),
        (lambda i: [], EditError, "at least one edit"),
        (lambda i: [Insert(i, after="aa")], UnknownAddressError, "Did you mean 'a'"),
        (lambda i: [Remove("dorp")], UnknownAddressError, "Did you mean 'drop'"),
        (lambda i: [Remove("x")], EditError, "the model input 'x'"),
        (lambda i: [Remove("a"), Replace("a", i)], EditError, "removed or kept"),
        (lambda i: [Replace("a", i), Replace("a", i)], EditError, "one replacement of 'a'"),
        (
            lambda i: [Insert(keras.layers.Identity(name="b"), after="a")],
            EditError,
            "a name of its own. Received: 'b'",
        ),
        (lambda i: ["a"], EditError, "an Insert, a Replace or a Remove"),
    ],
)
def test_bad_edits_are_refused_in_one_sentence(build, kind, message):
    model = ZOO["linear"]()
    before = calls(model)
    with pytest.raises(kind, match=message):
        edit(model, *build(keras.layers.Identity(name="i")))
    assert calls(model) == before


def test_a_layer_with_two_inputs_cannot_be_removed_and_the_candidates_are_named():
    with pytest.raises(EditError, match="'out0' with 2: 'stem', 'relu0'"):
        remove(ZOO["residual"](), "out0")


def test_several_outputs_are_ambiguous():
    layer = keras.layers.Identity(name="i")
    with pytest.raises(AmbiguousAddressError, match="'lstm:0', 'lstm:1', 'lstm:2'"):
        insert(ZOO["lstm_with_states"](), layer, after="lstm")
