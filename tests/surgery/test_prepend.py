import keras
import numpy as np
import pytest

from reusekit.surgery import ShapeError, prepend


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
