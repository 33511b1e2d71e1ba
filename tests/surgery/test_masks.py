"""Masks that appear only when a model runs, and masks that merge layers combine."""

import keras
import pytest
from contract import arrays, assert_equal, run_surgery_test
from keras import layers, ops

from reusekit.errors import DisconnectedError
from reusekit.graph import cut_points, read
from reusekit.surgery import Insert, clone, edit, extract, flatten, split
from reusekit.surgery.certificate import random_inputs

MODELS = {}


def masked(build):
    MODELS[build.__name__] = build
    return build


def ids(name="ids"):
    return keras.Input((3,), dtype="int32", name=name)


def reversible(name="embed"):
    """Its mask is set when it runs; Keras knows nothing of it while the model is built."""
    return layers.ReversibleEmbedding(3, 4, mask_zero=True, name=name)


def rnn(*args, **kwargs):
    """Unrolled, which takes less time where every operation runs by itself."""
    return layers.SimpleRNN(*args, unroll=True, **kwargs)


def embedding(name="embed"):
    return layers.Embedding(3, 4, mask_zero=True, name=name)


@masked
def run_time_mask_into_an_lstm():
    x = ids()
    y = layers.Dense(4, name="project")(reversible()(x))
    y = layers.LSTM(3, return_sequences=True, name="lstm")(y)
    return keras.Model(x, layers.GRU(2, name="gru")(y), name="m")


@masked
def run_time_mask_of_a_tied_head():
    x, embed = ids(), reversible()
    y = rnn(4, return_sequences=True, name="rnn")(embed(x))
    return keras.Model(x, embed(y, reverse=True), name="m")


@masked
def run_time_mask_through_attention():
    x = ids()
    y = layers.Dropout(0.1, name="drop")(reversible()(x))
    z = layers.MultiHeadAttention(2, 2, name="attention")(y, y)
    y = layers.LayerNormalization(name="norm")(layers.Add(name="add")([y, z]))
    z = layers.MultiHeadAttention(2, 2, name="again")(y, z)
    y = layers.Multiply(name="gate")([y, z])
    return keras.Model(x, layers.GlobalAveragePooling1D(name="pool")(y), name="m")


@masked
def run_time_mask_into_a_nested_model():
    inner = keras.Input((3, 4), name="inner")
    y = rnn(3, name="rnn")(layers.Dense(4, name="a")(inner))
    block = keras.Model(inner, y, name="block")
    x = ids()
    return keras.Model(x, layers.Dense(2, name="head")(block(reversible()(x))), name="m")


@masked
def run_time_mask_made_inside_a_nested_model():
    inner = ids("inner")
    block = keras.Model(inner, layers.Dense(4, name="a")(reversible()(inner)), name="block")
    x = ids()
    return keras.Model(x, rnn(3, name="rnn")(block(x)), name="m")


@masked
def run_time_masks_of_two_calls_of_one_embedding():
    left, right, embed = ids("left"), ids("right"), reversible()
    both = layers.Concatenate(axis=1, name="both")([embed(left), embed(right)])
    y = layers.Add(name="sum")([embed(left), embed(right)])
    y = layers.Dense(2, name="head")(rnn(3, name="rnn")(y))
    return keras.Model([left, right], [y, rnn(2, name="other_rnn")(both)], name="m")


def merge_in_a_nested_model(merge):
    def build():
        inner = keras.Input((3, 4), name="inner")
        y = merge([layers.Dense(4, name="a", activation="tanh")(inner), inner])
        y = layers.Dense(4, name="b")(y)
        block = keras.Model(inner, rnn(3, name="rnn")(y), name="block")
        x = ids()
        return keras.Model(x, layers.Dense(2, name="head")(block(embedding()(x))), name="m")

    return build


for kind in ("Subtract", "Minimum"):  # the others are in the models below
    MODELS[f"{kind.lower()}_in_a_nested_model"] = merge_in_a_nested_model(
        getattr(layers, kind)(name="merge")
    )
MODELS["sequences_joined_in_a_nested_model"] = merge_in_a_nested_model(
    layers.Concatenate(axis=1, name="merge")
)


