"""A zoo of odd little models, one builder each, for the contract test of everything that cuts."""

import keras
import numpy as np
from keras import layers, ops

from reusekit.surgery import insert

ZOO = {}
# Elsewhere Keras has no such layers, or cannot save such a model.
OF_TENSORFLOW = {"adapted_to_data", "variables_as_arguments"}


def resident(build):
    """Enters a builder into the zoo under its own name, where Keras can do with its model."""
    if keras.backend.backend() == "tensorflow" or build.__name__ not in OF_TENSORFLOW:
        ZOO[build.__name__] = build
    return build


def dense(units, name, **kwargs):
    return layers.Dense(units, name=name, **kwargs)


@resident
def linear():
    x = keras.Input((4,), name="x")
    y = dense(3, "a", activation="relu")(x)
    y = layers.Dropout(0.5, name="drop")(y)
    return keras.Model(x, dense(2, "b")(y), name="linear")


@resident
def sequential():
    return keras.Sequential(
        [keras.Input((4,), name="x"), dense(3, "a"), layers.ReLU(name="relu"), dense(2, "b")],
        name="sequential",
    )


@resident
def residual():
    x = keras.Input((8, 8, 3), name="x")
    y = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    for block in range(2):
        z = layers.Conv2D(4, 3, padding="same", use_bias=False, name=f"conv{block}")(y)
        z = layers.BatchNormalization(name=f"bn{block}")(z)
        z = layers.ReLU(name=f"relu{block}")(z)
        y = layers.Add(name=f"out{block}")([y, z])
    y = layers.GlobalAveragePooling2D(name="pool")(y)
    return keras.Model(x, dense(2, "head")(y), name="residual")


@resident
def densely_connected():
    x = keras.Input((6, 6, 2), name="x")
    y = x
    for block in range(3):
        z = layers.Conv2D(2, 3, padding="same", name=f"conv{block}")(y)
        y = layers.Concatenate(name=f"concat{block}")([y, z])
    return keras.Model(x, layers.GlobalMaxPooling2D(name="pool")(y), name="densely_connected")


@resident
def several_branches():
    x = keras.Input((6, 6, 2), name="x")
    branches = [
        layers.Conv2D(2, 1, name="one")(x),
        layers.SeparableConv2D(2, 3, padding="same", name="three")(x),
        layers.DepthwiseConv2D(3, padding="same", name="deep")(
            layers.AveragePooling2D(3, 1, "same", name="avg")(x)
        ),
    ]
    y = layers.Concatenate(name="join")(branches)
    y = layers.Conv2DTranspose(2, 2, strides=2, name="up")(y)
    return keras.Model(x, y, name="several_branches")


def _called(times):
    x = keras.Input((4,), name="x")
    shared = dense(4, "shared", activation="tanh")
    y = x
    for call in range(times):
        y = shared(y)
        y = layers.Rescaling(1.5, name=f"scale{call}")(y)
    return keras.Model(x, dense(1, "head")(y), name=f"called_{times}")


@resident
def layer_called_twice():
    return _called(2)


@resident
def layer_called_five_times():
    return _called(5)


@resident
def siamese():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    inner = keras.Input((4,), name="inner")
    tower = keras.Model(inner, dense(2, "b")(dense(3, "a")(inner)), name="tower")
    y = layers.Subtract(name="difference")([tower(left), tower(right)])
    return keras.Model([left, right], dense(1, "head")(y), name="siamese")


@resident
def nested_three_deep():
    def around(inner, name):
        x = keras.Input((4,), name=f"{name}_in")
        return keras.Model(x, dense(4, f"{name}_out")(inner(dense(4, f"{name}_a")(x))), name=name)

    core = keras.Input((4,), name="core_in")
    core = keras.Model(core, dense(4, "deep")(core), name="core")
    return around(around(around(core, "inner"), "middle"), "outer")


@resident
def sequential_in_functional():
    x = keras.Input((4,), name="x")
    stack = keras.Sequential([keras.Input((4,)), dense(3, "a"), dense(3, "b")], name="stack")
    y = layers.Add(name="sum")([stack(x), dense(3, "side")(x)])
    return keras.Model(x, y, name="sequential_in_functional")


