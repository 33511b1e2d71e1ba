"""Texts as tokens, made once by the tokenizer of the backbone, and pooled without filling."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import reusekit as rk
from reusekit.backbones import prosenet
from reusekit.data import DataSplit, Task
from reusekit.data.texts import names_of_texts, tokenized
from reusekit.features import FeatureStore, stored_features
from reusekit.surgery import prepend

TEXTS = [
    "Return the number of rows.",
    "Read",
    "Close the file, and wait until every thread has ended; then return the model's value.",
    "",
    "zzyzx qwghlm",
]


def split_of(inputs, labels=None) -> DataSplit:
    labels = np.arange(len(TEXTS)) % 2 if labels is None else labels
    examples = tf.data.Dataset.from_tensor_slices((inputs, labels))
    task = Task("classification", ("even", "odd"))
    return DataSplit("texts:1.0.0", "train", examples, len(labels), task, "abc")


@pytest.fixture(scope="module")
def backbone():
    return rk.load_backbone("reusekit/prosenet")


@pytest.fixture(scope="module")
def tokens(backbone):
    return tokenized(split_of(TEXTS), backbone.tokenizer(24))


def test_tokens_keep_order_labels_and_what_they_came_from(tokens):
    inputs, labels = tokens.arrays()
    words = prosenet.vocabulary()
    read = " ".join(words[number - prosenet.MASK] for number in inputs[0] if number)
    assert read == "return the number of rows"
    assert labels.tolist() == [0, 1, 0, 1, 0]
    assert inputs[3].tolist() == [0] * 24
    assert inputs[4].tolist() == [prosenet.UNKNOWN] * 2 + [0] * 22
    assert tokens.raw.arrays()[0][1] == b"Read"
    assert (tokens.size, tokens.name, tokens.split) == (5, "texts:1.0.0", "train")


def test_other_tokens_have_another_fingerprint(backbone, tokens):
    again = tokenized(split_of(TEXTS), backbone.tokenizer(24))
    shorter = tokenized(split_of(TEXTS), backbone.tokenizer(8))
    assert again.fingerprint == tokens.fingerprint
    assert len({tokens.fingerprint, shorter.fingerprint, tokens.raw.fingerprint}) == 3
    assert shorter.input_shape == (8,)


def test_pairs_share_the_length_and_keep_their_names(backbone):
    pair = split_of({"question": TEXTS, "answer": TEXTS[::-1]})
    assert names_of_texts(pair) == ("question", "answer")
    made = tokenized(pair, backbone.tokenizer(16, names_of_texts(pair))).arrays()[0]
    alone = tokenized(split_of(TEXTS), backbone.tokenizer(8)).arrays()[0]
    np.testing.assert_array_equal(made, np.concatenate([alone, alone[::-1]], axis=1))


def test_what_are_no_texts_alone_has_no_names():
    numbers = np.ones((5, 2), "float32")
    assert names_of_texts(split_of(numbers)) == ()
    assert names_of_texts(split_of({"text": TEXTS, "more": numbers})) == ()


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_stored_features_are_those_of_each_text_alone(backbone, tokens, tmp_path, pooling):
    store = FeatureStore(tmp_path)
    cuts = ["embedding_out", "block2_out", "block4_out"]
    entries = stored_features(store, backbone.model, cuts, tokens, pooling=pooling)
    plain = keras.Model(
        backbone.model.input, [backbone.model.get_layer(cut).output for cut in cuts]
    )
    pool = {"avg": np.mean, "max": np.max}[pooling]
    for row, ids in enumerate(tokens.arrays()[0]):
        length = np.count_nonzero(ids)
        if not length:
            continue
        maps = plain.predict_on_batch(ids[None, :length])  # with no filling at all
        for entry, cut, features in zip(entries, cuts, maps, strict=True):
            expected = pool(features[0], axis=0)
            np.testing.assert_allclose(entry.stored[cut][row], expected, atol=2e-5)


def test_a_head_on_strings_is_the_head_on_tokens(backbone, tokens):
    keras.utils.set_random_seed(0)
    whole = rk.attach(rk.extract(backbone.model, "block2_out"), rk.heads.Classifier(2))
    strings = prepend(whole, backbone.tokenizer(24))
    np.testing.assert_allclose(
        strings.predict_on_batch(tf.constant(TEXTS)),
        whole.predict_on_batch(tokens.arrays()[0]),
        atol=1e-6,
    )
