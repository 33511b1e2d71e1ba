"""Counts against numbers worked out by hand: multiply-adds times two, and one for the rest."""

import keras
import pytest
from keras import layers, ops
from zoo_hub import HUB

from reusekit.graph import count_flops, read


def total(shape, layer, dtype="float32"):
    x = keras.Input(shape, dtype=dtype)
    return count_flops(read(keras.Model(x, layer(x)))).total


@pytest.mark.parametrize(
    ("shape", "layer", "expected"),
    [
        ((4,), layers.Dense(3), 2 * 4 * 3 + 3),
        ((7, 4), layers.Dense(3, activation="relu"), 7 * (2 * 4 * 3 + 3 + 3)),
        ((8, 8, 3), layers.Conv2D(5, 3, use_bias=False), 6 * 6 * 5 * 2 * 27),
        ((8, 8, 4), layers.Conv2D(4, 3, groups=2, use_bias=False), 6 * 6 * 4 * 2 * 18),
        ((8, 3), layers.Conv1D(5, 3, use_bias=False), 6 * 5 * 2 * 9),
        ((8, 8, 3), layers.DepthwiseConv2D(3, use_bias=False), 6 * 6 * 3 * 2 * 9),
        ((8, 8, 3), layers.SeparableConv2D(5, 3, use_bias=False), 6 * 6 * 2 * (27 + 15)),
        ((4, 4, 3), layers.Conv2DTranspose(5, 2, 2, use_bias=False), 4 * 4 * 3 * 5 * 4 * 2),
        ((6, 8), layers.EinsumDense("abc,cd->abd", (6, 5)), 2 * 6 * 8 * 5),
        ((8, 8, 3), layers.BatchNormalization(), 2 * 192),
        ((8, 8, 3), layers.MaxPooling2D(2), 4 * 48),
        ((8, 8, 3), layers.GlobalAveragePooling2D(), 192),
        ((5, 3), layers.LSTM(4), 5 * (2 * (3 * 16 + 4 * 16) + 40)),
        ((5, 3), layers.GRU(4, reset_after=False), 5 * (2 * (3 * 12 + 4 * 12) + 40)),
        ((5, 3), layers.Bidirectional(layers.SimpleRNN(4)), 2 * 5 * (2 * (12 + 16) + 40)),
        ((5, 4), layers.TimeDistributed(layers.Dense(3, use_bias=False)), 5 * 24),
        ((4, 4), layers.ReLU(), 16),
        ((4, 4), layers.Flatten(), 0),
        ((4, 4), lambda x: ops.matmul(x, x), 2 * 4 * 16),
        ((4, 4), lambda x: ops.einsum("bij,bkj->bik", x, x), 2 * 4 * 4 * 4),
        ((4, 4), lambda x: ops.transpose(x, (0, 2, 1)) + x, 16),
    ],
)
def test_by_hand(shape, layer, expected):
    assert total(shape, layer) == expected


def test_multi_head_attention_by_hand():
    x = keras.Input((6, 8))
    y = layers.MultiHeadAttention(2, 4)(x, x)
    projections = 4 * 6 * 8 * 8
    products = 2 * 2 * 6 * 6 * 4
    softmax = 5 * 2 * 6 * 6
    assert count_flops(read(keras.Model(x, y))).total == 2 * (projections + products) + softmax


def test_grouped_query_attention_projects_fewer_keys():
    x = keras.Input((6, 8))
    few = count_flops(read(keras.Model(x, layers.GroupQueryAttention(4, 4, 1)(x, x))))
    many = count_flops(read(keras.Model(x, layers.GroupQueryAttention(4, 4, 4)(x, x))))
    assert many.total - few.total == 2 * 2 * 6 * 8 * 3 * 4


