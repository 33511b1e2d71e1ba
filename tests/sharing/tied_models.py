"""Small models with one tie each, of every kind."""

from dataclasses import dataclass

import keras
from keras import layers

from reusekit.sharing.layers import TiedDense

TIED = {}


@dataclass(frozen=True)
class Tied:
    """A model, the layer that its tie begins with, and an address between the two ends."""

    model: keras.Model
    source: str
    between: str
    replacement: keras.layers.Layer


def kind(build):
    TIED[build.__name__] = build
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
