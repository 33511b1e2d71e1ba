"""What is filling never changes what is pooled: real text under masks of every kind."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from reusekit.errors import AddressError
from reusekit.graph import read
from reusekit.graph.padding_mask import padding_mask
from reusekit.surgery import extract, split
from reusekit.training import attach, heads

POOLINGS = ("avg", "max", "concatenated", "attention", "token")
LENGTHS = (5, 3, 1, 0)


def told_by_an_input():
    """The mask reaches the attention as an argument; the input has no telling name."""
    words, other = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    x = layers.Embedding(20, 8, name="embedding")(words)
    kept = ops.expand_dims(ops.cast(other, "bool"), 1)
    y = layers.MultiHeadAttention(2, 4)(x, x, attention_mask=kept)
    return keras.Model([words, other], layers.Add(name="out")([x, y]))


def masked_by_keras():
    words, other = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(words)
    y = layers.MultiHeadAttention(2, 4)(x, x)
    return keras.Model([words, other], layers.Add(name="out")([x, y]))


def texts(length, filling, left=False):
    words = np.full((len(LENGTHS), length), filling, "int32")
    kept = np.zeros_like(words)
    for row, count in enumerate(LENGTHS):
        place = slice(length - count, length) if left else slice(count)
        words[row, place], kept[row, place] = np.arange(3, 3 + count), 1
    return [words, kept]


@pytest.mark.parametrize("build", [told_by_an_input, masked_by_keras])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_filling_never_changes_a_prediction(build, pooling, tmp_path):  # surgery F17
    filling = (0, 9) if build is told_by_an_input else (0, 0)
    bottom = build()
    model = attach(bottom, heads.Classifier(3, pooling=pooling, units=4))
    for variable in model.get_layer("head_query").weights if pooling == "attention" else ():
        variable.assign(keras.random.normal(variable.shape, seed=1))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = np.asarray(model(texts(5, filling[0])))
    assert np.isfinite(expected).all()
    for other in (model, loaded):
        for length, left in ((9, False), (16, True)):
            np.testing.assert_allclose(other(texts(length, filling[1], left)), expected, atol=1e-6)


@pytest.mark.parametrize("build", [told_by_an_input, masked_by_keras])
@pytest.mark.parametrize("pooling", ["avg", "max", "token"])
def test_features_are_those_of_the_kept_positions(build, pooling):
    bottom = build()
    maps = np.asarray(bottom(texts(7, 0)))
    pooled = np.asarray(extract(bottom, "out", pooling=pooling)(texts(7, 0)))
    how = {"avg": lambda x: x.mean(0), "max": lambda x: x.max(0), "token": lambda x: x[0]}
    for row, count in enumerate(LENGTHS[:-1]):
        np.testing.assert_allclose(pooled[row], how[pooling](maps[row, :count]), atol=1e-6)
    np.testing.assert_array_equal(pooled[-1], 0)  # nothing but filling
    everything = np.asarray(extract(bottom, "out", pooling=pooling, mask=None)(texts(7, 0)))
    expected = {"avg": maps.mean(1), "max": maps.max(1), "token": maps[:, 0]}[pooling]
    np.testing.assert_allclose(everything, expected, atol=1e-6)


def test_embeddings_are_pooled_under_what_is_told_after_them():
    bottom = told_by_an_input()
    maps = np.asarray(extract(bottom, "embedding")(texts(7, 0)))
    pooled = np.asarray(extract(bottom, "embedding", pooling="avg")(texts(7, 0)))
    for row, count in enumerate(LENGTHS[:-1]):
        np.testing.assert_allclose(pooled[row], maps[row, :count].mean(0), atol=1e-6)


def test_two_sequences_are_each_pooled_under_their_own_mask():
    one, other = (keras.Input((None,), dtype="int32", name=name) for name in ("one", "other"))
    masks = [keras.Input((None,), dtype="bool", name=name) for name in ("kept", "left")]
    x, y = (layers.Embedding(20, 8, name=f"of_{each.name}")(each) for each in (one, other))
    first, second = (ops.expand_dims(mask, 1) for mask in masks)
    x = layers.MultiHeadAttention(2, 4)(x, x, attention_mask=first)
    y = layers.MultiHeadAttention(2, 4)(y, y, attention_mask=second)
    y = layers.MultiHeadAttention(2, 4)(y, x, attention_mask=first)
    graph = read(keras.Model([one, other, *masks], y), keep_masks=True)
    found = [padding_mask(graph, graph.names[f"of_{name}"])[0] for name in ("one", "other")]
    assert [each.address for each in found] == ["kept", "left"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_part_with_one_of_several_calls_of_an_embedding_has_the_mask_of_that_call(number):
    """Calls are counted anew in a part."""
    names = ("one", "two", "three")
    inputs = [keras.Input((None,), dtype="int32", name=name) for name in names]
    masks = [keras.Input((None,), dtype="bool", name=f"mask_of_{name}") for name in names]
    embedding = layers.Embedding(20, 8, name="of")
    told = (ops.expand_dims(mask, 1) for mask in masks)
    attended = [
        layers.MultiHeadAttention(2, 4)(x, x, attention_mask=mask)
        for x, mask in zip(map(embedding, inputs), told, strict=True)
    ]
    model = keras.Model([*inputs, *masks], attended)
    part = extract(model, [f"of@{n}" for n in range(number, 3)])
    for at, wanted in zip(range(3 - number), names[number:], strict=True):
        graph = read(part, keep_masks=True)
        tensor = graph.names["of" if number == 2 else f"of@{at}"]
        assert padding_mask(graph, tensor)[0].address == f"mask_of_{wanted}"


@pytest.mark.parametrize("pooling", ["avg", "attention"])
def test_a_part_that_no_layer_tells_of_a_mask_has_that_of_its_source(pooling):
    """Also a part of it, and what is attached to it."""
    whole = told_by_an_input()
    bottom = split(whole, "embedding").bottom
    part = extract(extract(whole, "embedding"), "embedding")
    model = attach(part, heads.Classifier(3, pooling=pooling))
    again = extract(model, "embedding", pooling="avg")
    stored = extract(bottom, "embedding", pooling="avg")
    for each in (model, again, stored):
        expected = np.asarray(each(texts(5, 0)))
        np.testing.assert_allclose(each(texts(9, 9, left=True)), expected, atol=1e-6)


def test_a_part_that_cannot_know_its_mask_says_so(tmp_path):
    part = extract(told_by_an_input(), "embedding")
    part.save(tmp_path / "part.keras")
    loaded = keras.saving.load_model(tmp_path / "part.keras")
    mask = loaded.inputs[1].name
    with pytest.warns(UserWarning, match=f"'embedding' is pooled over all .* though '{mask}' may"):
        model = attach(loaded, heads.Classifier(3))
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=f"though '{mask}' may"):
        extract(keras.saving.load_model(tmp_path / "model.keras"), "embedding", pooling="avg")
    model = attach(loaded, heads.Classifier(3), mask=mask)
    expected = np.asarray(model(texts(5, 0)))
    np.testing.assert_allclose(model(texts(9, 9)), expected, atol=1e-6)
    words = extract(told_by_an_input(), "embedding", prune_inputs=True)
    with pytest.warns(UserWarning, match="which says which of them are filling, is not in"):
        attach(words, heads.Classifier(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attach(loaded, heads.Classifier(3), mask=None)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_neither_overflows_nor_divides_by_nothing(policy):
    words = keras.Input((None,), dtype="int32")
    embedding = layers.Embedding(20, 8, mask_zero=True, dtype=policy)
    scaled = layers.Rescaling(1e5 if policy == "mixed_bfloat16" else 1e4, dtype=policy, name="out")
    bottom = keras.Model(words, scaled(embedding(words)))
    embedding.embeddings.assign(np.ones((20, 8)))
    for pooling in ("avg", "max", "token"):
        pooled = extract(bottom, "out", pooling=pooling)(np.array([[1] * 600, [0] * 600]))
        assert pooled.dtype.name == policy.removeprefix("mixed_")
        largest = np.asarray(ops.cast(pooled, "float32"))
        assert largest[0].min() > 9e3 and np.isfinite(largest).all() and not largest[1].any()


def test_masks_that_contradict_each_other_are_none_and_said():
    words = keras.Input((6,), dtype="int32")
    one, other = (keras.Input((6,), dtype="bool", name=name) for name in ("one", "other"))
    x = layers.Embedding(20, 8)(words)
    for mask in (one, other):
        x = layers.MultiHeadAttention(2, 4)(x, x, attention_mask=ops.expand_dims(mask, 1))
    model = keras.Model([words, one, other], layers.Dense(2, name="out")(x))
    graph = read(model, keep_masks=True)
    found, doubt = padding_mask(graph, graph.names["out"])
    assert found is None and "'one', 'other'" in doubt
    with pytest.warns(UserWarning, match="pass one of them as mask"):
        extract(model, "out", pooling="avg")
    assert padding_mask(graph, graph.names["out"], "other")[0] is graph.names["other"]
    with pytest.raises(AddressError, match="Expected mask as the address"):
        extract(model, "out", pooling="avg", mask="out")


def test_unmasked_features_are_pooled_by_the_same_layers_as_ever():
    x = keras.Input((6, 4), name="x")
    model = keras.Model(x, layers.Dense(2, name="out")(x))
    assert [type(each) for each in extract(model, "out", pooling="max").layers[2:]] == [
        layers.GlobalMaxPooling1D
    ]
