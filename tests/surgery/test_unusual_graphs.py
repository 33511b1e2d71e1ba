"""Graphs as people write them: calls by keyword, handed on inputs, open sizes, variables."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from reusekit.errors import EditError, NoGraphError, ShapeError, SurgeryError, TieError
from reusekit.graph import cut_points, read
from reusekit.sharing import count_params, tied_weights
from reusekit.surgery import (
    Insert,
    clone,
    edit,
    expand,
    extract,
    flatten,
    insert,
    prepend,
    remove,
    replace,
    segment,
    split,
)
from reusekit.training import attach, freeze, heads


def dense(units, name, **kwargs):
    return layers.Dense(units, name=name, **kwargs)


# --- calls by keyword (surgery F3, F3b, F7) -----------------------------------------------------


def called_by_keyword(**how):
    i = keras.Input((4,), name="i")
    deep = keras.Sequential([keras.Input((4,)), dense(4, "deep")], name="core")
    base = keras.Model(i, layers.Dropout(0.5, name="drop")(deep(inputs=dense(4, "d")(i))))
    base.name = "base"
    x = keras.Input((4,), name="x")
    y = base(inputs=dense(4, "a")(x), **how)
    return keras.Model(x, dense(1, "h")(y))


@pytest.mark.parametrize("at", ["a", "base/d", "base/core/deep", "base/core", "base"])
def test_nested_models_called_by_keyword_are_cut(at):
    model = called_by_keyword(training=False)
    parts = split(model, at)
    assert parts.verify().exact
    assert parts.bottom.weights[0].path == "a/kernel"


def test_nested_models_called_by_keyword_in_every_operation():
    model = called_by_keyword()
    x = np.ones((2, 4), "float32")
    wanted = np.array(model(x))
    value = x
    for part in segment(model, ["a", "base/d", "base"]):
        value = part(value)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    probe = layers.Identity(name="probe")
    for other in (
        flatten(model),
        clone(model),
        prepend(model, layers.Identity(name="front")),
        insert(model, probe, before="base"),
        insert(model, probe, before="base/core"),
        replace(model, "base/drop", layers.Identity(name="none")),
        remove(model, "base/drop"),
        attach(extract(model, "base"), split(model, "base").top),
    ):
        np.testing.assert_allclose(other(x), wanted, rtol=1e-6)


def test_layers_called_by_keyword_are_removed_and_preceded():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, dense(1, "d")(layers.Dropout(0.5, name="drop")(inputs=x)))
    assert [layer.name for layer in remove(model, "drop").layers] == ["x", "d"]
    before = insert(model, layers.ReLU(name="r"), before="drop")
    assert [layer.name for layer in before.layers] == ["x", "r", "drop", "d"]
    ids = keras.Input((5,), dtype="int32", name="ids")
    y = layers.Embedding(9, 4, mask_zero=True, name="e")(ids)
    model = keras.Model(ids, dense(1, "d")(layers.LSTM(4, name="l")(sequences=y)))
    # A mask is no input of its own.
    assert "r" in [layer.name for layer in insert(model, layers.ReLU(name="r"), before="l").layers]


@pytest.mark.parametrize("operation", [remove, lambda m, at: insert(m, layers.ReLU(), before=at)])
def test_inputs_given_by_keyword_count(operation):
    q, v = keras.Input((4, 4), name="q"), keras.Input((5, 4), name="v")
    y = layers.MultiHeadAttention(2, 2, name="att")(q, value=v)
    with pytest.raises(EditError, match="'q', 'v'"):
        operation(keras.Model([q, v], dense(1, "h")(y)), "att")


# --- nested models that hand on what they are fed (surgery F4) ----------------------------------


def encoder(deep=False):
    i = keras.Input((4,), name="i")
    if deep:
        return keras.Model(i, encoder()(i), name="outer")
    c = dense(4, "c")(i)
    return keras.Model(i, [i, c, i, c], name="enc")


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_handed_on_inputs_are_outputs(deep, before, tmp_path):
    x = keras.Input((4,), name="x")
    y = dense(4, "pre")(x) if before else x
    net, value = encoder(deep), np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    model = keras.Model(x, dense(1, "o")(layers.Concatenate(name="cat")([*net(y), *net(x)])))
    wanted = np.array(model(value))
    for tensor in read(model).tensors:
        parts = split(model, tensor.address)
        assert parts.verify().exact
    for other in (flatten(model), clone(model), insert(model, layers.Identity(), after="cat")):
        np.testing.assert_allclose(other(value), wanted, rtol=1e-6)
    np.testing.assert_allclose(clone(model, batch_size=2)(value), wanted, rtol=1e-6)
    for other_size in (
        lambda: clone(model, "share", batch_size=2),
        lambda: prepend(model, keras.Model(z := keras.Input((4,), batch_size=2), dense(4, "z")(z))),
    ):
        with pytest.raises(ShapeError, match="returns one of its inputs takes only the shapes"):
            other_size()
    parts.bottom.save(tmp_path / "bottom.keras")
    loaded = keras.saving.load_model(tmp_path / "bottom.keras")
    np.testing.assert_allclose(parts.top(loaded(value)), wanted, rtol=1e-6)


def test_a_nested_model_may_have_outputs_that_nobody_reads():
    i = keras.Input((4,), name="i")
    enc = keras.Model(i, {"skip": i, "y": dense(4, "c")(i), "again": i}, name="enc")
    x = keras.Input((4,), name="x")
    skip = enc(x)["again"]
    model = keras.Model(x, {"a": dense(1, "d")(skip), "b": skip})
    assert split(model, "enc/i").verify().parameters_conserved
    assert clone(model).output_names == clone(model, "share").output_names == ["d", "enc"]


def test_a_bottom_before_a_handed_on_input_has_no_foreign_weights():
    x = keras.Input((4,), name="x")
    y = layers.Concatenate(name="cat")(encoder()(dense(4, "pre")(x)))
    model = keras.Model(x, dense(1, "o")(y))
    assert [v.path for v in split(model, "pre").bottom.weights] == ["pre/kernel", "pre/bias"]


# --- open sizes in a sized call (surgery F5) ----------------------------------------------------


def open_base(deep=False):
    i = keras.Input((None, None, 3), name="i")
    c = layers.Conv2D(4, 3, strides=2, padding="same", name="c1")(i)
    base = keras.Model(i, layers.Conv2D(4, 3, padding="same", name="c2")(c), name="base")
    if not deep:
        return base
    i = keras.Input((None, None, 3), name="i")
    return keras.Model(i, base(i), name="outer")


@pytest.mark.parametrize("deep", [False, True])
def test_sizes_inside_a_nested_model_are_those_of_the_call(deep):
    x = keras.Input((16, 16, 3), name="x")
    model = keras.Model(x, layers.Flatten(name="f")(open_base(deep)(x)))
    at = "outer/base/c1" if deep else "base/c1"
    point = cut_points(model)[at]
    assert (point.shape, point.bytes, point.flops_before) == ((None, 8, 8, 4), 1024, 14080)
    assert extract(model, at).output_shape == (None, 8, 8, 4)
    parts = split(model, at)
    assert parts.top.input_shape == (None, 8, 8, 4) and parts.verify().exact
    head = heads.Classifier(3, pooling="flatten")
    assert attach(parts.bottom, head).count_params() == 112 + 256 * 3 + 3


# --- variables as arguments (surgery F11) -------------------------------------------------------


def tied_by_operation(nested=False, raw=False):
    ids = keras.Input((5,), dtype="int32", name="ids")
    embedding = layers.Embedding(11, 4, name="emb")
    y = dense(4, "h")(embedding(ids))
    weight = embedding.embeddings.value if raw else embedding.embeddings

    def logits(z):
        return ops.einsum("btc,vc->btv", z, weight)

    if nested:
        i = keras.Input((5, 4), name="i")
        return keras.Model(ids, keras.Model(i, logits(i), name="out")(y))
    return keras.Model(ids, logits(y))


KINDS = [{}, {"nested": True}, {"raw": True}, {"nested": True, "raw": True}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tie_by_operation_is_a_tie(kind):
    model = tied_by_operation(**kind)
    owners = ("emb", "out/einsum" if kind.get("nested") else "einsum")
    found = [tuple(o.partition("_")[0] for o in tie.owners) for tie in tied_weights(model)]
    assert found == [owners] and count_params(model).tied == 44
    assert split(model, "h").shared == ("emb/embeddings",)
    assert freeze(model, "emb").shared == ("emb",)
    assert split(model, "h").verify().exact
    with pytest.raises(TieError, match="'emb'"):
        replace(model, "emb", layers.Embedding(11, 4, name="emb"))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_a_tie_by_operation_are_their_own_and_tied(kind):
    model, ids = tied_by_operation(**kind), np.array([[1, 2, 3, 4, 5]])
    copies = [clone(model), clone(model, weights="fresh")]
    copies.append(edit(model, Insert(layers.Identity(), after="h"), weights="copy").model)
    wanted = np.array(model(ids))
    for copy in copies:
        before = np.array(copy(ids))
        model.get_layer("emb").embeddings.assign(np.zeros((11, 4)))
        np.testing.assert_array_equal(copy(ids), before)
        model.get_layer("emb").embeddings.assign(np.ones((11, 4)))
        assert len(tied_weights(copy)) == 1
        copy.get_layer("emb").embeddings.assign(np.zeros((11, 4)))
        assert not np.any(np.array(copy(ids)))
    assert wanted.shape == before.shape


def test_a_variable_of_no_layer_is_copied():
    x, free = keras.Input((4,), name="x"), keras.Variable(np.ones(4, "float32"), name="free")
    model = keras.Model(x, dense(2, "h")(ops.multiply(ops.multiply(x, free), free)))
    copy, value = clone(model), np.ones((1, 4), "float32")
    wanted = np.array(model(value))
    assert split(model, "h").verify().exact
    free.assign(np.zeros(4))
    np.testing.assert_array_equal(copy(value), wanted)
    assert len({id(v) for call in read(copy).calls for v in call.given}) == 1


# --- names of outputs (surgery F13) -------------------------------------------------------------


def with_nested_heads(structure):
    i = keras.Input((3,), name="i")
    inner = layers.ReLU(name="relu")(dense(2, "logits")(i))
    head = keras.Model(i, inner, name="species")
    pair = keras.Model(i, [dense(2, "p")(i), dense(1, "q")(i)], name="pair")
    x = keras.Input((3,), name="x")
    return keras.Model(x, structure(head(x), pair(x), dense(1, "age")(x)))


STRUCTURES = {
    "list": lambda head, pair, age: [head, *pair, age],
    "dict": lambda head, pair, age: {"species": head, "age": age},
    "one of two": lambda head, pair, age: [pair[1], age],
    "alone": lambda head, pair, age: head,
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_inlining_keeps_the_names_of_outputs(kind, tmp_path):
    model = with_nested_heads(STRUCTURES[kind])
    value = np.ones((2, 3), "float32")
    inside = "pair/q" if kind == "one of two" else "species/logits"
    edited = replace(model, inside, dense(1 if kind == "one of two" else 2, "new"))
    for other in (
        flatten(model),
        flatten(flatten(model)),
        split(model, inside).top,
        segment(model, [inside])[-1],
        edited,
        prepend(model, layers.Identity()),
    ):
        assert other.output_names == model.output_names
    flat = flatten(model)
    flat.save(tmp_path / "flat.keras")
    loaded = keras.saving.load_model(tmp_path / "flat.keras")
    assert loaded.output_names == model.output_names
    wanted = keras.tree.flatten(model(value))
    for one, other in zip(wanted, keras.tree.flatten(loaded(value)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    if kind == "dict":
        flat.compile(loss={"species": "mse", "age": "mae"})
        targets = {"species": np.zeros((2, 2)), "age": np.zeros((2, 1))}
        assert np.isfinite(flat.fit(value, targets, verbose=0).history["loss"][0])


# --- a class with a call of its own (surgery F18) -----------------------------------------------


class Scaled(keras.Model):
    def call(self, x, training=None, mask=None):
        return super().call(x / 255.0, training=training, mask=mask)


class ScaledOutside(keras.Model):
    def __call__(self, x, **kwargs):
        return super().__call__(x / 255.0, **kwargs)


class Polite(keras.Model):
    def __call__(self, x, **kwargs):
        return super().__call__(x, **kwargs)


def of_class(kind):
    x = keras.Input((4,), name="x")
    return kind(x, dense(3, "a")(x), name="own")


@pytest.mark.parametrize("kind", [Scaled, ScaledOutside])
@pytest.mark.parametrize(
    "operation",
    [
        lambda m: split(m, "a"),
        lambda m: extract(m, "a"),
        lambda m: segment(m, ["a"]),
        flatten,
        clone,
        cut_points,
        lambda m: prepend(m, layers.ReLU()),
        lambda m: prepend(of_class(Polite), m),
        lambda m: attach(m, heads.Classifier(3)),
        lambda m: remove(m, "a"),
        lambda m: freeze(m, "a"),
    ],
)
def test_a_model_that_does_more_than_its_graph_is_refused(kind, operation):
    with pytest.raises(NoGraphError):
        operation(of_class(kind))


def test_a_nested_model_that_does_more_than_its_graph_is_one_layer():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, dense(2, "b")(of_class(Scaled)(x)))
    assert [tensor.address for tensor in read(model).tensors] == ["x", "own", "b"]
    parts, value = split(model, "own"), np.full((1, 4), 255.0, "float32")
    np.testing.assert_array_equal(parts.top(parts.bottom(value)), model(value))


def test_a_class_that_hands_its_input_over_is_read():
    assert extract(of_class(Polite), "a").output_shape == (None, 3)


# --- random inputs (surgery F16) ----------------------------------------------------------------


def looked_up(layer, dtype="string", shape=(1,)):
    x = keras.Input(shape, dtype=dtype, name="x")
    return keras.Model(x, dense(1, "h")(layer(x)))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="strings are TensorFlow's")
@pytest.mark.parametrize("unknown", [0, 1])
def test_strings_are_drawn_from_the_vocabulary(unknown):
    kind = {"num_oov_indices": unknown, "output_mode": "multi_hot", "name": "l"}
    words = layers.StringLookup(vocabulary=["a", "b"], **kind)
    numbers = layers.IntegerLookup(vocabulary=[10, 20], **kind)
    texts = layers.TextVectorization(vocabulary=["a", "b"], output_mode="multi_hot", name="l")
    models = looked_up(words), looked_up(words, shape=(2,)), looked_up(numbers, "int64")
    for model in (*models, looked_up(texts), looked_up(texts, shape=())):
        assert split(model, "l").verify().exact
    assert split(looked_up(layers.Hashing(5, output_mode="one_hot", name="l")), "l").verify().exact
    x = keras.Input((1,), dtype="int64", name="x")
    back = layers.StringLookup(vocabulary=["a", "b"], invert=True, name="back")(x)
    for outputs in (back, dense(1, "h")(words(back))):  # Keras takes these words for numbers
        model = keras.Model(x, outputs)
        assert split(model, "back").verify().exact
        assert clone(model)(np.array([[1]])).dtype == model(np.array([[1]])).dtype


class FourPlaces(layers.Layer):
    def build(self, shape):
        self.places = self.add_weight(shape=(4, shape[-1]), name="places")

    def call(self, x):
        return x + self.places[: ops.shape(x)[1]]

    def compute_output_shape(self, shape):  # which JAX cannot infer
        return shape


def test_open_lengths_heed_the_models_limits():
    x = keras.Input((None, 3), name="x")
    assert split(keras.Model(x, dense(1, "h")(FourPlaces(name="p")(x))), "p").verify().exact
    wide = layers.Conv1D(2, 11, name="c")(x)
    assert split(keras.Model(x, dense(1, "h")(wide)), "c").verify().exact
    too_wide = keras.Model(x, dense(1, "h")(layers.Conv1D(2, 99, name="c")(x)))
    with pytest.raises(SurgeryError, match="Expected x"):
        split(too_wide, "c").verify()
    given = np.ones((1, 99, 3), "float32")
    assert split(too_wide, "c").verify(given).exact


class Twice(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense(3, "dense")

    def call(self, x):
        return self.dense(x) * 2


def test_an_expansion_is_compared_on_given_inputs():
    x = keras.Input((None, 3), name="x")
    y = layers.Conv1D(3, 99, name="c")(Twice(name="twice")(x))
    model = keras.Model(x, y)
    opened = expand(model, "twice", x=np.ones((1, 99, 3), "float32"))
    assert "twice/dense" in [tensor.address for tensor in read(opened).tensors]


# --- addresses inside a nested backbone stay good (pipeline C) ----------------------------------


def tutorial(training=False):
    """The shape of Keras's transfer learning guide."""
    i = keras.Input((None, None, 1), name="i")
    y = i
    for block in (1, 2):
        y = layers.Conv2D(4, 3, strides=2, padding="same", name=f"conv{block}")(y)
        z = layers.BatchNormalization(name=f"bn{block}")(y)
        y = layers.Add(name=f"out{block}")([y, z])
    base = keras.Model(i, y, name="base")
    augmentation = keras.Sequential([layers.RandomFlip(seed=1), layers.RandomRotation(0.1, seed=2)])
    x = keras.Input((8, 8, 1), name="x")
    y = base(augmentation(x), training=training)
    y = layers.Dropout(0.2, name="drop")(layers.GlobalAveragePooling2D(name="pool")(y))
    return keras.Model(x, dense(4, "classes")(y), name="tutorial")