@masked
def masked_and_not_masked_joined_in_a_nested_model():
    one, other = keras.Input((3, 4), name="one"), keras.Input((3, 4), name="other")
    y = layers.Concatenate(axis=1, name="join")([one, other])
    z = layers.Multiply(name="product")([one, other])
    block = keras.Model(
        [one, other],
        [rnn(3, name="rnn")(y), rnn(3, name="other_rnn")(z)],
        name="block",
    )
    x, plain = ids(), keras.Input((3, 4), name="plain")
    return keras.Model([x, plain], block([embedding()(x), plain]), name="m")


@masked
def two_masks_into_a_nested_model():
    one, other = keras.Input((3, 4), name="one"), keras.Input((3, 4), name="other")
    y = layers.Maximum(name="larger")([one, layers.Dense(4, name="a")(other)])
    block = keras.Model([one, other], rnn(3, return_sequences=True, name="rnn")(y))
    left, right = ids("left"), ids("right")
    y = block([embedding("first")(left), embedding("second")(right)])
    return keras.Model([left, right], rnn(2, name="other_rnn")(y), name="m")


@masked
def merges_two_models_deep():
    core = keras.Input((3, 4), name="core_in")
    y = layers.Add(name="skip")([layers.Dense(4, name="a")(core), core])
    core = keras.Model(core, y, name="core")
    inner = keras.Input((3, 4), name="inner")
    y = layers.Average(name="mean")([core(inner), core(layers.Dense(4, name="b")(inner))])
    block = keras.Model(inner, rnn(3, name="rnn")(y), name="block")
    x = ids()
    return keras.Model(x, layers.Dense(2, name="head")(block(embedding()(x))), name="m")


@masked
def masking_in_a_sequential_in_a_nested_model():
    stack = keras.Sequential(
        [
            keras.Input((3, 4)),
            layers.Masking(0.0, name="masking"),
            layers.Dense(4, name="a"),
            rnn(3, return_sequences=True, name="rnn"),
        ],
        name="stack",
    )
    inner = keras.Input((3, 4), name="inner")
    y = layers.Concatenate(name="join")([stack(inner), inner])
    block = keras.Model(inner, rnn(3, name="other_rnn")(y), name="block")
    x = ids()
    return keras.Model(x, block(embedding()(x)), name="m")


@keras.saving.register_keras_serializable("test_masks")
class ReadsMasks(layers.Layer):
    """Takes the mask off what it is fed, without an argument for it."""

    def call(self, x):
        mask = getattr(x, "_keras_mask", None)
        return x if mask is None else ops.where(mask[..., None], x, -1.0)

    def compute_output_shape(self, shape):
        return shape