@resident
def functional_in_sequential():
    inner = keras.Input((4,), name="inner")
    block = keras.Model(inner, layers.Add(name="skip")([dense(4, "a")(inner), inner]), name="block")
    return keras.Sequential(
        [keras.Input((4,), name="x"), block, dense(2, "head")], name="functional_in_sequential"
    )


@resident
def layer_shared_inside_and_outside():
    shared = dense(4, "shared")
    inner = keras.Input((4,), name="inner")
    sub = keras.Model(inner, shared(dense(4, "own")(inner)), name="sub")
    x = keras.Input((4,), name="x")
    return keras.Model(x, sub(shared(x)), name="layer_shared_inside_and_outside")


@resident
def names_shared_across_nesting():
    def part(name):
        inner = keras.Input((4,), name="x")
        return keras.Model(inner, dense(4, "b")(dense(4, "a")(inner)), name=name)

    x = keras.Input((4,), name="x")
    return keras.Model(
        x, dense(1, "a")(part("second")(part("first")(x))), name="names_shared_across_nesting"
    )


@resident
def several_inputs_and_outputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    y = layers.Concatenate(name="join")([dense(2, "da")(a), b])
    y = dense(3, "mix")(y)
    return keras.Model([a, b], [dense(1, "first")(y), dense(2, "second")(y)], name="several_io")


@resident
def dict_inputs_and_outputs():
    inputs = {name: keras.Input((3,), name=name) for name in ("width", "height")}
    y = layers.Multiply(name="area")(
        [dense(2, "w")(inputs["width"]), dense(2, "h")(inputs["height"])]
    )
    return keras.Model(inputs, {"area": y, "score": dense(1, "score")(y)}, name="dicts")


@resident
def nested_structures():
    a, b, c = (keras.Input((2,), name=name) for name in "abc")
    y = layers.Add(name="sum")([a, b, c])
    return keras.Model([a, (b, {"c": c})], (dense(1, "y")(y), [dense(2, "z")(y)]), name="nested_io")


@resident
def optional_input():
    x = keras.Input((3,), name="x")
    extra = keras.Input((3,), name="extra", optional=True)
    y = layers.Add(name="sum")([dense(3, "a")(x), extra])
    return keras.Model([x, extra], dense(1, "b")(y), name="optional_input")


@resident
def unread_input():
    x, spare = keras.Input((3,), name="x"), keras.Input((2,), name="spare")
    return keras.Model([x, spare], dense(1, "b")(dense(2, "a")(x)), name="unread_input")


@resident
def nested_model_with_an_unread_input():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    inner = keras.Model([a, b], dense(3, "read")(a), name="inner")
    x = keras.Input((4,), name="x")
    y = dense(1, "head")(inner([x, dense(4, "unread")(x)]))
    return keras.Model(x, y, name="nested_model_with_an_unread_input")


@resident
def early_output():
    x = keras.Input((4,), name="x")
    early = dense(3, "early")(x)
    late = dense(2, "late")(dense(3, "middle")(early))
    return keras.Model(x, [early, late], name="early_output")


@resident
def masked_lstm():
    ids = keras.Input((3,), dtype="int32", name="ids")
    y = layers.Embedding(11, 4, mask_zero=True, name="embed")(ids)
    y = layers.LSTM(3, return_sequences=True, name="lstm")(y)
    y = layers.GRU(3, name="gru")(y)
    return keras.Model(ids, dense(1, "head")(y), name="masked_lstm")


@resident
def masked_bidirectional():
    x = keras.Input((3, 3), name="x")
    y = layers.Masking(0.0, name="masking")(x)
    y = layers.Bidirectional(layers.LSTM(2, return_sequences=True), name="both_ways")(y)
    y = layers.TimeDistributed(dense(2, "inside"), name="each")(y)
    return keras.Model(
        x, layers.GlobalAveragePooling1D(name="pool")(y), name="masked_bidirectional"
    )