def test_addresses_of_a_nested_backbone_stay_good(tmp_path):
    model, at = tutorial(), "base/out1"
    value = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    wanted = np.array(extract(model, at)(value, training=False))
    for bottom in (
        split(model, at).bottom,
        clone(extract(model, at)),
        segment(model, [at, "pool"])[0],
        extract(model, {"deep": at, "pooled": at}),
    ):
        whole = attach(extract(bottom, at), heads.Classifier(3))
        assert freeze(whole, at).parameters()["frozen"] == 40 + 8
        whole.save(tmp_path / "whole.keras")
        for each in (bottom, whole, keras.saving.load_model(tmp_path / "whole.keras")):
            found = extract(each, at)(value, training=False)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    # The base is called with training=False, also where it ends at the cut.
    trained = extract(model, at)
    assert trained.get_layer("base") is not model.get_layer("base")
    moved = trained.get_layer("base").get_layer("bn1").moving_mean
    before = np.array(moved)
    trained(value, training=True)
    np.testing.assert_array_equal(moved, before)


# --- asked for and small (surgery, end) ---------------------------------------------------------


def two_towers(structure=list):
    inputs = {name: keras.Input((3,), name=name) for name in ("left", "right")}
    towers = [dense(2, f"tower_{name}")(x) for name, x in inputs.items()]
    y = dense(1, "h")(layers.Add(name="add")(towers))
    return keras.Model(inputs if structure is dict else [inputs["left"], [inputs["right"]]], y)


