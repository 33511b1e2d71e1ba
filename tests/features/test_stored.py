"""Stored features of a cut, fed to its top, give what the whole model gives."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from zoo import ZOO

import reusekit as rk
from reusekit.data import DataSplit, Task
from reusekit.errors import CacheError, DataError
from reusekit.features import (
    Extraction,
    FeatureStore,
    Padding,
    feed,
    stored_features,
)

SIZE = 30


def data_of(inputs, labels=None, name="made:1.0.0"):
    """A data set of arrays, of a structure of arrays, or of ragged ones."""
    labels = np.arange(SIZE) if labels is None else labels
    examples = inputs
    if not isinstance(inputs, tf.data.Dataset):
        examples = tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(inputs))
    examples = tf.data.Dataset.zip(examples, tf.data.Dataset.from_tensor_slices(labels))
    return DataSplit(
        name, "train", examples, SIZE, Task("classification", ("a", "b")), "fingerprint"
    )


def without_examples(data):
    """The same data set, which cannot be read any more."""

    def unreadable():
        raise AssertionError("The bottom runs again.")
        yield

    spec = data.examples.element_spec
    return replace(data, examples=tf.data.Dataset.from_generator(unreadable, output_signature=spec))


def images():
    return np.random.default_rng(0).uniform(0, 1, (SIZE, 8, 8, 3)).astype("float32")


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path, block_bytes=4000)


def from_stored(features, top, batch_size=7):
    """The top's predictions on stored features, in order."""
    return top.predict(features.batches(batch_size), verbose=0)


# Each makes random inputs of its own structure; all of one size.
CUT_AT = {
    "residual": "relu1",  # a skip connection crosses as well
    "several_inputs_and_outputs": None,
    "dict_inputs_and_outputs": None,
    "masked_lstm": None,
    "masked_attention": None,
    "integers_and_bools_cross": None,
    "mixed_precision": None,
    "nested_three_deep": None,
}


def random_inputs(model):
    generator = np.random.default_rng(0)

    def draw(tensor):
        shape = (SIZE, *(6 if size is None else size for size in tensor.shape[1:]))
        if "int" in tensor.dtype:
            return generator.integers(0, 3, shape).astype(tensor.dtype)
        return generator.uniform(size=shape).astype(tensor.dtype)

    return keras.tree.map_structure(draw, model.input)