class Block(layers.Layer):
    """Attention and two dense layers, one after another, and a weight of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(2, 4)
        self.wide, self.narrow = layers.Dense(16), layers.Dense(8, use_bias=False)

    def build(self, shape):
        self.mix = self.add_weight(shape=(8, 8), name="mix")

    def call(self, x):
        y = self.narrow(self.wide(self.attention(query=x, value=x)))
        return ops.matmul(y, self.mix) + x


def test_a_layer_without_a_rule_is_what_it_is_made_of():
    x = keras.Input((6, 8))
    attention = count_flops(read(keras.Model(x, layers.MultiHeadAttention(2, 4)(x, x))))
    block = count_flops(read(keras.Model(x, Block()(x))))
    dense = 2 * 6 * (8 * 16 + 16 * 8) + 6 * 16
    assert block.total - attention.total == dense + 2 * 6 * 8 * 8 + 6 * 8
    assert block.uncounted == ()


def test_counting_leaves_nothing_behind():
    x = keras.Input((6, 8))
    block = Block()
    model = keras.Model(x, block(x))
    before = keras.layers.Add().name
    count_flops(read(model))
    parts = (block, block.attention, block.wide, block.narrow)
    assert [len(part._inbound_nodes) for part in parts] == [1, 0, 0, 0]
    number = int(before.partition("_")[2] or 0)
    assert keras.layers.Add().name == f"add_{number + 1}"


def test_a_layer_that_does_not_show_what_it_is_made_of_is_named():
    class Opaque(layers.Layer):
        def call(self, x):
            return ops.convert_to_tensor(ops.convert_to_numpy(x))

        def compute_output_shape(self, shape):
            return shape

    x = keras.Input((6, 8))
    found = count_flops(read(keras.Model(x, layers.ReLU()(Opaque()(x)))))
    assert (found.total, found.uncounted) == (48, ("Opaque",))


@pytest.mark.parametrize("name", HUB)
def test_nothing_in_kerashubs_models_is_uncounted(name):
    assert count_flops(read(HUB[name].build())).uncounted == ()


def test_a_vit_block_by_hand():
    """Five patches of four features, two heads of two, a hidden layer of six, twice."""
    flops = count_flops(read(HUB["vit"].build()))
    attention = 2 * (4 * 5 * 4 * 4 + 2 * 2 * 5 * 5 * 2) + 5 * 2 * 5 * 5
    hidden = 5 * (2 * 4 * 6 + 6 + 6) + 5 * (2 * 6 * 4 + 4)
    norm, residual = 7 * 5 * 4, 5 * 4
    encoder = 2 * (norm + attention + residual + norm + hidden + residual) + norm
    patches = 4 * 4 * (2 * 4 * 4 * 3 + 1) + 5 * 4
    assert flops.per_call == (0, patches, encoder)


def test_an_encoder_block_and_a_decoder_block_of_one_size_cost_the_same():
    """One is counted by what it is made of, the other by its rule; masks are not counted."""
    counts = []
    for name in ("bert", "gpt2"):
        graph = read(HUB[name].build())
        counts += [
            flops
            for call, flops in zip(graph.calls, count_flops(graph).per_call, strict=True)
            if call.address.startswith("transformer_layer")
        ]
    norm, positions = 7 * 4, 128
    attention = 2 * (4 * 4 * 4 + 2 * 2 * positions * 2) + 5 * 2 * positions
    hidden = (2 * 4 * 6 + 6 + 6) + (2 * 6 * 4 + 4)
    assert counts == [positions * (2 * norm + attention + hidden + 2 * 4)] * 4


def test_looking_up_is_free_and_multiplying_back_is_not():
    ids = keras.Input((5,), dtype="int32")
    table = layers.ReversibleEmbedding(10, 4)
    hidden = table(ids)
    assert count_flops(read(keras.Model(ids, hidden))).total == 0
    assert count_flops(read(keras.Model(ids, table(hidden, reverse=True)))).total == 2 * 5 * 4 * 10


def test_the_published_count_of_vgg16():
    model = keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))
    # 15.3e9 multiply-adds in the convolutions (Simonyan and Zisserman; 123e6 more are dense).
    assert count_flops(read(model)).total / 2e9 == pytest.approx(15.35, rel=0.01)