@resident
def masked_attention():
    """The masks of MultiHeadAttention are not among its recorded arguments."""
    ids = keras.Input((5,), dtype="int32", name="ids")
    y = layers.Embedding(11, 4, mask_zero=True, name="embed")(ids)
    y = dense(4, "project")(y)
    z = layers.MultiHeadAttention(2, 2, name="attention")(y, y)
    y = layers.LayerNormalization(name="norm")(layers.Add(name="add")([y, z]))
    z = layers.MultiHeadAttention(2, 2, name="again")(y, y, use_causal_mask=True)
    y = layers.Multiply(name="gate")([y, z])
    return keras.Model(ids, layers.GlobalAveragePooling1D(name="pool")(y), name="masked_attention")


@resident
def mask_into_a_nested_model():
    inner = keras.Input((3, 4), name="inner")
    z = layers.MultiHeadAttention(2, 2, name="attention")(dense(4, "project")(inner), inner)
    block = keras.Model(inner, layers.LSTM(3, name="lstm")(dense(4, "after")(z)), name="block")
    ids = keras.Input((3,), dtype="int32", name="ids")
    y = layers.Embedding(11, 4, mask_zero=True, name="embed")(ids)
    return keras.Model(ids, dense(1, "head")(block(y)), name="mask_into_a_nested_model")


@resident
def tensors_as_arguments():
    q = keras.Input((4, 4), name="q")
    v = keras.Input((5, 4), name="v")
    mask = keras.Input((4, 5), dtype="bool", name="mask")
    k = dense(4, "key")(v)
    y = layers.MultiHeadAttention(2, 2, name="attention")(
        dense(4, "query")(q), v, key=k, attention_mask=mask
    )
    return keras.Model({"q": q, "v": v, "mask": mask}, dense(1, "head")(y), name="tensor_arguments")


@resident
def recorded_training_flag():
    x = keras.Input((4,), name="x")
    inner = keras.Input((4,), name="inner")
    y = layers.BatchNormalization(name="bn")(dense(4, "a")(inner))
    base = keras.Model(inner, layers.Dropout(0.5, name="drop")(y), name="base")
    return keras.Model(x, dense(1, "head")(base(x, training=False)), name="recorded_training_flag")


@resident
def operations_between_layers():
    x = keras.Input((4,), name="x")
    y = dense(4, "a")(x)
    y = ops.relu(y) * 2.0 + y[:, ::-1]
    y = ops.concatenate([y, 1.0 - y], axis=-1)
    y = ops.reshape(y, (-1, 2, 4))
    return keras.Model(x, ops.mean(dense(3, "b")(y), axis=1), name="operations_between_layers")


@resident
def lstm_with_states():
    x = keras.Input((3, 3), name="x")
    sequence, h, c = layers.LSTM(4, return_sequences=True, return_state=True, name="lstm")(x)
    y = layers.LSTM(4, name="decoder")(sequence, initial_state=[h, c])
    return keras.Model(x, dense(1, "head")(y), name="lstm_with_states")


@resident
def several_outputs_of_one_operation():
    x = keras.Input((6,), name="x")
    first, second, _ = ops.split(dense(6, "a")(x), 3, axis=-1)
    y = layers.Multiply(name="product")([first, second])
    return keras.Model(x, dense(1, "head")(y), name="several_outputs")


@resident
def integers_and_bools_cross():
    ids = keras.Input((5,), dtype="int32", name="ids")
    y = layers.Embedding(11, 4, name="embed")(ids)
    best = ops.argmax(y, axis=-1)
    kept = ops.greater(ids, 2)
    y = layers.Embedding(5, 3, name="again")(best)
    y = ops.where(ops.expand_dims(kept, -1), y, -y)
    return keras.Model(ids, dense(1, "head")(y), name="integers_and_bools_cross")


@resident
def mixed_precision():
    policy = "mixed_bfloat16"
    inner = keras.Input((4,), name="inner")
    sub = keras.Model(inner, dense(4, "c", dtype=policy)(inner), name="sub")
    x = keras.Input((4,), name="x")
    y = sub(dense(4, "b", dtype=policy)(dense(4, "a", dtype=policy)(x)))
    return keras.Model(x, dense(2, "head", dtype="float32")(y), name="mixed_precision")


