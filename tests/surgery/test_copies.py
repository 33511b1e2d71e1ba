"""Copies of everything that a layer may hold: state, functions, ties, changes after the making."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import reusekit as rk
from reusekit.errors import CopyError, SurgeryError
from reusekit.surgery import clone, insert, replace

random = np.random.default_rng(0)


def normal(*shape):
    return random.normal(size=shape).astype("float32")


def arrays(structure):
    return [np.asarray(ops.convert_to_numpy(leaf)) for leaf in keras.tree.flatten(structure)]


def copied(model, x, weights="copy"):
    """A clone that was seen to be equal and independent."""
    twin = clone(model, weights)
    for one, other in zip(arrays(model(x)), arrays(twin(x)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert {id(v) for v in model.variables}.isdisjoint({id(v) for v in twin.variables})
    assert [v.path for v in twin.variables] == [v.path for v in model.variables]
    return twin


def model_of(layer, *shape, **kwargs):
    x = keras.Input(shape, name="x", **kwargs)
    return keras.Model(x, layer(x), name="m")


# --- state that follows from data: surgery F1, F1b, F1c ------------------------------------------


@pytest.mark.parametrize("weights", ["copy", "fresh"])
def test_adapted_statistics_come_along(weights):
    layer = layers.Normalization(name="n")
    data = normal(64, 4) * 5 + 3
    layer.adapt(data)
    copied(model_of(layer, 4), data, weights)


def test_adapted_statistics_inside_an_own_layer_inside_a_wrapper():
    class Own(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = layers.Normalization()
            self.twice = lambda t: self.inner(t) * 2  # a closure over the layer itself

        def build(self, shape):
            self.inner.build(shape)

        def call(self, x):
            return self.twice(x)

        def compute_output_shape(self, shape):
            return shape

    own, x = Own(), normal(2, 3, 4)
    model = model_of(layers.TimeDistributed(own), 3, 4)
    own.inner.adapt(normal(50, 4) * 4 + 3)
    twin = copied(model, x)
    before = np.array(twin(x))
    own.inner.adapt(normal(50, 4) + 9)
    np.testing.assert_array_equal(twin(x), before)


def texts(layer):
    return model_of(layer, 1, dtype="string"), ops.convert_to_tensor(np.array([["a c"], ["b"]]))


@pytest.mark.parametrize("weights", ["copy", "fresh"])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.StringLookup(output_mode="one_hot"),
        lambda: layers.TextVectorization(output_sequence_length=3),
        lambda: layers.TextVectorization(output_mode="tf_idf"),
    ],
)
def test_adapted_vocabularies_come_along(layer, weights):
    pytest.importorskip("tensorflow")
    layer = layer()
    layer.adapt(np.array(["a b", "b c", "c"]))
    model, x = texts(layer)
    twin = copied(model, x, weights)
    if weights == "copy" and isinstance(layer, layers.TextVectorization):
        expected = arrays(model(x))
        twin.layers[-1].adapt(np.array(["q r", "s"]))
        for one, other in zip(arrays(model(x)), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_numbers_looked_up_in_a_nested_model():
    pytest.importorskip("tensorflow")
    lookup = layers.IntegerLookup(name="lookup")
    lookup.adapt(np.array([3, 5, 7]))
    bins = layers.Discretization(num_bins=3, name="bins")
    bins.adapt(normal(99, 1))
    nested = model_of(lookup, 1, dtype="int64")
    x = keras.Input((1,), dtype="int64", name="ids")
    y = layers.Embedding(9, 2)(nested(x))
    model = keras.Model(x, [y, bins(ops.cast(x, "float32"))], name="m")
    copied(model, np.array([[5], [9]]))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.GRU(3, stateful=True),
        lambda: layers.Bidirectional(layers.LSTM(3, stateful=True)),
        lambda: layers.RNN([layers.GRUCell(3), layers.LSTMCell(2)], stateful=True),
    ],
)
def test_states_come_along_and_go_on_apart(layer):
    x = keras.Input(batch_shape=(2, 3, 4))
    model = keras.Model(x, layer()(x), name="m")
    v = normal(2, 3, 4)
    first = model(v)
    larger = clone(model, batch_size=4)
    np.testing.assert_allclose(larger(np.concatenate([v, v]))[:2], first, atol=1e-6)
    twin = clone(model)
    for _ in range(2):
        np.testing.assert_array_equal(twin(v), model(v))
    model(v)
    assert np.abs(np.array(twin(v)) - np.array(model(v))).max() > 0


# --- own functions and classes: surgery F2, F2b, F9 ----------------------------------------------


@pytest.mark.parametrize("weights", ["copy", "fresh"])
def test_a_lambda_with_a_global(weights):
    copied(model_of(layers.Lambda(lambda t: ops.abs(t)), 4), normal(2, 4), weights)


@pytest.mark.parametrize("weights", ["copy", "fresh"])
@pytest.mark.parametrize("scoped", [True, False])
def test_an_own_activation(weights, scoped):
    def act(t):
        return ops.tanh(t) * 2

    model = model_of(layers.Activation(act), 4)
    with keras.saving.custom_object_scope({"act": act} if scoped else {}):
        copied(model, normal(2, 4), weights)


def test_functions_in_every_place_of_a_layer():
    factor = 3.0

    class Heavy(keras.regularizers.Regularizer):
        def __call__(self, weight):
            return ops.sum(weight) * factor

    layer = layers.Dense(
        3,
        activation=lambda t: ops.sin(t) * factor,
        kernel_regularizer=Heavy(),
        kernel_initializer=lambda shape, dtype=None: ops.ones(shape, dtype),
        kernel_constraint=lambda weight: weight / factor,
    )
    x = keras.Input((4,), name="x")
    y = layers.Dense(4, activation=lambda t: ops.cos(t))(x)
    twin = copied(keras.Model(x, layer(y), name="m"), normal(2, 4))
    assert twin.layers[-1].kernel.regularizer is layer.kernel_regularizer
    assert float(ops.sum(twin.losses)) == float(twin.layers[-1].kernel_regularizer(layer.kernel))


@pytest.mark.parametrize("weights", ["copy", "fresh"])
def test_two_classes_of_one_name_stay_two(weights):
    def scaling(factor):
        return type("Block", (layers.Layer,), {"call": lambda self, x: x * factor})

    x = keras.Input((4,), name="x")
    model = keras.Model(x, scaling(3.0)(name="two")(scaling(2.0)(name="one")(x)), name="m")
    copied(model, normal(2, 4), weights)


class Forgetful(layers.Layer):
    """Its configuration does not tell its factor."""

    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor


def test_what_a_configuration_forgets_is_copied_and_not_made_afresh():
    model = model_of(Forgetful(5.0), 4)
    copied(model, normal(2, 4))
    model.layers[-1].factor = 7.0
    copied(model, normal(2, 4))
    with pytest.raises(CopyError, match=r"the copy of 'm' to give its outputs.* a difference of"):
        clone(model, "fresh")


def test_weights_in_containers_and_in_objects_that_are_no_layers():
    class Helper:
        def __init__(self, layer):
            self.layer = layer
            self.scale = keras.Variable(2.0, name="scale")

    class Bag(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.bag = {"a": [layers.Dense(4, name="p"), (layers.Dense(4, name="q"),)]}
            self.helper = Helper(self)

        def call(self, x):
            first, (second,) = self.bag["a"]
            return self.helper.scale * second(first(x))

    model = model_of(Bag(name="bag"), 4)
    twin = copied(model, normal(2, 4))
    bag, own = twin.get_layer("bag"), model.get_layer("bag")
    assert bag.helper.layer is bag and bag.helper.scale is not own.helper.scale
    before = model.get_weights()
    twin.compile("sgd", "mse")
    twin.fit(np.ones((8, 4)), np.ones((8, 4)), verbose=0)
    assert all(map(np.array_equal, model.get_weights(), before))
    assert not np.array_equal(twin.get_weights()[0], before[0])


def test_a_closure_has_hold_of_the_copy():
    hidden = layers.Dense(4, name="hidden")
    hidden.build((None, 4))
    twin = clone(model_of(layers.Lambda(lambda t: hidden(t)), 4))
    x = normal(2, 4)
    before = np.array(twin(x))
    hidden.kernel.assign(ops.zeros((4, 4)))
    np.testing.assert_array_equal(twin(x), before)


OUTSIDE = layers.Dense(4, name="outside")


@pytest.mark.parametrize("held", [True, False])
def test_a_weight_that_no_layer_holds_is_named(held):
    x = keras.Input((4,), name="x")
    y = OUTSIDE(x)
    scaled = layers.Lambda(lambda t: ops.matmul(t, OUTSIDE.kernel))
    model = keras.Model(x, scaled(y if held else x), name="m")
    with pytest.raises(CopyError, match=r"weights of its own.* still reads 'outside/kernel'"):
        clone(model)


# --- layers changed after they were made: surgery F10, F10b --------------------------------------


def test_lora_inside_attention():
    x = keras.Input((3, 4), name="x")
    y = layers.MultiHeadAttention(2, 2, name="mha")(x, x)
    y = layers.GroupQueryAttention(2, 2, 1, name="gqa")(y, y)
    model = keras.Model(x, y, name="m")
    query = model.get_layer("mha").query_dense
    query._tracker.unlock()
    query.enable_lora(2)
    query.lora_kernel_b.assign(np.ones(query.lora_kernel_b.shape))
    twin = copied(model, normal(2, 3, 4))
    assert twin.get_layer("mha").query_dense.lora_enabled
    with pytest.raises(CopyError, match=r"'query' of class EinsumDense .* 'lora_kernel_a': .*LoRA"):
        clone(model, "fresh")


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantised_layers(mode):
    model = model_of(layers.Dense(4, name="a"), 4)
    model.quantize(mode)
    copied(model, normal(2, 4))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_quantised_layers_inside_attention_and_own_layers():
    class Block(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.stack = keras.Sequential([layers.Dense(3), layers.Dense(4)])
            self.attention = layers.MultiHeadAttention(2, 2)

        def call(self, x):
            return self.attention(self.stack(x), x)

    model = model_of(Block(), 3, 4)
    model.quantize("int8")
    copied(model, normal(2, 3, 4))


def test_a_backbone_with_lora_keeps_it_and_its_class():
    from keras_hub.models import BertBackbone

    model = BertBackbone(20, 1, 2, 4, 8, max_sequence_length=8)
    model.enable_lora(2)
    x = {"token_ids": [[1, 2, 3]], "segment_ids": [[0, 0, 0]], "padding_mask": [[1, 1, 0]]}
    twin = copied(model, {name: np.array(value) for name, value in x.items()})
    assert type(twin) is BertBackbone
    assert twin.token_embedding is twin.get_layer("token_embedding")


def test_rates_that_were_raised():
    drop, unit = layers.Dropout(0.0, name="drop"), layers.GRU(3, dropout=0.0, name="gru")
    x = keras.Input((3, 4), name="x")
    model = keras.Model(x, unit(drop(x)), name="m")
    drop.rate, unit.cell.dropout = 0.5, 0.25
    twin = copied(model, normal(2, 3, 4))
    assert (twin.get_layer("drop").rate, twin.get_layer("gru").cell.dropout) == (0.5, 0.25)


# --- models inside -------------------------------------------------------------------------------


def test_nested_models_of_own_classes_that_were_trained():
    class Inner(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.a, self.b = layers.Dense(3), layers.Dense(4)

        def call(self, x):
            return self.b(self.a(x))

    inner, data = Inner(name="inner"), np.ones((4, 4))
    for model in (inner, model_of(inner, 4)):
        model.compile("adam", "mse")
        model.fit(data, data, verbose=0)
    twin = copied(model, normal(2, 4))
    assert type(twin.get_layer("inner")) is Inner and not twin.get_layer("inner").compiled
    twin.compile("adam", "mse")
    twin.fit(data, data, verbose=0)
    copied(twin, normal(2, 4))


def test_what_a_functional_class_holds_besides_its_graph():
    class Net(keras.Model):
        def __init__(self, **kwargs):
            x = keras.Input((4,), name="x")
            dense = layers.Dense(3, name="dense")
            y = dense(x)
            super().__init__(x, y, **kwargs)
            self.dense, self.taps = dense, {"y": y}
            self.part = keras.Model(self.input, y, name="part")

    model, x = Net(name="net"), normal(2, 4)
    twin = copied(model, x)
    assert type(twin) is Net
    assert twin.dense is twin.get_layer("dense") is twin.part.get_layer("dense")
    assert twin.taps["y"] is twin.outputs[0]
    np.testing.assert_array_equal(twin.part(x), model(x))


def test_a_nested_model_with_a_call_of_its_own():
    class Scaled(keras.Model):
        def call(self, x, training=None, mask=None):
            return super().call(x / 255.0, training=training, mask=mask)

    x = keras.Input((4,), name="x")
    copied(model_of(Scaled(x, layers.Dense(3, name="a")(x), name="scaled"), 4), normal(2, 4))


@pytest.mark.parametrize("weights", ["copy", "fresh", "share"])
def test_nested_models_that_do_nothing(weights):  # surgery F15
    x = keras.Input((4,), name="x")
    inner = keras.Input((4,), name="inner")
    empty = keras.Model(inner, inner, name="empty")
    around = model_of(empty, 4)
    nothing = keras.Sequential([keras.Input((4,))], name="nothing")
    model = keras.Model(x, layers.Dense(1, name="d")(nothing(around(x))), name="outer")
    twin = clone(model, weights)
    assert [layer.name for layer in twin.layers] == ["x", "m", "nothing", "d"]
    twin.set_weights(model.get_weights())
    np.testing.assert_array_equal(twin(np.ones((1, 4))), model(np.ones((1, 4))))


@pytest.mark.parametrize("weights", ["copy", "fresh", "share"])
def test_kinds_of_inputs_are_kept(weights):  # surgery F12
    stack = keras.Sequential([keras.Input((4,), sparse=True), layers.Dense(3)], name="stack")
    assert clone(stack, weights).inputs[0].sparse
    around = model_of(stack, 4, sparse=True)
    assert clone(around, weights).get_layer("stack").inputs[0].sparse
    pytest.importorskip("tensorflow", reason="nothing else has ragged tensors")
    ragged = model_of(layers.Embedding(9, 3), None, dtype="int32", ragged=True)
    assert clone(ragged, weights).inputs[0].ragged


# --- proof ---------------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_said():
    class Noise(layers.Layer):
        def call(self, x):
            return x + float(np.random.normal())

    with pytest.warns(UserWarning, match="'m' could not be compared with it: its outputs are rand"):
        clone(model_of(Noise(), 4))

    eager = type(ops.ones(1))

    class Choosy(layers.Layer):
        def call(self, x):
            if isinstance(x, eager) and float(ops.max(x)) > 0:
                raise RuntimeError("positive")
            return x

    model = model_of(Choosy(), 4)
    with pytest.warns(UserWarning, match=r"does not run on random inputs .*positive.*pass x"):
        clone(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clone(model, x=-np.ones((1, 4), "float32"))
    with pytest.raises(CopyError, match="Expected x on which 'm' runs"):
        clone(model, x=np.ones((1, 4), "float32"))


def test_the_proof_leaves_state_and_seeds_as_they_are():
    x = keras.Input(batch_shape=(2, 3, 4))
    y = layers.GRU(3, stateful=True, return_sequences=True)(x)
    y = layers.BatchNormalization(name="bn")(layers.Dropout(0.5, seed=1)(y), training=True)
    model = keras.Model(x, y, name="m")
    before = [np.array(v) for v in (*model.variables, *model.layers[1].states)]
    twin = clone(model)
    for each in (model, twin):
        now = [np.array(v) for v in (*each.variables, *each.layers[1].states)]
        assert all(map(np.array_equal, now, before))


# --- the dry run of edits: surgery F8, F8b, F8c --------------------------------------------------


def two_layers():
    x = keras.Input((4,), name="x")
    return keras.Model(x, layers.Dense(2, name="b")(layers.Dense(4, name="a")(x)), name="m")


def test_a_layer_whose_configuration_does_not_tell_its_table_can_be_put_in():
    class Mine(layers.Layer):
        def __init__(self, table, **kwargs):
            super().__init__(**kwargs)
            self.table = table

        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1], shape[-1]), name="w")

        def call(self, x):
            return ops.matmul(x, self.w)

    edited = insert(two_layers(), Mine(object(), name="mine"), after="a")
    assert [layer.name for layer in edited.layers] == ["x", "a", "mine", "b"]
    copied(edited, normal(2, 4))


def test_a_refused_edit_builds_nothing():
    class Mine(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = layers.Dense(7)

        def call(self, x):
            return self.inner(x)

    new = Mine(name="a2")
    with pytest.raises(SurgeryError, match="'b', which took"):
        replace(two_layers(), "a", new)
    assert not new.inner.built and not new.built and not new.variables


def test_a_lambda_with_a_global_can_be_put_in():
    copied(
        insert(two_layers(), layers.Lambda(lambda t: ops.abs(t), name="l"), after="a"), normal(2, 4)
    )


def test_new_layers_that_hold_weights_before_they_are_built_can_be_put_in():
    class Mine(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.seeds = keras.random.SeedGenerator(1)
            self.scale = keras.Variable(2.0, name="scale")

        def build(self, shape):
            self.w = self.add_weight(shape=(shape[-1],), initializer="ones", name="w")

        def call(self, x):
            return x * self.scale * self.w

    model, x = two_layers(), normal(2, 4)
    mine = Mine(name="mine")
    edited = insert(model, mine, before="a")
    np.testing.assert_allclose(edited(x), model(2 * x), rtol=1e-5)
    tied = rk.layers.TiedDense(model.get_layer("a"), use_bias=False, name="tied")
    assert insert(model, tied, after="a").get_layer("tied").source is model.get_layer("a")


def test_a_new_layer_draws_what_it_would_have_drawn_without_the_dry_run():
    model = two_layers()
    keras.utils.set_random_seed(0)
    plain = [layers.Dense(4, name="new"), layers.Dense(4)]
    keras.utils.set_random_seed(0)
    first = layers.Dense(4, name="new")
    insert(model, first, after="a")
    new = [first, layers.Dense(4)]
    for one, other in zip(plain, new, strict=True):
        for layer in (one, other):
            if not layer.built:
                layer.build((None, 4))
        np.testing.assert_array_equal(one.kernel, other.kernel)


# --- what stands on copies: pipeline W1 ----------------------------------------------------------


def adapted():
    layer = layers.Normalization(name="n")
    layer.adapt(normal(60, 4) * 3 + 5)
    x = keras.Input((4,), name="x")
    y = layers.Lambda(lambda t: ops.abs(t), name="l")(layer(x))
    return keras.Model(x, layers.Dense(2, name="d")(y), name="m")


def test_an_edited_copy_keeps_its_statistics():
    model, x = adapted(), normal(5, 4)
    edited = insert(model, layers.Identity(name="i"), after="n", weights="copy")
    expected = np.array(model(x))
    model.get_layer("n").adapt(normal(60, 4))
    np.testing.assert_array_equal(edited(x), expected)


@pytest.mark.parametrize("at", ["n", "l"])
def test_cloned_parts_join_to_the_whole(at):
    model, x = adapted(), normal(5, 4)
    parts = [clone(part) for part in rk.split(model, at)]
    np.testing.assert_array_equal(rk.join(*parts)(x), model(x))


def test_a_standardized_head_is_cloned_with_its_statistics():
    x = keras.Input((4,), name="x")
    bottom = keras.Model(x, layers.Dense(4, name="a")(x), name="bottom")
    head = rk.heads.Classifier(3, standardize=normal(60, 4) * 3 + 5)
    copied(rk.attach(bottom, head), normal(5, 4))


def test_statistics_in_another_precision():
    pytest.importorskip("tensorflow")
    from reusekit.features.bottoms import in_compute_dtype

    model, x = adapted(), normal(50, 4)
    received = ops.cast(in_compute_dtype(model, "bfloat16").model(x), "float32")
    np.testing.assert_allclose(received, model(x), atol=0.05)
