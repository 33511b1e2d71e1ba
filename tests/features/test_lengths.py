"""Texts computed at their own lengths have the features that they have at one length."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reusekit.data import DataSplit, Task, from_arrays
from reusekit.features import Extraction, FeatureStore, stored_features
from reusekit.features.bottoms import tapped
from reusekit.features.lengths import Lengths
from reusekit.graph import read
from reusekit.planning import Resources, Trials, plan

SIZE, LENGTH, WORDS = 150, 32, 40
CUTS = [f"transformer_layer_{number}" for number in range(2)]
SMALL = Extraction(batch_size=16)


@pytest.fixture(scope="module")
def bert():
    hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    return hub.models.BertBackbone(
        vocabulary_size=WORDS,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        max_sequence_length=LENGTH,
    )


def tokens(left=False):
    """Texts of 0 to 32 words, most of them short, filled up at the end, or at the beginning."""
    numbers = np.random.default_rng(0)
    lengths = np.minimum(LENGTH, numbers.geometric(0.12, SIZE))
    lengths[:3] = 0, 1, LENGTH
    real = np.arange(LENGTH) < lengths[:, None]
    real = real[:, ::-1] if left else real
    return np.where(real, numbers.integers(1, WORDS, real.shape), 0).astype("int32")


def data_of(inputs, name="made:1.0.0"):
    parts = inputs, np.arange(SIZE)
    examples = tf.data.Dataset.from_tensor_slices(parts)
    return DataSplit(name, "train", examples, SIZE, Task("classification", ("a", "b")), "digest")


def for_bert(ids):
    mask = (ids > 0).astype("int32")
    return {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": mask}


def features(folder, model, cuts, data, monkeypatch=None, pooling="avg"):
    """The features; with a patch at one length, as without the shortening."""
    if monkeypatch is not None:
        monkeypatch.setattr("reusekit.features.bottoms.frontier_lengths", lambda _: None)
    store = FeatureStore(folder)
    found = stored_features(store, model, cuts, data, pooling=pooling, extraction=SMALL)
    return [(one.arrays(), one.labels) for one in found]


def positions(monkeypatch):
    """Note how many positions each batch has that a bottom is run on."""
    noted = []

    def noting(*args, **kwargs):
        run, reseed = tapped(*args, **kwargs)

        def noted_run(inputs):
            noted.append(np.asarray(keras.tree.flatten(inputs)[0]).size)
            return run(inputs)

        return noted_run, reseed

    monkeypatch.setattr("reusekit.features.bottoms.tapped", noting)
    return noted


@pytest.mark.parametrize("pooling", ["avg", "max", "token"])
def test_features_and_their_order_are_those_at_one_length(bert, tmp_path, monkeypatch, pooling):
    data = data_of(for_bert(tokens()))
    ran = positions(monkeypatch)
    found = features(tmp_path / "own", bert, CUTS, data, pooling=pooling)
    own, most = sum(ran), max(ran)
    ran.clear()
    wanted = features(tmp_path / "one", bert, CUTS, data, monkeypatch, pooling=pooling)
    assert own < 0.7 * sum(ran)
    # Batches of shorter texts have more of them, and not more positions.
    assert 0.9 * max(ran) < most <= max(ran)
    for (one, labels), (other, same) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(labels, same)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1, np.abs(other).max()))


def test_texts_filled_up_at_the_beginning_keep_their_length(bert, tmp_path, monkeypatch):
    data = data_of(for_bert(tokens(left=True)))
    ran = positions(monkeypatch)
    found = features(tmp_path / "own", bert, CUTS, data)
    # A text of one word, or of none, is short at whichever end it is filled up.
    assert sum(ran) >= 0.98 * SIZE * LENGTH
    wanted = features(tmp_path / "one", bert, CUTS, data, monkeypatch)
    for (one, _), (other, _) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(1, np.abs(other).max()))


def mixing(mix):
    """A model of texts, cut at "mixed", where each position has read others, filling among them."""
    keras.utils.set_random_seed(0)
    x = keras.Input((None,), dtype="int32", name="tokens")
    mixed = mix(layers.Embedding(WORDS, 6, name="embedding")(x))
    return keras.Model(x, layers.LSTM(3, name="last")(mixed, mask=keras.ops.not_equal(x, 0)))


def test_a_model_that_reads_what_is_filled_up_keeps_its_length(tmp_path, monkeypatch, capsys):
    model = mixing(layers.Conv1D(6, 9, padding="same", name="mixed"))
    data = data_of(tokens())
    (found,) = features(tmp_path / "own", model, ["mixed"], data)
    assert "computed at their full length" in capsys.readouterr().err
    (wanted,) = features(tmp_path / "one", model, ["mixed"], data, monkeypatch)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-6)


def test_a_model_that_reads_one_position_of_what_is_filled_up_keeps_its_length(tmp_path, capsys):
    model = mixing(layers.Conv1D(6, 3, padding="same", name="mixed"))
    # Most texts end two positions before the length that they are computed at: there nothing shows.
    ends = np.tile(np.arange(4, LENGTH + 1, 4), SIZE // 8 + 1)[:SIZE]
    ends[:-8] = np.maximum(1, ends[:-8] - 2)
    ids = np.where(np.arange(LENGTH) < ends[:, None], 7, 0).astype("int32")
    features(tmp_path, model, ["mixed"], data_of(ids))
    assert "computed at their full length" in capsys.readouterr().err


def test_a_model_that_takes_no_odd_length_keeps_its_length(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("reusekit.features.lengths.SIZES", LENGTH)

    def halved_and_doubled(y):
        halved = layers.UpSampling1D(2)(layers.AveragePooling1D(2)(y))
        return layers.Add(name="mixed")([y, halved])

    model = mixing(halved_and_doubled)
    data = data_of(tokens())
    (found,) = features(tmp_path / "own", model, ["mixed"], data)
    assert "since features cannot be computed where" in capsys.readouterr().err
    (wanted,) = features(tmp_path / "one", model, ["mixed"], data, monkeypatch)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-6)


def test_whole_maps_and_models_without_a_mask_keep_their_length(bert, tmp_path, monkeypatch):
    data = data_of(for_bert(tokens()))
    ran = positions(monkeypatch)
    features(tmp_path / "whole", bert, CUTS[:1], data, pooling=None)
    assert sum(ran) == SIZE * LENGTH


def test_a_text_keeps_what_differs_from_its_end_though_no_mask_counts_it():
    x, other = keras.Input((None,), name="x"), keras.Input((None,), name="other")
    lengths = Lengths(keras.Model({"x": x, "other": other}, [x]), 4)
    inputs = {"x": np.zeros((3, 16), "float32"), "other": np.zeros((3, 16), "float32")}
    inputs["x"][:, 0], inputs["other"][0, 6] = 1, 5  # the second input of the first goes on
    needed, whole = lengths.of(inputs)
    assert (needed.tolist(), whole) == ([8, 2, 2], 16)
    inputs["x"][2, 0] = 0  # nothing but filling
    assert lengths.of(inputs)[0].tolist() == [8, 2, 16]


def test_a_bottom_is_traced_once_for_plan_and_all_examples(tmp_path, monkeypatch):
    x = keras.Input((None, 3), name="x")
    graph = read(keras.Model(x, layers.GlobalAveragePooling1D(name="pool")(x)), keep_masks=True)
    numbers = np.random.default_rng(0).normal(size=(40, 5, 3)).astype("float32")
    traced, function = [], tf.function

    def noting(work, **options):
        traced.append(options.get("input_signature"))
        return function(work, **options)

    def split(name, values):
        return from_arrays(values, np.arange(len(values)) % 2, name)

    train, validation = split("train", numbers[:30]), split("validation", numbers[30:])
    store = FeatureStore(tmp_path)
    monkeypatch.setattr("reusekit.features.bottoms.tf.function", noting)
    plan(graph, [Trials("pool", "avg")], train, validation, store)
    for one in (train, validation):
        stored_features(store, graph, ["pool"], one, pooling="avg")
    once = len([one for one in traced if one])
    (found,) = stored_features(
        store, graph, ["pool"], split("short", numbers[:, :2]), pooling="avg"
    )
    assert once == 1
    assert len([one for one in traced if one]) == 2  # those of another length are traced anew
    expected = numbers[:, :2].mean(axis=1)
    np.testing.assert_allclose(np.asarray(found.stored["pool"]), expected, rtol=1e-5)


def test_the_plan_counts_what_is_left_out(bert, tmp_path, monkeypatch):
    data = data_of(for_bert(tokens()))
    args = bert, [Trials(at, "avg") for at in CUTS], data, data
    made = plan(*args, FeatureStore(tmp_path / "own"))
    (note,) = (text for text in made.notes if "sorted by length" in text)
    assert int(note.split(": ")[1].split("%")[0]) > 30
    known = Resources(costs=made.costs)
    shorter = plan(*args, FeatureStore(tmp_path / "again"), resources=known)
    monkeypatch.setattr("reusekit.planning.planner.frontier_lengths", lambda _: None)
    fixed = plan(*args, FeatureStore(tmp_path / "one"), resources=known)
    assert shorter.seconds < fixed.seconds
    assert not any("sorted by length" in text for text in fixed.notes)


def test_a_pass_that_goes_on_gives_the_same_bits(bert, tmp_path, monkeypatch):
    monkeypatch.setattr("reusekit.features.lengths.WINDOW_BATCHES", 3)
    data = data_of(for_bert(tokens()))
    wanted = features(tmp_path / "whole", bert, CUTS, data)
    store = FeatureStore(tmp_path / "stopped", block_bytes=64 * 40)  # 64 examples
    stops = [True]

    def stopping(*args, **kwargs):
        run, reseed = tapped(*args, **kwargs)
        runs = []

        def stopped(inputs):
            runs.append(len(inputs["token_ids"]))
            if stops and sum(runs) > 130:
                stops.clear()
                raise KeyboardInterrupt
            return run(inputs)

        return stopped, reseed

    monkeypatch.setattr("reusekit.features.bottoms.tapped", stopping)
    args = store, bert, CUTS, data
    with pytest.raises(KeyboardInterrupt):
        stored_features(*args, pooling="avg", extraction=SMALL)
    found = stored_features(*args, pooling="avg", extraction=SMALL)
    assert not stops
    for one, (other, _) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.arrays(), other)
