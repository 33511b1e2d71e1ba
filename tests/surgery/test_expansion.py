import keras
import numpy as np
import pytest
from contract import arrays, assert_equal, run_surgery_test
from keras import layers, ops
from zoo_hub import HUB

from reusekit.errors import CertificateError, EditError, SurgeryError
from reusekit.graph import cut_points, keras_internals, read
from reusekit.surgery import expand, flatten, remove, split
from reusekit.surgery.certificate import Snapshot, random_inputs


@keras.saving.register_keras_serializable("reusekit_tests")
class Residual(layers.Layer):
    """A residual block of one's own."""

    def __init__(self, rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.dense = layers.Dense(4, activation="tanh", dtype=self.dtype_policy, name="dense")
        self.drop = layers.Dropout(rate, seed=3, dtype=self.dtype_policy, name="drop")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, training=None):
        return x + self.drop(self.dense(x), training=training)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


class Attending(layers.Layer):
    """Takes a second tensor and a mask."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 2, name="attention")
        self.norm = layers.LayerNormalization(name="norm")
        self.supports_masking = True

    def call(self, x, mask=None, scale=1.0):
        if mask is not None:
            mask = ops.expand_dims(mask, 1)
        return self.norm(scale * x + self.attention(x, x, attention_mask=mask))


def around(*composites, shape=(4,)):
    x = keras.Input(shape, name="x")
    y = layers.Dense(4, name="stem")(x)
    for composite in composites:
        y = composite(y)
    return keras.Model(x, layers.Dense(2, name="head")(y), name="m")


def records(model):
    """Count the calls that each layer has recorded, and how often it was read."""
    found = keras_internals.all_layers(model)
    return [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in found]


def addresses(model):
    return [tensor.address for tensor in read(model).tensors]


def test_what_is_inside_has_addresses_and_the_weights_are_the_same():
    model = around(Residual(name="block"))
    opened = expand(model, "block")
    assert addresses(opened) == [
        "x", "stem", "block/dense", "block/drop", "block/add", "head",
    ]  # fmt: skip
    assert [id(v) for v in opened.weights] == [id(v) for v in model.weights]
    assert opened.get_layer("block").get_layer("dense") is model.get_layer("block").dense


def test_addresses_are_the_same_each_time():
    model = around(Residual(name="block"), Residual(name="other"))
    assert addresses(expand(model, ["block", "other"])) == addresses(
        expand(expand(model, "other"), "block")
    )


def test_the_contract_of_surgery_holds_inside(tmp_path):
    run_surgery_test(expand(around(Residual(name="block")), "block"), tmp_path)


def test_vit_is_cut_between_two_blocks():
    model = HUB["vit_expanded"].build()
    parts = split(model, "vit_encoder/transformer_block_1", strict=True)
    assert parts.verify().exact
    assert "transformer_block_1" in str(cut_points(model))
    shorter = remove(model, "vit_encoder/transformer_block_2")
    assert shorter.count_params() < model.count_params()


def test_a_block_is_expanded_in_turn():
    model = expand(HUB["vit_expanded"].build(), "vit_encoder/transformer_block_1")
    assert "vit_encoder/transformer_block_1/mlp" in addresses(model)
    assert "vit_encoder/transformer_block_2" in addresses(model)


def test_a_layer_with_a_second_tensor():
    """The padding mask of BERT's blocks is a tensor like any other."""
    model = HUB["bert"].build()
    with pytest.warns(
        UserWarning, match="expansion of 'bert' is a plain functional model, not a B"
    ):
        opened = expand(model, ["transformer_layer_0", "transformer_layer_1"])
    x = random_inputs(read(model))
    x["padding_mask"] = np.array([[1] * 5 + [0] * 3, [1] * 8])
    assert_equal(arrays(opened(x)), arrays(model(x)))
    assert "transformer_layer_0/feedforward_layer_norm" in {p.at for p in cut_points(opened)}


