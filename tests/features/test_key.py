"""A key follows from what features are made of, and from nothing else."""

from dataclasses import replace
from importlib import import_module

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from processes import run_python
from zoo import ZOO

import reusekit as rk
from reusekit.errors import CacheError
from reusekit.features import Extraction, Padding, feature_keys, frontier
from reusekit.features.key import tensor_digests, weights_read_once
from reusekit.graph import read
from reusekit.graph.frontier import depends

SMALL = rk.data.Treatment(image_size=(8, 8), channels=3)


@pytest.fixture(scope="module")
def data():
    return rk.data.load("sklearn_digits", "test", treatment=SMALL)


def build(name="a", units=4, activation="relu", seed=0, head=2, rate=0.5, strides=1):
    keras.utils.set_random_seed(seed)
    x = keras.Input((8, 8, 3), name=f"{name}_input")
    inner = keras.Input((8, 8, 3), name=f"{name}_inner")
    block = layers.Conv2D(units, 3, strides=strides, activation=activation, name=f"{name}_conv")
    block = keras.Model(inner, layers.BatchNormalization(name=f"{name}_norm")(block(inner)))
    y = layers.Dropout(rate, name=f"{name}_drop")(block(x)[:, ::2])
    y = layers.Dense(3, name=f"{name}_dense")(y)
    return keras.Model(x, layers.Dense(head, name=f"{name}_head")(y), name=name)


def key(model, data, at=None, pooling=None, **settings):
    at = at or next(layer.name for layer in model.layers if layer.name.endswith("dense"))
    (found,) = feature_keys([frontier(model, at, pooling)], data, Extraction(**settings))
    return found


def digests(model):
    graph = read(model)
    return list(tensor_digests(graph, graph.outputs).values())


def test_a_renamed_layer_is_a_hit_and_arrays_go_by_the_new_name(data):
    one, other = key(build("a"), data), key(build("conv2d_9"), data)
    assert one.digest == other.digest
    assert one.arrays[0] == "a_dense"
    assert other.arrays[0] == "conv2d_9_dense"


def test_what_is_above_the_cut_freezing_and_compiling_do_not_count(data):
    wanted = key(build(), data).digest
    assert key(build(head=7), data).digest == wanted
    frozen = build()
    frozen.trainable = False
    frozen.compile("sgd", "mse")
    assert key(frozen, data).digest == wanted
    assert key(rk.split(build(), "a_dense").bottom, data).digest == wanted
    assert key(rk.clone(build()), data).digest == wanted


@pytest.mark.parametrize(
    "changed",
    [{"units": 5}, {"activation": "tanh"}, {"seed": 1}, {"strides": 2}, {"rate": 0.25}],
    ids=str,
)
def test_another_bottom_is_a_miss(changed, data):
    assert key(build(**changed), data).digest != key(build(), data).digest


@pytest.mark.parametrize(
    "changed",
    [
        {"at": "a_drop"},
        {"pooling": "avg"},
        {"dtype": "float16"},
        {"padding": Padding(8)},
        {"padding": Padding(8, "truncate")},
        {"preprocessing": {"tokenizer": "v1"}},
        {"preprocessing": keras.Sequential([keras.Input((2,)), layers.Rescaling(2.0)])},
    ],
    ids=str,
)
def test_another_treatment_is_a_miss(changed, data):
    assert key(build(), data, **changed).digest != key(build(), data).digest


def test_other_data_are_a_miss(data):
    keys = {
        key(build(), rk.data.load("sklearn_digits", split, treatment=SMALL.changed(**how)))
        for split, how in [
            ("test", {}),
            ("test[:50%]", {}),
            ("train", {}),
            ("test", {"resize": "pad"}),
            ("test", {"resize": "crop"}),
            ("test", {"examples_per_class": 3}),
            ("test", {"examples_per_class": 3, "seed": 1}),
        ]
    }
    assert len({one.digest for one in keys}) == 7
    changed = replace(data, fingerprint="0" + data.fingerprint[1:-1] + "0")
    assert key(build(), changed).digest != key(build(), data).digest


@settings(deadline=None, max_examples=25)
@given(choice=st.data())
def test_one_flipped_bit_of_a_weight_changes_what_depends_on_it_and_nothing_else(choice):
    model = build()
    graph = read(model)
    before = tensor_digests(graph, graph.tensors)
    layer = choice.draw(st.sampled_from([call for call in graph.calls if call.variables]))
    variable = choice.draw(st.sampled_from(layer.variables))
    bits = keras.ops.convert_to_numpy(variable).copy().view(np.uint8)
    where = choice.draw(st.integers(0, bits.size - 1))
    # The highest bits would make numbers that are none, which compare as different anyway.
    bits.reshape(-1)[where] ^= 1 << choice.draw(st.integers(0, 5))
    variable.assign(bits.view("float32"))
    after = tensor_digests(graph, graph.tensors)
    made = layer.outputs[0]
    for tensor in graph.tensors:
        touched = tensor is made or depends(graph, tensor, made)
        assert (before[tensor] != after[tensor]) == touched


