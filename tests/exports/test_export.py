"""Models as files: the same numbers in another runtime, refusals, and nothing half-written."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import reusekit as rk
from reusekit.data import Treatment
from reusekit.errors import ExportError
from reusekit.exports import Exporter, formats
from reusekit.tasks import rules_of

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")


@pytest.fixture(scope="module")
def held_out():
    return rk.data.load("sklearn_digits", "test[:150]", treatment=Treatment(image_size=(32, 32)))


@pytest.fixture(scope="module")
def training():
    return rk.data.load("sklearn_digits", "train[:200]", treatment=Treatment(image_size=(32, 32)))


@pytest.fixture(scope="module")
def digits_model(training):
    """A cut of glyphnet with a trained head, its preprocessing in front."""
    keras.utils.set_random_seed(0)
    bottom = rk.split(rk.load_backbone("reusekit/glyphnet").model, "block2_out").bottom
    model = rk.attach(bottom, rk.heads.Classifier(10))
    rk.freeze(model, up_to="block2_out")
    model.compile(keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy")
    model.fit(training.batches(50), epochs=10, verbose=0)
    model.name = "digits"
    return model


@pytest.fixture(scope="module")
def exporter(digits_model, held_out, training, tmp_path_factory):
    return Exporter(digits_model, held_out, training, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def exported(exporter):
    """The model in each format that is tested for real, and in each precision."""
    pairs = [("litert", how) for how in (None, "float16", "int8", "int8-calibrated")]
    pairs += [("onnx", how) for how in (None, "float16", "int8", "int8-calibrated")]
    pairs += [("saved_model", None)]
    return {exported.name: exported for exported in (exporter.export(*pair) for pair in pairs)}


def test_files_say_what_the_model_says(exported):
    for name, one in exported.items():
        assert one.examples == 150
        assert one.measure == "accuracy"
        assert one.lost == pytest.approx(one.keras.value - one.file.value)
        assert one.file.latency > 0
        assert set(one.inputs.values()) == {"float32 (?, 32, 32, 1)"}
        assert Path(one.path).exists()
        if one.quantize is None:
            assert one.max_difference < 1e-4, name
            assert one.agreement == 1
        else:
            assert one.max_difference < 0.5, name
            assert one.agreement > 0.9, name
    # Smaller numbers, smaller files.
    assert exported["litert-int8"].file.bytes < exported["litert"].file.bytes
    assert exported["onnx-float16"].file.bytes < exported["onnx"].file.bytes


def test_an_export_prints_as_a_table_beside_keras(exported):
    frame = exported["onnx-int8"].to_frame()
    assert frame["format"].tolist() == ["keras", "onnx"]
    assert frame["accuracy"].notna().all()
    printed = str(exported["onnx-int8"])
    assert "keras" in printed
    assert "onnx-int8" in printed
    assert "Compared on 150 examples." in printed
    assert "<table" in exported["onnx-int8"]._repr_html_()


_ELSEWHERE = """
import sys
for name in ("tensorflow", "keras", "reusekit"):
    sys.modules[name] = None  # an import of it fails