def test_masks_reach_the_inner_layers():
    ids = keras.Input((5,), dtype="int32", name="ids")
    y = layers.Embedding(11, 4, mask_zero=True, name="embed")(ids)
    y = layers.LSTM(4, name="lstm")(Attending(name="block")(y))
    model = keras.Model(ids, y, name="m")
    opened = expand(model, "block")
    x = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]])
    assert "block/attention" in addresses(opened)
    np.testing.assert_array_equal(opened(x), model(x))
    for at in ("block/attention", "block/norm"):
        bottom, top = split(opened, at)
        np.testing.assert_allclose(top(bottom(x)), model(x), rtol=1e-5, atol=1e-6)


def test_dropout_inside_drops_in_fit_and_not_in_predict():
    class Dropping(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.scale = layers.Rescaling(1.0)
            self.drop = layers.Dropout(0.5)

        def call(self, x):
            return self.drop(self.scale(x))

    x = keras.Input((50,), name="x")
    opened = expand(keras.Model(x, Dropping(name="drop")(x), name="m"), "drop")
    opened.compile(loss="mean_absolute_error")
    ones = np.ones((2, 50), "float32")
    # What is dropped is 0, what is not is doubled: one off either way.
    assert opened.train_on_batch(ones, ones) == 1
    assert opened.evaluate(ones, ones, verbose=0) == 0
    np.testing.assert_array_equal(opened.predict(ones, verbose=0), ones)
    np.testing.assert_array_equal(opened(ones), ones)
    assert set(np.unique(opened(ones, training=True))) == {0, 2}


def test_a_recorded_training_flag_is_kept():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, Residual(name="block")(x, training=True), name="m")
    opened = expand(model, "block")
    ones = np.ones((3, 4), "float32")
    with keras.StatelessScope():
        expected = model(ones)
    with keras.StatelessScope():
        np.testing.assert_array_equal(opened(ones), expected)
    assert read(opened).calls[2].kwargs["training"] is True


def test_all_calls_of_a_layer_share_one_nested_model():
    block = Residual(name="block")
    opened = expand(around(block, block, block), "block")
    assert [a for a in addresses(opened) if a.endswith("dense")] == [
        f"block@{n}/dense" for n in range(3)
    ]
    assert split(opened, "block@1/drop").verify().parameters_conserved


def test_what_is_around_stays_nested():
    stack = keras.Sequential([keras.Input((4,), name="in"), Residual(name="block")], name="stack")
    x = keras.Input((4,), name="x")
    opened = expand(keras.Model(x, stack(x), name="m"), "stack/block")
    assert "stack/block/dense" in addresses(opened)
    assert isinstance(opened.get_layer("stack"), keras.Sequential)
    assert isinstance(expand(stack, "block"), keras.Sequential)


def test_a_constant_that_comes_from_no_weight_stays(tmp_path):
    class Scaling(Holder):
        def call(self, x):
            return super().call(x) * ops.sqrt(ops.arange(1.0, 5.0))

    model = around(Scaling())
    opened = expand(model, "block")
    opened.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    ones = np.ones((2, 4), "float32")
    np.testing.assert_allclose(loaded(ones), model(ones), rtol=1e-6)


def test_a_layer_of_mixed_precision():
    opened = expand(around(Residual(dtype="mixed_bfloat16", name="block")), "block")
    dtypes = {tensor.address: tensor.dtype for tensor in read(opened).tensors}
    assert dtypes["block/dense"] == dtypes["block/add"] == "bfloat16"


def test_flags_are_kept():
    block = Residual(name="block")
    model = around(block)
    block.trainable = False
    opened = expand(model, "block")
    assert opened.get_layer("block").trainable is False
    assert [v.path for v in opened.trainable_weights] == [v.path for v in model.trainable_weights]


def test_inner_layers_keep_a_record_of_one_call():
    model = around(Residual(name="block"))
    expand(model, "block")
    assert len(model.get_layer("block").dense._inbound_nodes) == 1


class Holder(layers.Layer):
    """Holds a dense layer; what the refused layers derive from."""

    def __init__(self, **kwargs):
        super().__init__(**{"name": "block", **kwargs})
        self.dense = layers.Dense(4, name="dense")
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build(shape)

    def call(self, x):
        return self.norm(self.dense(x))


class OwnWeight(Holder):
    def build(self, shape):
        super().build(shape)
        self.scale = self.add_weight(shape=(4,), name="scale")

    def call(self, x):
        return super().call(x) * self.scale