@resident
def lora_dense():
    x = keras.Input((4,), name="x")
    wide = dense(4, "wide")
    model = keras.Model(x, dense(2, "head")(wide(x)), name="lora_dense")
    wide.enable_lora(2)
    wide.lora_kernel_b.assign(np.ones((2, 4)))
    return model


@resident
def quantised_dense():
    x = keras.Input((4,), name="x")
    wide = dense(4, "wide")
    model = keras.Model(x, dense(2, "head")(wide(x)), name="quantised_dense")
    wide.quantize("int8")
    return model


@resident
def random_layers():
    x = keras.Input((8, 8, 3), name="x")
    y = layers.RandomFlip(seed=1, name="flip")(x)
    y = layers.GaussianNoise(0.1, seed=2, name="noise")(y)
    y = layers.Conv2D(2, 3, name="conv")(y)
    return keras.Model(
        x, layers.SpatialDropout2D(0.5, seed=3, name="drop")(y), name="random_layers"
    )


@resident
def unknown_sizes():
    x = keras.Input((None, None, 3), name="x")
    y = layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(x)
    y = layers.UpSampling2D(2, name="up")(y)
    y = layers.GroupNormalization(2, name="norm")(y)
    return keras.Model(x, layers.GlobalAveragePooling2D(name="pool")(y), name="unknown_sizes")


@resident
def subclass_with_a_graph():
    class Net(keras.Model):
        def __init__(self, units, **kwargs):
            x = keras.Input((4,), name="x")
            super().__init__(x, dense(2, "b")(dense(units, "a")(x)), **kwargs)
            self.units = units

    return Net(3, name="subclass_with_a_graph")


@resident
def frozen_parts():
    x = keras.Input((4,), name="x")
    frozen = dense(3, "frozen", trainable=False)
    bn = layers.BatchNormalization(name="bn")
    model = keras.Model(x, dense(1, "head")(bn(frozen(x))), name="frozen_parts")
    bn.moving_mean.assign([0.5, -0.5, 0.1])
    return model


@resident
def weightless():
    x = keras.Input((4, 4, 2), name="x")
    y = layers.Add(name="sum")([layers.MaxPooling2D(2, name="max")(x), x[:, ::2, ::2]])
    return keras.Model(x, layers.Flatten(name="flat")(y), name="weightless")


@resident
def preprocessing_in_front():
    x = keras.Input((8, 8, 3), name="x")
    y = layers.Rescaling(1 / 255, name="rescale")(x)
    y = layers.ZeroPadding2D(1, name="pad")(y)
    y = layers.Conv2D(2, 3, name="conv")(y)
    z = layers.PReLU(shared_axes=[1, 2], name="prelu")(y)
    return keras.Model(x, layers.Average(name="mean")([y, z]), name="preprocessing_in_front")


@resident
def calls_by_keyword():
    inner = keras.Input((4,), name="inner")
    core = keras.Sequential([keras.Input((4,)), dense(4, "deep")], name="core")
    base = keras.Model(inner, dense(4, "b")(inputs=core(inputs=dense(4, "a")(inner))), name="base")
    x = keras.Input((4,), name="x")
    y = layers.Add(name="sum")([base(inputs=dense(4, "before")(x)), x])
    return keras.Model(x, dense(1, "head")(y), name="calls_by_keyword")


@resident
def nested_models_hand_on_their_input():
    def encoder(name):
        inner = keras.Input((4,), name="inner")
        return keras.Model(inner, [inner, dense(4, f"{name}_c")(inner), inner], name=name)

    x = keras.Input((4,), name="x")
    y = layers.Concatenate(name="early")(encoder("first")(x))
    y = layers.Add(name="late")(encoder("second")(dense(4, "pre")(y)))
    return keras.Model(x, dense(1, "head")(y), name="nested_models_hand_on_their_input")


