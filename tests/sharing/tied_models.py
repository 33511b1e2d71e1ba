"""Small models with one tie each, of every kind."""

from dataclasses import dataclass

import keras
from keras import layers

from reusekit.sharing.layers import TiedDense

TIED = {}
# Ties that not every operation keeps, or that not all tests are made for.
UNUSUAL = {}


@dataclass(frozen=True)
class Tied:
    """A model, the layer that its tie begins with, and an address between the two ends."""

    model: keras.Model
    source: str
    between: str
    replacement: keras.layers.Layer

    @property
    def end(self):
        """The layer at `source`."""
        layer = self.model
        for name in self.source.split("/"):
            layer = layer.get_layer(name)
        return layer


def kind(build):
    TIED[build.__name__] = build
    return build


def unusual(build):
    UNUSUAL[build.__name__] = build
    return build


def language_model(embedding, name):
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    hidden = layers.Dense(4, activation="gelu", name="hidden")(embedding(tokens))
    logits = TiedDense(embedding, name="logits")(hidden)
    replacement = layers.Embedding(30, 4, name="other")
    return Tied(keras.Model(tokens, logits, name=name), "embedding", "hidden", replacement)


@kind
def embedding():
    return language_model(layers.Embedding(30, 4, name="embedding"), "lm")


@kind
def reversible_embedding():
    return language_model(layers.ReversibleEmbedding(30, 4, name="embedding"), "reversible")


@kind
def masked_embedding():
    embedding = layers.Embedding(30, 4, mask_zero=True, name="embedding")
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    hidden = layers.LSTM(4, return_sequences=True, name="hidden")(embedding(tokens))
    logits = TiedDense(embedding, scale=True, activation="softmax", name="logits")(hidden)
    replacement = layers.Embedding(30, 4, mask_zero=True, name="other")
    return Tied(keras.Model(tokens, logits, name="masked"), "embedding", "hidden", replacement)


@kind
def dense():
    x = keras.Input((6,), name="x")
    encoder = layers.Dense(3, name="encoder")
    code = layers.ReLU(name="code")(encoder(x))
    decoded = TiedDense(encoder, name="decoder")(code)
    return Tied(
        keras.Model(x, decoded, name="autoencoder"), "encoder", "code", layers.Dense(3, name="o")
    )


@kind
def einsum():
    x = keras.Input((5, 6), name="x")
    heads = layers.EinsumDense("abc,cde->abde", (None, 2, 3), name="heads")
    between = layers.ReLU(name="between")(heads(x))
    back = TiedDense(heads, name="back")(between)
    other = layers.EinsumDense("abc,cde->abde", (None, 2, 3), name="other")
    return Tied(keras.Model(x, back, name="einsum"), "heads", "between", other)


@kind
def convolution():
    x = keras.Input((4, 4, 3), name="x")
    conv = layers.Conv2D(5, 1, name="conv")
    between = layers.ReLU(name="between")(conv(x))
    back = TiedDense(conv, use_bias=False, name="back")(between)
    return Tied(
        keras.Model(x, back, name="conv_net"), "conv", "between", layers.Conv2D(5, 1, name="other")
    )


@kind
def across_nesting():
    embedding = layers.Embedding(30, 4, name="embedding")
    features = keras.Input((7, 4), name="features")
    inner = TiedDense(embedding, name="logits")(layers.Dense(4, name="hidden")(features))
    head = keras.Model(features, inner, name="head")
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    model = keras.Model(tokens, head(embedding(tokens)), name="nested")
    return Tied(model, "embedding", "head/hidden", layers.Embedding(30, 4, name="other"))


@kind
def source_in_a_nested_model():
    embedding = layers.Embedding(30, 4, name="embedding")
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    hidden = layers.Dense(4, name="hidden")(embedding(tokens))
    encoder = keras.Model(tokens, hidden, name="encoder")
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    between = layers.ReLU(name="between")(encoder(tokens))
    logits = TiedDense(embedding, name="logits")(between)
    other = layers.Embedding(30, 4, name="other")
    return Tied(keras.Model(tokens, logits, name="lm"), "encoder/embedding", "between", other)


@unusual
def three_owners():
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    embedding = layers.Embedding(30, 4, name="embedding")
    hidden = layers.Dense(4, name="hidden")(embedding(tokens))
    logits = [TiedDense(embedding, name=name)(hidden) for name in ("logits", "others")]
    model = keras.Model(tokens, layers.Add(name="sum")(logits), name="lm")
    return Tied(model, "embedding", "hidden", layers.Embedding(30, 4, name="other"))


@unusual
def end_before_its_source():
    x = keras.Input((3,), name="x")
    decoder = layers.Dense(3, name="decoder")
    between = layers.ReLU(name="between")(TiedDense(decoder, units=5, name="encoder")(x))
    model = keras.Model(x, decoder(between), name="autoencoder")
    return Tied(model, "encoder", "between", layers.Dense(3, name="other"))


@keras.saving.register_keras_serializable("reusekit_tests")
class TiedHead(layers.Layer):
    """A layer with a tied layer in it, saved together with the embedding that is tied."""

    def __init__(self, source, **kwargs):
        super().__init__(**kwargs)
        self.source = source
        self.logits = TiedDense(source, name="logits")

    def build(self, input_shape):
        self.logits.build(input_shape)

    def call(self, x):
        return self.logits(x)

    def get_config(self):
        source = keras.saving.serialize_keras_object(self.source)
        return {**super().get_config(), "source": source}

    @classmethod
    def from_config(cls, config):
        source = keras.saving.deserialize_keras_object(config.pop("source"))
        return cls(source, **config)


@unusual
def end_inside_another_layer():
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    embedding = layers.Embedding(30, 4, name="embedding")
    hidden = layers.Dense(4, name="hidden")(embedding(tokens))
    model = keras.Model(tokens, TiedHead(embedding, name="head")(hidden), name="lm")
    return Tied(model, "embedding", "hidden", layers.Embedding(30, 4, name="other"))


@unusual
def layer_in_two_places():
    shared = layers.Dense(4, name="shared")
    inner = keras.Input((4,), name="inner")
    nested = keras.Model(inner, shared(layers.Dense(4, name="own")(inner)), name="nested")
    x = keras.Input((4,), name="x")
    model = keras.Model(x, nested(layers.ReLU(name="between")(shared(x))), name="twice")
    return Tied(model, "shared", "between", layers.Dense(4, name="other"))


class Scaled(layers.Layer):
    """A layer that multiplies with a weight that it is given."""

    def __init__(self, weight, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight

    def call(self, x):
        return x * self.weight


@unusual
def weight_that_two_layers_hold():
    x = keras.Input((4,), name="x")
    first = layers.Dense(4, bias_initializer="normal", name="first")
    between = layers.ReLU(name="between")(first(x))
    model = keras.Model(x, Scaled(first.bias, name="scaled")(between), name="held")
    return Tied(model, "first", "between", layers.Dense(4, name="other"))