class UncalledLayer(Holder):
    def call(self, x):
        return self.norm(x)


class WeightOfAnInnerLayer(Holder):
    def call(self, x):
        return ops.matmul(super().call(x), ops.transpose(self.dense.kernel))


class BranchOnTraining(Holder):
    def call(self, x, training=None):
        x = super().call(x)
        return 2 * x if training else x


class AlwaysInInference(Holder):
    def call(self, x):
        return self.norm(self.dense(x), training=False)


class TrainingByDefault(Holder):
    def call(self, x, training=True):
        return self.norm(self.dense(x), training=training)


class Untraceable(Holder):
    def call(self, x):
        return super().call(x) * ops.ones(ops.shape(x))


class TwoOfOneName(Holder):
    def __init__(self):
        super().__init__()
        self.other = layers.Identity(name="dense")

    def call(self, x):
        return self.other(super().call(x))


class OwnMask(Holder):
    def compute_mask(self, inputs, previous_mask):
        return previous_mask


@pytest.mark.parametrize(
    ("block", "kind", "message"),
    [
        (OwnWeight, EditError, "no layer that its call calls holds the weights 'block/scale'"),
        (UncalledLayer, EditError, "no layer that its call calls holds the weights 'block/dense/"),
        (
            WeightOfAnInnerLayer,
            CertificateError,
            "with other weights. Received: outputs that differ",
        ),
        (BranchOnTraining, CertificateError, "in training with other weights. Received"),
        (AlwaysInInference, CertificateError, "in training with other weights. Received"),
        (TrainingByDefault, EditError, "takes training=True where nothing is said"),
        (Untraceable, EditError, "Keras says on symbolic tensors: "),
        (TwoOfOneName, EditError, "Keras says on symbolic tensors: .*unique"),
        (lambda: Holder(activity_regularizer="l2"), EditError, "an activity regulariser"),
        (
            lambda: layers.Dense(4, name="block"),
            EditError,
            "made of other layers. Received: 'bl.*De",
        ),
        (lambda: layers.LSTM(4, name="block"), EditError, "LSTM to do nothing but call the layers"),
        (
            lambda: keras.Sequential([keras.Input((5, 4)), layers.ReLU()], name="block"),
            EditError,
            "is a nested model: what is in it has addresses already",
        ),
    ],
)
def test_what_would_not_be_faithful_is_refused_and_leaves_no_trace(block, kind, message):
    model = around(block(), shape=(5, 4))
    before, snapshot = records(model), Snapshot.of(model)
    with pytest.raises(kind, match=message):
        expand(model, "block")
    assert records(model) == before
    assert snapshot.changes(model) == []


def test_a_layer_that_makes_masks_is_refused_where_there_is_one():
    x = keras.Input((5, 4), name="x")
    y = OwnMask()(layers.Masking(name="masking")(x))
    with pytest.raises(EditError, match="has to do with the mask that 'masking' carries"):
        expand(keras.Model(x, y, name="m"), "block")
    expand(keras.Model(x, OwnMask()(x), name="m"), "block")


def test_a_sequential_whose_layer_takes_a_mask_is_to_be_flattened_first():
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(11, 4, mask_zero=True),
            Attending(name="block"),
        ],
        name="stack",
    )
    before = records(model)
    with pytest.raises(EditError, match=r"'block', which takes a mask.* flatten\(model\)"):
        expand(model, "block")
    assert records(model) == before
    x = np.array([[1, 2, 0, 0, 0]])
    np.testing.assert_array_equal(expand(flatten(model), "block")(x), model(x))


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (
            "block@1",
            "all calls of a layer to be expanded together. Received: some without 'block@0'",
        ),
        ("block", "the call 'block@1' passes other arguments or other shapes"),
        ([], "at least one layer"),
        ("blok", "Did you mean 'block'"),
        ("x", "the model input 'x'"),
    ],
)
def test_bad_addresses_are_refused_in_one_sentence(at, message):
    x = keras.Input((5, 4), name="x")
    block = Attending(name="block")
    model = keras.Model(x, block(block(x), scale=2.0), name="m")
    before = records(model)
    with pytest.raises(SurgeryError, match=message):
        expand(model, at)
    assert records(model) == before
