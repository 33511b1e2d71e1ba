"""Prosenet: a small transformer that ships inside the package and has read documentation.

It makes transfer learning on text possible with no download: `scripts/pretrain_prosenet.py` trained
it to guess words that were left out of the docstrings of this package's requirements. It never read
those of the standard library, which the data set `python_topics` is made of. Its words are those of
a stock `TextVectorization` layer, so that whatever is made from it takes strings wherever Keras is.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import keras
from keras import layers, ops

from reusekit.backbones.backbone import Backbone
from reusekit.backbones.files import load_own_weights, own_weights
from reusekit.errors import BackboneError
from reusekit.graph.keras_internals import named

SOURCE = "reusekit/prosenet"
WEIGHTS = Path(__file__).with_name("prosenet.weights.h5")
"""In half precision: the file is half as large, and no figure differs in the third place."""
VOCABULARY = WEIGHTS.with_name("prosenet.txt")

PADDING, UNKNOWN, MASK = 0, 1, 2
"""Numbers of what are no words: filling, words outside the vocabulary, and words left out."""
LEFT_OUT = "[MASK]"  # no text becomes this, since brackets are taken out of it
WORDS = 8000  # numbers of tokens, those above included
WIDTH, HEADS, WIDER = 96, 4, 384
LENGTH = 64
"""Words of a text that it was trained on; a longer text's further words share the last place."""
BLOCKS = 4
CUTS = ("embedding_out", *(f"block{n}_out" for n in range(1, BLOCKS + 1)))
"""The layers where the network parts cleanly, shallow to deep; the last is its output."""


def load_prosenet(
    weights: str | os.PathLike | None = "default", input_shape: Sequence[int | None] | None = None
) -> Backbone:
    """Return the network with its tokenizer beside it.

    Args:
        weights: As for `build`; "default" is "documentation".
        input_shape: None: it takes tokens, as many as there are.

    Returns:
        The backbone; its model takes numbers of words, int32, shape (batch, length).

    Raises:
        BackboneError: An input shape, or weights that `build` refuses.

    Example:
        >>> backbone = load_prosenet(weights=None)
        >>> backbone.model.output_shape
        (None, None, 96)
        >>> backbone.tokenizer(4)(keras.ops.array(["Read the file"])).numpy().tolist()
        [[244, 3, 95, 0]]
    """
    if input_shape is not None:
        raise BackboneError(
            f"Expected no input_shape for {SOURCE}, which takes texts of any length. Received: "
            f"{tuple(input_shape)}. Set data.sequence_length, to which texts are cut."
        )
    weights = "documentation" if weights == "default" else weights
    stated = None if weights is None else str(weights)
    return Backbone(build(weights), None, SOURCE, stated, tokenizer=tokenizer)


def tokenizer(length: int = LENGTH, names: Sequence[str] = ("text",)) -> keras.Model:
    """Make the model from texts to the numbers of their words.

    Args:
        length: How many numbers; what is missing is filled up with 0, what is over is left out.
            Several texts share it evenly.
        names: Of the inputs: one for each of the texts that belong together.

    Returns:
        A model of stock layers from strings, shape (batch,), to int32, shape (batch, length). Its
        input is a dictionary where there are several.
    """
    words = layers.TextVectorization(
        vocabulary=vocabulary(), output_sequence_length=length // len(names), name="words_of_text"
    )
    texts = {name: keras.Input((), dtype="string", name=name) for name in names}
    numbers = [words(text) for text in texts.values()]
    joined = numbers[0] if len(numbers) == 1 else layers.Concatenate(name="joined")(numbers)
    tokens = named(ops.cast(joined, "int32"), "tokens")
    return keras.Model(texts if len(texts) > 1 else texts[names[0]], tokens, name="tokenizer")


@cache
def vocabulary() -> list[str]:
    """Return the words that have a number, by their numbers from `MASK` on."""
    return VOCABULARY.read_text("utf-8").split()


def build(weights: str | os.PathLike | None = "documentation") -> keras.Model:
    """Return the network without a head.

    Args:
        weights: "documentation" for the weights that ship with the package, a path to a
            `.weights.h5` file that `scripts/pretrain_prosenet.py` wrote, or None for a fresh
            initialisation.

    Returns:
        A functional model of stock layers from int32 of shape (batch, length), 0 where it is
        filled up, to float32 of shape (batch, length, 96), masked. Each name in `CUTS` is a layer
        that parts it cleanly, shallow to deep.

    Raises:
        BackboneError: The weights are unknown, absent, or of another network.

    Example:
        >>> model = build(weights=None)
        >>> model.get_layer("block2_out").output.shape
        (None, None, 96)
    """
    # Read what the caller asked for before anything is built.
    path = None if weights is None else own_weights(weights, {"documentation": WEIGHTS})
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    kept = named(ops.cast(named(ops.not_equal(tokens, PADDING), "kept"), "int32"), "kept_numbers")
    counted = named(ops.minimum(named(ops.cumsum(kept, axis=1), "counted"), LENGTH), "known")
    places = named(ops.multiply(counted, kept), "places")
    x = layers.Add(name="embedding_add")(
        [
            layers.Embedding(WORDS, WIDTH, mask_zero=True, name="words")(tokens),
            # Masked, too, for Keras drops a sum's mask where one of its parts has none.
            layers.Embedding(LENGTH + 1, WIDTH, "zeros", mask_zero=True, name="positions")(places),
        ]
    )
    # Not normalised: a rare word's vector is long, and so weighs more where vectors are averaged.
    x = layers.Rescaling(WIDTH**0.5, name="embedding_out")(x)
    for number in range(1, BLOCKS + 1):
        x = _block(x, f"block{number}")
    model = keras.Model(tokens, x, name="prosenet")
    if path is not None:
        load_own_weights(model, path)
    return model


def _block(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Add attention and two dense layers to a shortcut, each after a normalisation."""
    y = layers.LayerNormalization(name=f"{name}_attention_norm")(x)
    y = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"{name}_attention")(y, y)
    x = layers.Add(name=f"{name}_attention_add")([x, y])
    y = layers.LayerNormalization(name=f"{name}_dense_norm")(x)
    y = layers.Dense(WIDER, activation="gelu", name=f"{name}_wide")(y)
    y = layers.Dense(WIDTH, kernel_initializer="zeros", name=f"{name}_narrow")(y)
    return layers.Add(name=f"{name}_out")([x, y])