@resident
def open_size_in_a_sized_call():
    inner = keras.Input((None, None, 3), name="inner")
    y = layers.Conv2D(4, 3, strides=2, padding="same", name="c1")(inner)
    base = keras.Model(inner, layers.Conv2D(2, 3, padding="same", name="c2")(y), name="base")
    x = keras.Input((8, 8, 3), name="x")
    y = layers.Flatten(name="flat")(base(x))
    return keras.Model(x, dense(2, "head")(y), name="open_size_in_a_sized_call")


@resident
def variables_as_arguments():
    ids = keras.Input((5,), dtype="int32", name="ids")
    embedding = layers.Embedding(11, 4, name="embed")
    y = dense(4, "hidden")(embedding(ids))
    y = ops.einsum("btc,vc->btv", y, embedding.embeddings)
    return keras.Model(ids, dense(2, "head")(y), name="variables_as_arguments")


@keras.saving.register_keras_serializable("zoo")
class Halved(keras.Model):
    """A functional model with a `call` of its own."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs / 2, training=training, mask=mask)


@resident
def nested_with_its_own_call():
    inner = keras.Input((4,), name="inner")
    halved = Halved(inner, dense(3, "a")(inner), name="halved")
    x = keras.Input((4,), name="x")
    return keras.Model(x, dense(2, "head")(halved(x)), name="nested_with_its_own_call")


@resident
def named_by_nested_outputs():
    inner = keras.Input((3,), name="inner")
    head = keras.Model(inner, [dense(2, "p")(inner), dense(1, "q")(inner)], name="pair")
    x = keras.Input((3,), name="x")
    y = dense(3, "a")(x)
    return keras.Model(x, [*head(y), dense(1, "age")(y)], name="named_by_nested_outputs")


@resident
def masked_by_insertion():
    """Keras recorded its recurrent layer without a mask."""
    x = keras.Input((3, 3), name="x")
    y = layers.LSTM(4, return_sequences=True, name="lstm")(dense(3, "d", use_bias=False)(x))
    model = keras.Model(x, layers.GRU(2, name="gru")(y), name="masked_by_insertion")
    return insert(model, layers.Masking(name="masking"), after="x")


@resident
def adapted_to_data():
    """Layers with what no weight holds: statistics, boundaries, a vocabulary from data."""
    draw = np.random.default_rng(0)
    x, ids = keras.Input((3,), name="x"), keras.Input((3,), dtype="int64", name="ids")
    norm, bins = layers.Normalization(name="norm"), layers.Discretization(num_bins=3, name="bins")
    lookup = layers.IntegerLookup(name="lookup")
    norm.adapt(draw.normal(3, 5, (64, 3)))
    bins.adapt(draw.normal(size=(64, 3)))
    lookup.adapt(np.array([3, 5, 7]))
    inner = keras.Input((3,), name="inner")
    scaled = keras.Model(inner, layers.Dense(2, name="a")(norm(inner)), name="scaled")
    embed = layers.Embedding(5, 2, name="embed")
    words = layers.Flatten(name="words")(embed(lookup(ids)))
    steps = layers.Flatten(name="steps")(layers.Embedding(4, 2, name="step")(bins(x)))
    y = layers.Concatenate(name="join")([scaled(x), words, steps])
    return keras.Model([x, ids], dense(1, "head")(y), name="adapted_to_data")


@keras.saving.register_keras_serializable("zoo")
def twice_tanh(x):
    return 2 * ops.tanh(x)


@keras.saving.register_keras_serializable("zoo")
class Heavy(keras.regularizers.Regularizer):
    def __call__(self, weight):
        return ops.sum(weight)

    def get_config(self):
        return {}


@resident
def own_functions():
    x = keras.Input((4,), name="x")
    y = dense(3, "a", activation=twice_tanh, kernel_regularizer=Heavy())(x)
    y = layers.Activation(twice_tanh, name="act")(y)
    return keras.Model(x, dense(1, "head")(y), name="own_functions")


@resident
def nested_model_without_a_call():
    x, inner = keras.Input((4,), name="x"), keras.Input((4,), name="inner")
    augmentation = keras.Model(inner, inner, name="augmentation")
    y = dense(1, "head")(augmentation(dense(4, "a")(x)))
    return keras.Model(x, y, name="nested_model_without_a_call")