@pytest.mark.parametrize("name", ZOO)
def test_the_zoo_is_named_alike_at_every_building(name):
    found = []
    for seed in (0, 0, 1):
        keras.utils.set_random_seed(seed)
        model = ZOO[name]()
        # What begins as zeros and ones is the same with every seed.
        for number, variable in enumerate(model.weights):
            if keras.backend.is_float_dtype(variable.dtype):
                variable.assign(variable.value + seed * (number + 1))
        found.append(digests(model))
    assert found[0] == found[1]
    assert (found[0] != found[2]) == bool(model.weights)


def test_weights_are_read_once_in_a_block_and_anew_after_it():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    graph = read(model)

    def name():
        return tensor_digests(graph, graph.outputs)

    with weights_read_once(model):
        before = name()
        model.set_weights([value + 1 for value in model.get_weights()])
        assert name() == before  # nobody should have done that
    assert name() != before


def test_two_layers_that_swap_places_are_a_miss():
    def chain(*order):
        made = {name: layers.Rescaling(2.0 if name == "a" else 3.0, 1.0) for name in "ab"}
        x = y = keras.Input((2,))
        for name in order:
            y = made[name](y)
        return keras.Model(x, y)

    assert digests(chain("a", "b")) != digests(chain("b", "a"))
    assert digests(chain("a", "a")) != digests(chain("a"))


def test_inputs_are_told_apart_by_their_place_in_the_data():
    def difference(flipped):
        x = {"p": keras.Input((2,), name="p"), "q": keras.Input((2,), name="q")}
        first, second = ("q", "p") if flipped else ("p", "q")
        return keras.Model(x, layers.Subtract()([x[first], x[second]]))

    assert digests(difference(False)) != digests(difference(True))


def test_what_a_preprocessing_layer_learnt_counts():
    def lookup(words):
        layer = layers.IntegerLookup()
        layer.adapt(np.array(words))
        x = keras.Input((1,), dtype="int64")
        return keras.Model(x, layer(x))

    assert digests(lookup([5, 6])) == digests(lookup([5, 6]))
    assert digests(lookup([5, 6])) != digests(lookup([5, 7]))


OWN_LAYER = """
import keras
class Own(keras.layers.Layer):
    def call(self, x):
        return x * {factor}
"""


def test_the_code_of_a_layer_of_ones_own_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_layer.py").write_text(OWN_LAYER.format(factor=2))
    x = keras.Input((2,))
    graph = read(keras.Model(x, import_module("own_layer").Own()(x)))
    here = [*tensor_digests(graph, graph.outputs).values()][-1]
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "own_layer.py").write_text(OWN_LAYER.format(factor=3))
    code = (
        "import keras, own_layer\n"
        "from reusekit.features.key import tensor_digests\n"
        "from reusekit.graph import read\n"
        "x = keras.Input((2,))\n"
        "graph = read(keras.Model(x, own_layer.Own()(x)))\n"
        "print(*tensor_digests(graph, graph.outputs).values())\n"
    )
    # Another folder, where no bytecode of the first version lies.
    assert in_a_new_process(code, folder=tmp_path / "changed") != here


def in_a_new_process(code, folder=None):
    """The last word that it says, where hashes of texts are others than here."""
    done = run_python(code, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_every_process_names_alike(data):
    code = (
        "import reusekit as rk\n"
        "from reusekit.features import feature_keys, frontier\n"
        "treatment = rk.data.Treatment(image_size=(32, 32))\n"
        "data = rk.data.load('sklearn_digits', 'test', treatment=treatment)\n"
        "model = rk.load_backbone('reusekit/glyphnet').model\n"
        "print(feature_keys([frontier(model, 'block5_out')], data)[0].digest)\n"
    )
    here = key(
        rk.load_backbone("reusekit/glyphnet").model,
        rk.data.load("sklearn_digits", "test", treatment=rk.data.Treatment(image_size=(32, 32))),
        at="block5_out",
    ).digest
    assert in_a_new_process(code) == here


def test_a_layer_that_does_not_say_what_it_is_is_refused(data):
    class Silent(layers.Layer):
        def __init__(self, secret):
            super().__init__(name="silent")
            self.secret = secret

        def call(self, x):
            return x

    x = keras.Input((8, 8, 3))
    with pytest.raises(CacheError, match="'silent' of class Silent"):
        key(keras.Model(x, Silent(object())(x)), data, at="silent")


def test_wrong_requests_are_refused(data):
    with pytest.raises(CacheError, match="several"):
        feature_keys([frontier(build(), "a_dense"), frontier(build(), "a_dense")], data)
    with pytest.raises(CacheError, match="JSON"):
        key(build(), data, preprocessing=object())
    with pytest.raises(CacheError, match="'truncate'"):
        Padding(3, "trunkate")
    with pytest.raises(CacheError, match="at least 1"):
        Padding(0)