def test_a_part_without_the_inputs_that_it_does_not_need():
    value = np.ones((2, 3), "float32")
    left = extract(two_towers(), "tower_left", prune_inputs=True)
    assert left.input_shape == (None, 3) and left(value).shape == (2, 2)
    right = extract(two_towers(dict), "tower_right", prune_inputs=True)
    assert list(right.input) == ["right"] and right({"right": value}).shape == (2, 2)
    both = extract(two_towers(), "add", prune_inputs=True)
    keras.tree.assert_same_structure(both.input, two_towers().input)
    parts = split(two_towers(), "tower_left")
    assert parts.frontier == ("tower_left", "tower_right")
    assert len(extract(parts.source, list(parts.frontier), prune_inputs=True).inputs) == 2


def test_a_layer_on_one_edge():
    x = keras.Input((3,), name="x")
    y = dense(3, "a")(x)
    model = keras.Model(x, layers.Add(name="add")([y, layers.ReLU(name="relu")(y), x]))
    twice, thrice = layers.Rescaling(2.0, name="twice"), layers.Rescaling(3.0, name="thrice")
    result = edit(model, Insert(twice, after="a", before="add"), Insert(thrice, "a", "add")).model
    value = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    a, relu = (np.array(extract(model, at)(value)) for at in ("a", "relu"))
    np.testing.assert_allclose(result(value), 6 * a + relu + value, rtol=1e-5)
    with pytest.raises(EditError, match="'relu' is called on"):
        insert(model, twice, after="x", before="relu")