@pytest.mark.parametrize("name", CUT_AT)
def test_the_top_gives_what_the_whole_model_gives(name, store):
    keras.utils.set_random_seed(0)
    model = ZOO[name]()
    inputs = random_inputs(model)
    points = [point.at for point in rk.cut_points(model, max_width=None)]
    at = CUT_AT[name] or points[len(points) // 2]
    (features,) = stored_features(store, model, [at], data_of(inputs))
    whole = model.predict(inputs, verbose=0)
    parted = from_stored(features, rk.split(model, at).top)
    for one, other in zip(keras.tree.flatten(whole), keras.tree.flatten(parted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_many_cuts_cost_one_pass_and_a_second_time_none(store):
    keras.utils.set_random_seed(0)
    model = ZOO["residual"]()
    data = data_of(images())
    cuts = ["stem", "out0", "out1"]
    whole = stored_features(store, model, cuts, data)
    for at, features in zip(cuts, whole, strict=True):
        alone = rk.extract(model, at).predict(images(), verbose=0)
        np.testing.assert_allclose(np.asarray(features.stored[at]), alone, rtol=1e-5, atol=1e-6)
        assert np.asarray(features.labels).tolist() == list(range(SIZE))
    again = stored_features(store, model, ["out1", "stem"], without_examples(data))
    assert list(again[0].stored) == ["out1"]
    model.get_layer("conv1").kernel.assign(model.get_layer("conv1").kernel.value * 2)
    stored_features(store, model, ["out0"], without_examples(data))  # below the changed layer
    with pytest.raises(Exception, match="The bottom runs again"):
        stored_features(store, model, ["out1"], without_examples(data))


def test_pooled_features_are_stored_alone(store):
    model = ZOO["residual"]()
    (features,) = stored_features(store, model, ["relu1"], data_of(images()), pooling="avg")
    assert list(features.stored) == ["relu1"]
    alone = rk.extract(model, "relu1").predict(images(), verbose=0).mean(axis=(1, 2))
    np.testing.assert_allclose(np.asarray(features.stored["relu1"]), alone, rtol=1e-5, atol=1e-6)
    (inputs, _), *_ = features.batches(10)
    assert inputs.shape == (10, 4)


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_features_take_half_the_bytes_and_come_back_in_the_models_precision(dtype, digits, store):
    model = ZOO["residual"]()
    (full,) = stored_features(store, model, ["relu1"], data_of(images()))
    (half,) = stored_features(
        store, model, ["relu1"], data_of(images()), extraction=Extraction(dtype=dtype)
    )
    for name, array in half.stored.items():
        assert array.dtype == dtype
        assert 2 * array.nbytes == full.stored[name].nbytes
        wide = np.asarray(array).astype("float32")
        np.testing.assert_allclose(wide, np.asarray(full.stored[name]), rtol=digits, atol=1e-6)
    (inputs, _), *_ = half.batches(10)
    assert {tensor.dtype.name for tensor in inputs} == {"float32"}


def test_what_float16_cannot_hold_is_refused(store):
    x = keras.Input((3,))
    model = keras.Model(x, layers.Rescaling(1e6, name="large")(x))
    data = data_of(np.ones((SIZE, 3), "float32"))
    with pytest.raises(CacheError, match="more than float16 can hold"):
        stored_features(store, model, ["large"], data, extraction=Extraction(dtype="float16"))
    assert store.entries() == []
    stored_features(store, model, ["large"], data, extraction=Extraction(dtype="bfloat16"))


def test_random_layers_and_batch_statistics_do_not_act(store):
    x = keras.Input((8, 8, 3))
    y = layers.BatchNormalization(name="norm")(layers.Dropout(0.5)(x))
    model = keras.Model(x, y)
    (features,) = stored_features(store, model, ["norm"], data_of(images()))
    expected = images() / np.sqrt(1 + 1e-3)
    np.testing.assert_allclose(np.asarray(features.stored["norm"]), expected, rtol=1e-5)
    assert not model.get_layer("norm").moving_mean.numpy().any()


def test_batches_come_in_the_order_of_the_plain_pipeline(store):
    model = ZOO["residual"]()
    data = data_of(images())
    (features,) = stored_features(store, model, ["stem"], data)
    plain = feed(images(), np.arange(SIZE), 7, seed=4)
    stored = features.batches(7, seed=4)
    for _ in range(2):
        both = zip(plain, stored, strict=True)
        assert all((one[1].numpy() == other[1].numpy()).all() for one, other in both)


def attending(length):
    """Token embeddings that attend to one another where a mask of (length, length) says so."""
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    valid = keras.Input((length,), dtype="bool", name="valid")
    pairs = keras.ops.logical_and(valid[:, :, None], valid[:, None, :])
    x = layers.Embedding(20, 6, name="embedding")(tokens)
    y = layers.MultiHeadAttention(2, 3, name="attention")(x, x, attention_mask=pairs)
    y = layers.Add(name="sum")([x, y])
    y = keras.ops.where(valid[:, :, None], y, 0.0)
    y = layers.GlobalMaxPooling1D(name="pool")(y)
    return keras.Model({"tokens": tokens, "valid": valid}, layers.Dense(2, name="head")(y))


def padded(length, **options):
    return Extraction(padding=Padding(length, **options))


def sentences():
    lengths = np.random.default_rng(1).integers(1, 13, SIZE)

    def generate():
        for number, length in enumerate(lengths):
            tokens = (np.arange(length) * 7 + number) % 19 + 1
            yield {"tokens": tokens.astype("int32"), "valid": np.ones(length, bool)}

    spec = {
        "tokens": tf.TensorSpec((None,), tf.int32),
        "valid": tf.TensorSpec((None,), tf.bool),
    }
    generated = tf.data.Dataset.from_generator(generate, output_signature=spec)
    return generated.apply(tf.data.experimental.assert_cardinality(SIZE))


@pytest.mark.parametrize("length", [12, 20])
def test_free_tensors_that_cross_are_stored(length, store):
    keras.utils.set_random_seed(0)
    model = attending(length)
    data = data_of(sentences())
    (features,) = stored_features(store, model, ["embedding"], data, extraction=padded(length))
    assert (SIZE, length, length) in [one.shape for one in features.stored.values()]  # of pairs
    parted = from_stored(features, rk.split(model, "embedding").top)
    batches = Padding(length).batch(sentences(), 7)
    np.testing.assert_allclose(parted, model.predict(batches, verbose=0), atol=1e-6)


def test_padding_never_changes_a_prediction(store):
    found = []
    for length in (12, 16, 31):
        keras.utils.set_random_seed(0)
        model = attending(length)
        (features,) = stored_features(
            store, model, ["embedding"], data_of(sentences()), extraction=padded(length)
        )
        found.append(from_stored(features, rk.split(model, "embedding").top))
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)


def test_booleans_are_filled_with_false_whatever_numbers_are_filled_with():
    batch = next(Padding(14, value=7).batch(sentences(), SIZE).as_numpy_iterator())
    for row, example in enumerate(sentences().as_numpy_iterator()):
        length = len(example["tokens"])
        assert batch["valid"][row].tolist() == [True] * length + [False] * (14 - length)
        assert set(batch["tokens"][row, length:]) == {7}


def test_examples_of_several_lengths_need_a_padding_that_is_long_enough(store):
    model, data = attending(8), data_of(sentences())
    with pytest.raises(DataError, match=r"of one shape.*Padding\(length="):
        stored_features(store, model, ["embedding"], data)
    with pytest.raises(DataError, match=r"that fit Padding\(length=8"):
        stored_features(store, model, ["embedding"], data, extraction=padded(8))
    assert not [entry for entry in store.entries() if entry.whole]
    cut = padded(8, longer="truncate")
    (features,) = stored_features(store, model, ["embedding"], data, extraction=cut)
    valid = next(
        np.asarray(one)[..., 0] for one in features.stored.values() if one.shape[1:] == (8, 1)
    )
    lengths = [len(example["tokens"]) for example in sentences().as_numpy_iterator()]
    assert valid.sum(axis=1).tolist() == [min(length, 8) for length in lengths]


def test_wrong_requests_are_refused(store):
    model, data = ZOO["residual"](), data_of(images())
    with pytest.raises(CacheError, match="Did you mean 'float16'"):
        Extraction(dtype="flaot16")
    with pytest.raises(rk.errors.UnknownAddressError, match="'stem'"):
        stored_features(store, model, ["stemm"], data)
    with pytest.raises(DataError, match=r"Expected 40 examples. Received: 30, and no more"):
        stored_features(store, model, ["stem"], replace(data, size=40))
    with pytest.raises(DataError, match=r"Expected 20 examples. Received: 30 or more"):
        stored_features(store, model, ["stem"], replace(data, size=20))
    assert store.entries() == []


def test_what_follows_from_the_batch_before_is_refused(store):
    x = keras.Input(batch_shape=(SIZE // 2, 3, 4), name="x")
    recurrent = layers.Bidirectional(layers.GRU(5, stateful=True), name="both")
    model = keras.Model(x, layers.Dense(2, name="out")(recurrent(layers.Dense(4, name="a")(x))))
    data = data_of(np.ones((SIZE, 3, 4), "float32"))
    stored_features(store, model, ["a"], data, pooling="avg")
    with pytest.raises(rk.ConfigError, match="Received: the layer 'both', which is stateful"):
        stored_features(store, model, ["out"], data)


def test_a_transformer_is_cut_at_a_block_with_its_mask(store):
    hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    bert = hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        max_sequence_length=24,
    )

    def tokenised(example):
        return {
            "token_ids": example["tokens"],
            "segment_ids": tf.zeros_like(example["tokens"]),
            "padding_mask": example["valid"],
        }

    data, found = data_of(sentences().map(tokenised)), []
    for length in (12, 24):
        padding = Padding(length)
        how = Extraction(padding=padding)
        (block,) = stored_features(store, bert, ["transformer_layer_0"], data, extraction=how)
        assert list(block.stored) == ["transformer_layer_0", "padding_mask"]
        assert block.stored["transformer_layer_0"].shape == (SIZE, length, 8)
        top = rk.split(bert, "transformer_layer_0").top
        found.append(from_stored(block, top)["pooled_output"])
    whole = bert.predict(padding.batch(data.examples, 8), verbose=0)["pooled_output"]
    np.testing.assert_allclose(found[1], whole, atol=1e-5)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_one_pass_stores_maps_and_what_is_pooled_of_them(store):
    model = ZOO["residual"]()
    reads = []

    def read():
        reads.append(1)
        yield from zip(images(), range(SIZE), strict=True)

    spec = (tf.TensorSpec((8, 8, 3)), tf.TensorSpec((), tf.int64))
    counted = tf.data.Dataset.from_generator(read, output_signature=spec)
    data = replace(data_of(images()), examples=counted)
    cuts, poolings = ["relu1", "relu1", "out0"], [None, "avg", "max"]
    maps, mean, most = stored_features(store, model, cuts, data, pooling=poolings)
    assert len(reads) == 1
    whole = np.asarray(maps.stored["relu1"])
    pooled = np.asarray(mean.stored["relu1"])
    np.testing.assert_allclose(pooled, whole.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    alone = rk.extract(model, "out0", "max").predict(images(), verbose=0)
    np.testing.assert_allclose(np.asarray(most.stored["out0"]), alone, rtol=1e-5, atol=1e-6)
    again = stored_features(store, model, ["relu1"], without_examples(data), pooling="avg")
    np.testing.assert_array_equal(np.asarray(again[0].stored["relu1"]), pooled)


def test_masks_count_where_features_are_pooled(store):
    keras.utils.set_random_seed(0)
    model = ZOO["masked_attention"]()
    inputs = random_inputs(model)
    cuts, poolings = ["norm", "embed", "norm"], ["avg", "avg", None]
    pooled = stored_features(store, model, cuts, data_of(inputs), pooling=poolings)
    for at, features in zip(cuts, pooled[:2], strict=False):
        alone = rk.extract(model, at, "avg").predict(inputs, verbose=0)
        np.testing.assert_allclose(np.asarray(features.stored[at]), alone, rtol=1e-5, atol=1e-6)
