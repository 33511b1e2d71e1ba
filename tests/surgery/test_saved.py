"""Models made by surgery are saved, loaded and exported like any other."""

import pickle

import keras
import pytest
from contract import arrays, assert_equal
from processes import run_python
from zoo import ZOO

from reusekit.graph import cut_points, read
from reusekit.surgery import (
    Insert,
    Remove,
    Replace,
    edit,
    extract,
    flatten,
    insert,
    remove,
    replace,
    segment,
    split,
)
from reusekit.surgery.certificate import random_inputs

STOCK = (
    "linear",
    "sequential",
    "residual",
    "layer_called_five_times",
    "nested_three_deep",
    "siamese",
    "names_shared_across_nesting",
    "dict_inputs_and_outputs",
    "nested_structures",
    "masked_bidirectional",
    "masked_attention",
    "mask_into_a_nested_model",
    "operations_between_layers",
    "lstm_with_states",
)

EXPORTED = (
    "residual",
    "layer_called_twice",
    "layer_shared_inside_and_outside",
    "nested_three_deep",
    "sequential_in_functional",
    "several_inputs_and_outputs",
    "dict_inputs_and_outputs",
    "masked_lstm",
    "mask_into_a_nested_model",
    "lstm_with_states",
)

ELSEWHERE = """
import pickle
import sys
from pathlib import Path


class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "reusekit":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Barred())
import keras
import numpy as np

files = sorted(Path(sys.argv[1]).glob("*.keras"))
for file in files:
    x, expected = pickle.loads(file.with_suffix(".pickle").read_bytes())
    received = keras.tree.flatten(keras.saving.load_model(file)(x, training=False))
    for one, other in zip(received, expected, strict=True):
        one = keras.ops.convert_to_numpy(one)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=file.name)
print(len(files), "reusekit" in sys.modules)
"""


def run(model, x):
    return model(x, training=False)


def middle(model):
    """A tensor in the middle that is neither an input nor an output."""
    graph = read(model)
    ends = {*graph.inputs, *graph.outputs}
    inner = [t for t in graph.tensors if t not in ends and graph.readers[t]]
    return inner[len(inner) // 2]


def made_from(model):
    """Models made from one in every way that works on any, each with what to call it on."""
    x, tensor = random_inputs(read(model)), middle(model)
    bottom, top = split(model, tensor.address)
    probe = keras.layers.Identity(name="probe", dtype=tensor.dtype)
    inserted = insert(model, probe, after=tensor.address)
    taps = {"inner": tensor.address, "outer": [each.address for each in read(model).outputs]}
    made = {
        "bottom": (bottom, x),
        "top": (top, run(bottom, x)),
        "inserted": (inserted, x),
        "removed": (remove(inserted, "probe"), x),
        "extracted": (extract(model, taps), x),
        "pooled": (extract(model, tensor.address, pooling="avg"), x),
        "flattened": (flatten(model), x),
    }
    value, clean = x, cut_points(model)
    for number, part in enumerate(segment(model, [clean[0].at if clean else tensor.address])):
        made[f"segment{number}"] = (part, value)
        value = run(part, value)
    return made


@pytest.mark.parametrize("name", ZOO)
def test_whatever_is_made_comes_back(name, tmp_path):
    # Every way comes up with two models of three, and its weights alone with one.
    for turn, (way, (made, x)) in enumerate(made_from(ZOO[name]()).items(), list(ZOO).index(name)):
        if turn % 3 == 0:
            continue
        expected = arrays(run(made, x))
        made.save(tmp_path / f"{way}.keras")
        loaded = keras.saving.load_model(tmp_path / f"{way}.keras")
        assert_equal(arrays(run(loaded, x)), expected)
        if turn % 3 == 1:
            made.save_weights(tmp_path / f"{way}.weights.h5")
            for variable in loaded.weights:
                variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
            loaded.load_weights(tmp_path / f"{way}.weights.h5")
            assert_equal(arrays(run(loaded, x)), expected)


def test_parts_of_a_replaced_and_shortened_model_come_back(tmp_path):
    model = ZOO["residual"]()
    gap = keras.layers.GlobalMaxPooling2D(name="pool")
    made = edit(
        replace(model, "head", keras.layers.Dense(5, name="head")),
        Replace("pool", gap),
        Remove("bn1"),
        Insert(keras.layers.Dropout(0.5, name="drop"), before="head"),
        weights="copy",
    ).model
    x = random_inputs(read(model))
    for part in split(made, "relu1"):
        part.save(tmp_path / "part.keras")
        loaded = keras.saving.load_model(tmp_path / "part.keras")
        assert_equal(arrays(run(loaded, x)), arrays(run(part, x)))
        x = run(part, x)
    assert x.shape == (2, 5)


def test_stock_models_load_where_reusekit_is_not_installed(tmp_path):
    saved = 0
    for number, name in enumerate(STOCK):
        every = list(made_from(ZOO[name]()).items())
        # Every way comes up, and each model in three ways: all of them load where they are made.
        for way, (made, x) in (every[(3 * number + each) % len(every)] for each in range(3)):
            made.save(tmp_path / f"{name}-{way}.keras")
            x = keras.tree.map_structure(keras.ops.convert_to_numpy, x)
            content = pickle.dumps((x, arrays(run(made, x))))
            (tmp_path / f"{name}-{way}.pickle").write_bytes(content)
            saved += 1
    done = run_python(ELSEWHERE, tmp_path, folder=tmp_path)
    assert done.stdout.split() == [str(saved), "False"], done.stderr


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exported from TensorFlow")
@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_made_is_exported_where_the_source_is(name, tmp_path):
    model = ZOO[name]()
    made, x = made_from(model), random_inputs(read(model))
    # A SavedModel may put out a list or a dict of tensors, but no structure inside a structure.
    taps = extract(model, [middle(model).address, read(model).outputs[0].address])
    ways = {way: made[way] for way in ("bottom", "top", "inserted", "flattened")}
    every = list({"taps": (taps, x), **ways}.items())
    # Every way comes up with six of the models, and each model in three ways.
    number = EXPORTED.index(name)
    for way, (each, fed) in (every[(3 * number + step) % len(every)] for step in range(3)):
        served = exported(each, tmp_path / way, fed)
        assert_equal(arrays(served), arrays(run(each, fed)))


def exported(model, folder, x):
    """The outputs of a SavedModel of a model for some inputs."""
    import tensorflow as tf

    model.export(folder, verbose=False)
    x = keras.tree.map_structure(tf.convert_to_tensor, x)
    # It owns the variables that `serve` reads, and must live as long.
    loaded = tf.saved_model.load(folder)
    return loaded.serve(x)