@keras.saving.register_keras_serializable("test_masks")
class HidesMasks(layers.Layer):
    """A layer whose output carries the mask of one that it holds; its class says nothing."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = embedding("inner")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)


@masked
def a_layer_of_the_users_own_reads_a_mask():
    x = ids()
    y = ReadsMasks(name="reads")(layers.Dense(4, name="a")(embedding()(x)))
    y = ReadsMasks(name="again")(layers.Add(name="add")([y, reversible("other")(x)]))
    return keras.Model(x, layers.Dense(2, name="head")(y), name="m")


@keras.saving.register_keras_serializable("test_masks")
class TellsMasks(HidesMasks):
    """As the refusal advises."""

    def compute_mask(self, x, mask=None):
        return self.inner.compute_mask(x)


@masked
def a_hidden_mask_that_is_told():
    x = ids()
    y = layers.Dense(4, name="a")(TellsMasks(name="tokens")(x))
    return keras.Model(x, rnn(3, name="rnn")(y), name="m")


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor(name, tmp_path):
    run_surgery_test(MODELS[name](), tmp_path)


def test_a_mask_that_only_shows_when_the_model_runs_is_a_free_tensor():
    graph = read(run_time_mask_into_an_lstm())
    lstm = graph.maker[graph.names["lstm"]]
    ((tensor, mask),) = lstm.masks
    assert (tensor.address, mask.address) == ("project", "embed/mask")
    assert mask in graph.free
    parts = split(graph, "project", strict=True)
    assert parts.frontier == ("project", "embed/mask")
    assert parts.free == ("embed/mask",)


def test_a_cut_behind_the_last_reader_needs_no_mask():
    parts = split(run_time_mask_into_an_lstm(), "gru")
    assert parts.frontier == ("gru",)
    x = ids()
    y = layers.Dense(2, name="head")(layers.LSTM(3, name="lstm")(reversible()(x)))
    assert split(keras.Model(x, y), "lstm").frontier == ("lstm",)


def test_masks_do_matter_in_these_models():
    """A top that is fed the features and no mask at all would give something else."""
    model = run_time_mask_into_an_lstm()
    parts = split(model, "project")
    x = random_inputs(read(model))
    features, mask = parts.bottom(x)
    assert not ops.all(mask)
    with_mask, without = parts.top([features, mask]), parts.top([features, ops.ones_like(mask)])
    assert float(ops.max(ops.abs(with_mask - without))) > 1e-4


def test_reading_a_model_puts_no_mask_on_its_tensors():
    model = run_time_mask_into_an_lstm()
    split(model, "project")
    flatten(model)
    edit(model, Insert(layers.Dropout(0.1, name="drop"), after="project"))
    tensors = [layer.output for layer in model.layers]
    assert all(getattr(tensor, "_keras_mask", None) is None for tensor in tensors)


def test_an_edited_mask_is_the_mask_that_is_used():
    """Also where the layer reads it off a tensor that still carries the old one."""
    model = run_time_mask_into_an_lstm()
    everything = layers.Lambda(ops.ones_like, output_shape=(3,), dtype="bool", name="everything")
    changed = edit(model, Insert(everything, after="embed/mask")).model
    x = random_inputs(read(model))
    parts = split(model, "project")
    features, mask = parts.bottom(x)
    assert_equal(arrays(changed(x)), arrays(parts.top([features, ops.ones_like(mask)])))


def hidden_mask():
    x = ids()
    y = layers.Dense(4, name="a")(HidesMasks(name="tokens")(x))
    y = layers.LSTM(3, name="lstm")(y)
    return keras.Model(x, layers.Dense(2, name="head")(y), name="hidden")


@pytest.mark.parametrize("at", ["tokens", "a"])
def test_a_mask_that_only_its_layer_can_make_is_refused_where_it_would_cross(at):
    model = hidden_mask()
    before = [len(layer._inbound_nodes) for layer in model.layers]
    with pytest.raises(DisconnectedError) as caught:
        split(model, at)
    assert "'tokens' in model 'hidden', which is set by the layer" in str(caught.value)
    assert "read by 'lstm'" in str(caught.value)
    assert "Cut before 'tokens'" in str(caught.value)
    assert [len(layer._inbound_nodes) for layer in model.layers] == before


def test_a_mask_that_only_its_layer_can_make_may_stay_on_one_side():
    model = hidden_mask()
    assert split(model, "ids").verify().exact
    assert split(model, "lstm").verify().exact
    assert [point.at for point in cut_points(model)] == ["lstm"]
    x = random_inputs(read(model))
    for other in (clone(model), flatten(model), extract(model, "head")):
        assert_equal(arrays(other(x)), arrays(model(x)))
    result = edit(model, Insert(layers.Dropout(0.1, name="drop"), after="a"))
    assert_equal(arrays(result.model(x)), arrays(model(x)))


class MasksByValue(layers.Layer):
    """Makes its mask of values, so that it cannot be asked what it makes of a symbol."""

    def call(self, x):
        return x * 2.0

    def compute_mask(self, x, mask=None):
        return None if mask is None else ops.logical_or(ops.convert_to_numpy(mask), False)


def test_a_mask_that_is_made_of_values_is_refused_where_it_would_cross():
    inner = keras.Input((3, 4), name="inner")
    y = layers.Dense(4, name="a")(MasksByValue(name="by_value")(inner))
    block = keras.Model(inner, layers.LSTM(3, name="lstm")(y), name="block")
    x = ids()
    model = keras.Model(x, layers.Dense(2, name="head")(block(embedding()(x))), name="m")
    with pytest.raises(
        DisconnectedError, match="'block/by_value' in model 'm', which is set by the"
    ):
        split(model, "block/a")
    assert split(model, "block/lstm").verify().exact
