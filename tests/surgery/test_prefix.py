import keras
import numpy as np
import pytest

from reusekit.errors import ShapeError
from reusekit.surgery import prepend


def _normalised():
    image = keras.Input((8, 8, 3), name="image")
    y = keras.layers.Conv2D(4, 3, name="conv")(image)
    y = keras.layers.BatchNormalization(name="norm")(y)
    return keras.Model(image, keras.layers.Flatten(name="flat")(y), name="net")


def _resize():
    return keras.Sequential(
        [
            keras.Input((None, None, 3), dtype="uint8", name="photo"),
            keras.layers.Resizing(8, 8, name="resize"),
            keras.layers.Rescaling(1 / 255, name="rescale"),
        ],
        name="preprocessing",
    )


def test_layers_stay_at_the_top_level():
    whole = prepend(_normalised(), _resize())
    assert [layer.name for layer in whole.layers] == [
        "photo",
        "resize",
        "rescale",
        "conv",
        "norm",
        "flat",
    ]


def test_result_equals_preprocessing_then_model_also_without_training_false():
    model, front = _normalised(), _resize()
    photos = np.random.default_rng(0).integers(0, 255, (2, 10, 12, 3)).astype("uint8")
    expected = model(front(photos), training=False)
    whole = prepend(model, front)
    # Resizing has training=True by default and Keras would hand that on to the normalisation.
    np.testing.assert_array_equal(whole(photos), expected)
    np.testing.assert_array_equal(whole(photos, training=False), expected)


def test_weights_are_shared():
    model = _normalised()
    whole = prepend(model, keras.layers.Rescaling(2.0, name="twice"))
    assert [id(v) for v in whole.weights] == [id(v) for v in model.weights]
    assert whole.name == "net"


def test_preprocessing_that_does_not_fit_is_refused_before_anything_is_called():
    model = _normalised()
    conv = model.get_layer("conv")
    calls = len(conv._inbound_nodes)
    with pytest.raises(ShapeError, match=r"gives \(None, 4, 4, 3\)"):
        prepend(model, keras.layers.Resizing(4, 4, name="small"))
    assert len(conv._inbound_nodes) == calls


# pipeline W5


def three_inputs(structure=dict):
    inputs = {
        name: keras.Input((5,), dtype="int32", name=name)
        for name in ("padding_mask", "segment_ids", "token_ids")
    }
    y = sum(k * keras.ops.cast(x, "float32") for k, x in enumerate(inputs.values(), start=1))
    outputs = keras.layers.Dense(2, name="d")(y)
    return keras.Model(inputs if structure is dict else list(inputs.values()), outputs)


def made_in_another_order(structure=list, dtype="int32", named=True):
    x = keras.Input((5,), dtype="int32", name="text")
    made = {
        name: keras.layers.Identity(name=name if named else f"{name}_made")(
            keras.ops.cast(x * k, dtype)
        )
        for k, name in enumerate(("token_ids", "segment_ids", "padding_mask"), start=1)
    }
    return keras.Model(x, made if structure is dict else list(made.values()))


@pytest.mark.parametrize("structure", [dict, list])
@pytest.mark.parametrize("names", [{"structure": dict, "named": False}, {"named": True}])
def test_outputs_of_the_preprocessing_go_to_the_inputs_of_their_names(structure, names):
    model, x = three_inputs(structure), np.arange(10).reshape(2, 5).astype("int32")
    given = [3 * x, 2 * x, x]  # padding_mask, segment_ids, token_ids
    keys = ("padding_mask", "segment_ids", "token_ids")
    wanted = model(dict(zip(keys, given, strict=True)) if structure is dict else given)
    whole = prepend(model, made_in_another_order(**names))
    np.testing.assert_allclose(whole(x), wanted, rtol=1e-6)


def test_names_and_dtypes_that_contradict_are_refused():
    with pytest.raises(ShapeError, match="'token_ids'"):
        prepend(three_inputs(), made_in_another_order(named=False))
    with pytest.raises(ShapeError, match="float32"):
        prepend(three_inputs(), made_in_another_order(dtype="float32"))
    x = keras.Input((5,), dtype="int32", name="text")
    some = [keras.layers.Identity(name=n, dtype="int32")(x) for n in ("token_ids", "b", "c")]
    with pytest.raises(ShapeError, match="named 'token_ids', 'b', 'c'"):
        prepend(three_inputs(list), keras.Model(x, some))
    text = keras.Input((5,), dtype="string", name="text")
    with pytest.raises(ShapeError, match="string"):
        prepend(
            keras.Model(x, keras.layers.Dense(1)(x)),
            keras.Model(text, keras.layers.Identity(dtype="string")(text)),
        )
