"""Loading backbones by name: whole, from files, and what is said where it cannot be done."""

import keras
import numpy as np
import pytest
from processes import run_python

import reusekit as rk

SMALL = "keras.applications/MobileNet"


def small(**options):
    return rk.load_backbone(SMALL, input_shape=(32, 32, 3), alpha=0.25, **options)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    keras.applications.MobileNet(
        weights=None, input_shape=(32, 32, 3), include_top=False, alpha=0.25
    ).save_weights(file)
    return file


def test_takes_raw_pixels_and_knows_its_preprocessing(weights_file):
    backbone = small(weights=weights_file)
    plain = keras.applications.MobileNet(
        weights=str(weights_file), input_shape=(32, 32, 3), include_top=False, alpha=0.25
    )
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    expected = plain(keras.applications.mobilenet.preprocess_input(x.copy()), training=False)
    np.testing.assert_allclose(backbone.model(x, training=False), expected, atol=1e-5)
    assert backbone.source == SMALL
    assert backbone.weights == str(weights_file)
    assert backbone.name == "MobileNet"


def test_layers_keep_their_names_at_the_top_level():
    backbone = rk.load_backbone(
        "keras.applications/ResNet50", weights=None, input_shape=(32, 32, 3)
    )
    assert backbone.model.get_layer("conv5_block3_out")
    assert backbone.model.input_shape == (None, 32, 32, 3)
    assert backbone.model.count_params() == 23_587_712


@pytest.mark.parametrize("source", [SMALL, "reusekit/glyphnet", "saved"])
def test_keras_makes_parts_of_a_loaded_model_by_its_layers_outputs(source, tmp_path):
    if source == "saved":
        x = keras.Input((None, None, 3), name="x")
        y = keras.layers.Conv2D(4, 3, name="first")(x)
        y = keras.layers.GlobalAveragePooling2D(name="pool")(y)
        keras.Model(x, keras.layers.Dense(2, name="last")(y)).save(tmp_path / "m.keras")
        model = rk.load_backbone(tmp_path / "m.keras", input_shape=(8, 8, 3), scale="0..1").model
    else:
        model = (small(weights=None) if source == SMALL else rk.load_backbone(source)).model
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *model.input_shape[1:]))
    for layer in model.layers[:: max(1, len(model.layers) // 8)]:
        part = keras.Model(model.input, layer.output)
        expected = rk.extract(model, layer.name)(pixels, training=False)
        np.testing.assert_array_equal(part(pixels, training=False), expected)
    part.save(tmp_path / "part.keras")
    again = keras.saving.load_model(tmp_path / "part.keras")
    np.testing.assert_array_equal(again(pixels), part(pixels))


def test_digest_follows_weights_and_not_names(weights_file):
    one, same, other = small(weights=weights_file), small(weights=weights_file), small(weights=None)
    assert one.digest == same.digest != other.digest


def test_digest_is_the_same_in_another_process():
    code = "import reusekit as rk; print(rk.load_backbone('reusekit/glyphnet').digest)"
    done = run_python(code)
    rk.load_backbone("reusekit/glyphnet")  # another count of automatic names in this process
    assert done.stdout.strip() == rk.load_backbone("reusekit/glyphnet").digest, done.stderr


def test_a_failed_download_says_what_to_do_and_never_gives_random_weights(tmp_path):
    code = (
        "import sys\n"
        "from keras.src.backend import config\n"
        "config._KERAS_DIR = sys.argv[1]\n"  # read from KERAS_HOME when Keras was imported
        "import reusekit as rk\n"
        "try: rk.load_backbone('keras.applications/ResNet50', input_shape=(32, 32, 3))\n"
        "except rk.BackboneError as error: print(error)\n"
        "from keras.src.applications import resnet\n"
        "resnet.BASE_WEIGHTS_PATH = sys.argv[2]\n"
        "try: rk.load_backbone('keras.applications/ResNet50', input_shape=(32, 32, 3))\n"
        "except rk.BackboneError as error: print(error)\n"
    )
    nowhere = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path)}
    name = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    (tmp_path / name).write_bytes(bytes(4_000_000))
    done = run_python(code, tmp_path, tmp_path.as_uri() + "/", environment=nowhere)
    assert len(done.stdout.splitlines()) == 2, "a bar in a pipe is a line for each of its steps"
    assert "weights of ResNet50 to be downloaded" in done.stdout, done.stderr
    assert name in done.stdout
    assert str(tmp_path / "models") in done.stdout
    assert "weights=None" in done.stdout


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("keras.applications/ResNet5", {}, "Did you mean 'ResNet50'"),
        ("resnet50", {}, "keras.applications/ResNet50"),
        ("reusekit/glifnet", {}, "reusekit/glyphnet"),
        (SMALL, {"alhpa": 0.5}, "Did you mean 'alpha'"),
        (SMALL, {"include_preprocessing": False}, "Received: 'include_preprocessing'"),
        (
            SMALL,
            {"input_shape": (32, 32, 1)},
            "(height, width, 3) for MobileNet. Received: (32, 32, 1)",
        ),
        (SMALL, {"input_shape": (8, 8, 3)}, "Expected arguments that"),
        (SMALL, {"name": "x"}, "Received: 'name'"),
        (SMALL, {"include_top": True}, "Received: 'include_top'"),
        (SMALL, {"weights": "no/such/file.h5"}, "Received: 'no/such/file.h5'"),
        ("reusekit/glyphnet", {"input_shape": (28, 28, 1)}, "(32, 32, 1)"),
        ("reusekit/glyphnet", {"alpha": 1}, "Expected no options"),
    ],
)
def test_bad_input_gets_one_clear_error(source, options, says):
    with pytest.raises(rk.BackboneError) as caught:
        rk.load_backbone(source, **{"weights": None} | options)
    assert says in str(caught.value)


def test_weights_of_another_model_are_refused(weights_file):
    with pytest.raises(rk.BackboneError, match="fit MobileNet"):
        rk.load_backbone(SMALL, weights=weights_file, input_shape=(32, 32, 3), alpha=0.5)
