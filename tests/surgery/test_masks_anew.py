"""Masks are where Keras would have put them, had the layers of an edited model been called."""

import keras
import numpy as np
import pytest
from keras import layers

from reusekit.surgery import flatten, insert, prepend, remove, replace, split

TIMES, TOKENS = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32"), None
TIMES[:, 3:] = 0
TOKENS = np.array([[1, 2, 3, 0, 0], [4, 0, 5, 6, 0]])


def check(edited, called, x, folder, at):
    """An edited model against the same layers called, and cut as its saved copy is cut."""
    expected = np.asarray(called(x))
    np.testing.assert_array_equal(edited(x), expected)
    edited.save(folder / "edited.keras")
    loaded = keras.saving.load_model(folder / "edited.keras")
    for model in (edited, loaded):
        parts = split(model, at)
        stored = keras.tree.map_structure(np.asarray, parts.bottom(x))
        np.testing.assert_array_equal(parts.top(stored), expected)
        assert len(parts.frontier) == len(split(loaded, at).frontier)


@pytest.mark.parametrize(
    "reader",
    [
        layers.LSTM(4, name="reader"),  # surgery F6
        layers.GRU(4, name="reader"),
        layers.Bidirectional(layers.LSTM(3), name="reader"),
        layers.GlobalAveragePooling1D(name="reader"),
    ],
)
def test_masking_that_is_put_in_is_seen_by_what_follows(reader, tmp_path):
    x = keras.Input((5, 3), name="x")
    dense = layers.TimeDistributed(layers.Dense(3, use_bias=False), name="d")
    model = keras.Model(x, reader(dense(x)))
    called = keras.Model(x, reader(dense(layers.Masking()(x))))
    masking = layers.Masking(name="k")
    for edited in (insert(model, masking, after="x"), prepend(model, masking)):
        check(edited, called, TIMES, tmp_path, "d")
    assert np.abs(np.asarray(model(TIMES)) - called(TIMES)).max() > 1e-3


def transformer(embedding, parts):
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    x = parts["d"](embedding(tokens))
    y = layers.Add(name="add")([x, parts["mha"](x, x)])
    y = layers.Concatenate(name="cat")([y, x])
    return keras.Model(tokens, parts["g"](parts["l"](y)))


def test_an_embedding_that_masks_takes_the_place_of_one_that_does_not(tmp_path):
    parts = {
        "d": layers.Dense(4, name="d"),
        "mha": layers.MultiHeadAttention(2, 2, name="mha"),
        "l": layers.LSTM(3, return_sequences=True, name="l"),
        "g": layers.GRU(2, name="g"),
    }
    plain, masking = (layers.Embedding(9, 4, mask_zero=m, name="e") for m in (False, True))
    unmasked = transformer(plain, parts)
    masking.build()
    masking.set_weights(plain.get_weights())
    masked = transformer(masking, parts)
    assert np.abs(np.asarray(masked(TOKENS)) - unmasked(TOKENS)).max() > 1e-4
    for at in ("d", "add", "l"):
        check(replace(unmasked, "e", masking), masked, TOKENS, tmp_path, at)
        check(replace(masked, "e", plain), unmasked, TOKENS, tmp_path, at)


def test_a_mask_goes_with_the_layer_that_made_it(tmp_path):
    x = keras.Input((5, 3), name="x")
    dense, lstm = layers.Dense(3, use_bias=False, name="d"), layers.LSTM(4, name="l")
    model = keras.Model(x, lstm(dense(layers.Masking(name="k")(x))))
    check(remove(model, "k"), keras.Model(x, lstm(dense(x))), TIMES, tmp_path, "d")
    edited = insert(model, layers.Masking(TIMES[0, 0, 0], name="other"), after="k")
    called = lstm(dense(layers.Masking(TIMES[0, 0, 0])(layers.Masking()(x))))
    check(edited, keras.Model(x, called), TIMES, tmp_path, "d")


@pytest.mark.filterwarnings("ignore:Layer 'block'")  # Keras says that it destroys the mask
def test_masking_before_and_in_a_nested_model(tmp_path):
    inner, x = keras.Input((5, 3), name="inner"), keras.Input((5, 3), name="x")
    dense, gru = layers.Dense(3, use_bias=False, name="d"), layers.GRU(4, name="g")
    block = keras.Model(inner, gru(dense(inner)), name="block")
    model = keras.Model(x, block(x))
    called = keras.Model(x, gru(dense(layers.Masking()(x))))
    before = insert(model, layers.Masking(name="k"), after="x")
    check(before, called, TIMES, tmp_path, "block/d")
    check(flatten(before), called, TIMES, tmp_path, "d")
    within = insert(model, layers.Masking(name="k"), after="block/d")
    check(within, keras.Model(x, gru(layers.Masking()(dense(x)))), TIMES, tmp_path, "k")


def test_a_model_in_front_hands_its_mask_on(tmp_path):
    raw, x = keras.Input((5, 3), name="raw"), keras.Input((5, 3), name="x")
    dense, lstm = layers.Dense(3, use_bias=False, name="d"), layers.LSTM(4, name="l")
    front = keras.Model(raw, dense(layers.Masking(name="k")(raw)))
    called = keras.Model(raw, lstm(dense(layers.Masking()(raw))))
    check(prepend(keras.Model(x, lstm(x)), front), called, TIMES, tmp_path, "d")