import numpy as np
from ai_edge_litert.interpreter import Interpreter
import onnxruntime
x = np.load("x.npy")
runner = Interpreter(model_path=sys.argv[1]).get_signature_runner()
(lite,) = runner(**{sys.argv[3]: x}).values()
(onnx,) = onnxruntime.InferenceSession(sys.argv[2]).run(None, {sys.argv[3]: x})
np.savez("answers.npz", lite=lite, onnx=onnx)
"""


def test_files_run_in_a_process_without_tensorflow(exported, digits_model, held_out, tmp_path):
    x = np.asarray(next(iter(held_out.batches(20)))[0])
    np.save(tmp_path / "x.npy", x)
    (name,) = exported["litert"].inputs
    paths = [str(Path(exported[kind].path).resolve()) for kind in ("litert", "onnx")]
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, *paths, name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, known = np.load(tmp_path / "answers.npz"), digits_model.predict_on_batch(x)
    for found in (answers["lite"], answers["onnx"]):
        np.testing.assert_allclose(found, known, atol=1e-5)
        assert (found.argmax(axis=1) == known.argmax(axis=1)).all()


@needs_openvino
def test_openvino_says_what_the_model_says(exporter):
    plain, half = exporter.export("openvino"), exporter.export("openvino", "float16")
    assert plain.max_difference < 1e-4
    assert plain.agreement == 1
    assert half.file.bytes < plain.file.bytes


def two_inputs_two_tasks():
    """A model whose names and orders a format might change."""
    picture = keras.Input((8, 8, 1), name="z-picture")
    numbers = keras.Input((3,), dtype="int32", name="a numbers")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(picture))
    y = layers.Flatten()(layers.Embedding(9, 4)(numbers))
    x = layers.Concatenate()([x, y])
    outputs = {
        "size": layers.Dense(1, name="first")(x),
        "kind": layers.Dense(3, activation="softmax", name="second")(x),
    }
    return keras.Model({"z-picture": picture, "a numbers": numbers}, outputs, name="two")


@pytest.fixture(scope="module")
def two_tasks():
    generator = np.random.default_rng(0)
    inputs = {
        "z-picture": generator.random((40, 8, 8, 1), "float32"),
        "a numbers": generator.integers(0, 9, (40, 3)).astype("int32"),
    }
    labels = {"kind": np.arange(40) % 3, "size": generator.random(40).astype("float32")}
    return rk.data.from_arrays(inputs, labels, split="all", shares=None)


@pytest.mark.parametrize(
    "format", ["litert", "onnx", pytest.param("openvino", marks=needs_openvino)]
)
def test_names_and_tasks_stay_what_they_are(two_tasks, tmp_path, format):
    keras.utils.set_random_seed(1)
    one = rk.export(two_inputs_two_tasks(), format, check=two_tasks, folder=tmp_path)
    assert one.inputs == {"a_numbers": "int32 (?, 3)", "z_picture": "float32 (?, 8, 8, 1)"}
    assert one.outputs == {"kind": "float32 (?, 3)", "size": "float32 (?, 1)"}
    assert one.measure == "relative_loss"
    assert one.max_difference < 1e-5
    assert one.agreement == 1


def token_model():
    """Words to numbers, and numbers to a class, with what is filled up masked."""
    texts = keras.Input((), dtype="string", name="text")
    words = layers.TextVectorization(vocabulary=["good", "bad", "so"], name="words")(texts)
    x = layers.Embedding(6, 8, mask_zero=True, name="embedding")(words)
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.Dense(8, activation="gelu")(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(texts, layers.Dense(2, activation="softmax")(x), name="tone")


@pytest.mark.parametrize("format", ["litert", "onnx", "saved_model"])
def test_texts_stay_outside_where_a_format_has_none(tmp_path, format):
    texts = np.array(["so good", "bad", "so so bad indeed", "good", "good bad"] * 8, object)
    split = rk.data.from_arrays(texts, ["a", "b", "b", "a", "a"] * 8, split="all", shares=None)
    one = rk.export(token_model(), format, check=split, folder=tmp_path)
    assert one.agreement == 1
    if format == "saved_model":
        assert one.inputs == {"text": "string (?)"}
        assert one.notes == ()
    else:
        assert one.inputs == {"words": "int64 (?, ?)"}
        assert "'words' make of texts" in one.notes[0]


def test_a_model_in_half_precision_is_written_in_float32(digits_model, held_out, tmp_path):
    half = rk.clone(digits_model, dtype="mixed_float16")
    one = rk.export(half, "litert", check=held_out, folder=tmp_path)
    assert one.agreement > 0.97
    assert "computes in float16" in one.notes[0]


def small_model(layer=None, shape=(4,), **options):
    inputs = keras.Input(shape, name="x", **options)
    x = layers.Dense(4, name="hidden")(inputs)
    return keras.Model(inputs, layers.Dense(2, name="y")(x if layer is None else layer(x)))


def test_without_examples_some_are_made_up(tmp_path):
    several = small_model()
    stacked = keras.Model(several.input, [several.output, several.get_layer("hidden").output])
    one = rk.export(stacked, "onnx", folder=tmp_path)
    assert one.examples == 4
    assert (one.measure, one.agreement, one.file.value) == (None, None, None)
    assert list(one.outputs) == ["y", "hidden"]


def test_open_axes_and_fixed_batches_stay(tmp_path):
    sequence = keras.Input((None, 3), name="steps")
    x = layers.GlobalMaxPooling1D()(layers.Conv1D(4, 1)(sequence))
    one = rk.export(keras.Model(sequence, x, name="open"), "onnx", folder=tmp_path)
    assert one.inputs == {"steps": "float32 (?, ?, 3)"}
    fixed = keras.Input(batch_shape=(2, 4), name="x")
    both = keras.Model(fixed, layers.Reshape((2,))(layers.Dense(2)(fixed)), name="fixed")
    one = rk.export(both, "litert", folder=tmp_path)
    assert one.inputs == {"x": "float32 (2, 4)"}


class Odd(keras.Layer):
    """Computes what TensorFlow can and smaller runtimes cannot."""

    def call(self, x):
        import tensorflow as tf

        return tf.math.betainc(1.0, 2.0, tf.sigmoid(x))


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_what_a_format_cannot_express_is_named_with_its_layer(tmp_path, format):
    with pytest.raises(ExportError, match=r"cannot express its layer 'strange'.*[Bb]etainc"):
        rk.export(small_model(Odd(name="strange")), format, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_loses_too_much_is_not_kept(exporter, tmp_path, monkeypatch):
    strict = replace(exporter, max_accuracy_loss=0.01, folder=tmp_path)
    always = np.eye(10, dtype="float32")[:1]

    def say_one_class(self, path, outputs, threads):
        return lambda inputs: {name: always.repeat(len(*inputs.values()), 0) for name in outputs}

    monkeypatch.setattr(formats.ONNX, "open", say_one_class)
    with pytest.raises(ExportError, match=r"lose 0\.01 at most. Received: 0\.\d+ in the file, and"):
        strict.export("onnx", "int8")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ExportError, match="Expected the file to give the outputs"):
        strict.export("onnx")


def test_a_failure_leaves_the_earlier_file(exporter, exported, monkeypatch):
    path = Path(exported["onnx"].path)
    before, there = path.read_bytes(), set(path.parent.iterdir())

    def torn(self, face, path, quantize, examples):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats.ONNX, "write", torn)
    with pytest.raises(ExportError, match="No space left"):
        exporter.export("onnx")
    assert path.read_bytes() == before
    assert set(path.parent.iterdir()) == there


def test_an_earlier_folder_is_replaced(exporter, exported):
    again = exporter.export("saved_model")
    assert again.path == exported["saved_model"].path
    assert (Path(again.path) / "saved_model.pb").is_file()


def test_what_cannot_be_done_is_refused(digits_model, held_out, tmp_path, monkeypatch):
    model = small_model()
    with pytest.raises(ExportError, match=r"Received: 'litrt'\. Did you mean 'litert'"):
        rk.export(model, "litrt", folder=tmp_path)
    with pytest.raises(ExportError, match=r"None for .* 'saved_model'.*'litert' and 'onnx'"):
        rk.export(model, "saved_model", "int8", folder=tmp_path)
    with pytest.raises(ExportError, match="Expected calibrate"):
        rk.export(model, "litert", "int8-calibrated", folder=tmp_path)
    with pytest.raises(ExportError, match="Expected check"):
        rk.export(model, "litert", max_accuracy_loss=0.1, folder=tmp_path)
    with pytest.raises(rk.DataError, match="check"):
        rk.export(model, "litert", check=held_out, folder=tmp_path)
    text = keras.Input((), dtype="string")
    lookup = layers.StringLookup(vocabulary=["a"], invert=True, name="back")
    words = keras.Model(text, lookup(layers.StringLookup(vocabulary=["a"])(text)))
    with pytest.raises(ExportError, match=r"strings become numbers.*'back'"):
        rk.export(words, "onnx", folder=tmp_path)
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'reusekit\[onnx\]'"):
        rk.export(model, "onnx", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_agreement_goes_by_the_rules_of_each_task(two_tasks):
    rules, size = rules_of(two_tasks.task), np.zeros((4, 1))
    kinds = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 1, 0]]
    one, other = (
        rk.data.task.joined({"kind": kind, "size": size + n}) for n, kind in enumerate(kinds)
    )
    assert rules.agreement(one, other) == 0.75
    assert rules.by_name["size"].agreement(size, size) is None
