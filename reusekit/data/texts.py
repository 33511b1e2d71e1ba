"""Texts as the tokens that a model takes."""

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reusekit.arguments import checked
from reusekit.data.rows import row_keys
from reusekit.data.split import Contents, DataSplit
from reusekit.digests import array_digest, digest
from reusekit.errors import DataError

_TEXTS = 1024  # that are tokenised at a time


def names_of_texts(split: DataSplit) -> tuple[str, ...]:
    """Return the names of the texts of an example; none where its inputs are no texts alone.

    Example:
        >>> import reusekit as rk
        >>> names_of_texts(rk.data.load("python_topics", "test[:8]"))
        ('text',)
    """
    spec = split.examples.element_spec[0]
    named = spec if isinstance(spec, dict) else {"text": spec}
    texts = all(part.dtype == tf.string and part.shape == () for part in named.values())
    return tuple(named) if texts else ()


@checked(DataError)
def tokenized(split: DataSplit, tokenizer: keras.Model) -> DataSplit:
    """Return a split with its texts as tokens, which are made once and held in memory.

    Args:
        split: Its inputs are texts.
        tokenizer: From these to what a model takes, as `Backbone.tokenizer` makes it.

    Returns:
        The same examples in the same order. `raw` is the split as it was read, and the fingerprint
        follows from the given one's and from the tokens.

    Example:
        >>> import reusekit as rk
        >>> texts = rk.data.load("python_topics", "test[:8]")
        >>> tokens = tokenized(texts, rk.load_backbone("reusekit/prosenet").tokenizer(16))
        >>> tokens.input_shape, tokens.size
        ((16,), 8)
    """
    parts = [
        (keras.tree.map_structure(np.asarray, tokenizer(texts)), *told)
        for texts, *told in split.examples.batch(_TEXTS)
    ]
    whole: Any = tf.nest.map_structure(lambda *batches: np.concatenate(batches), *parts)
    fingerprint = digest([split.fingerprint, *map(array_digest, tf.nest.flatten(whole[0]))])[:32]
    examples = tf.data.Dataset.from_tensor_slices(whole)
    return replace(
        split,
        examples=examples,
        fingerprint=fingerprint,
        raw=split.raw or split,
        contents=Contents(
            keys=row_keys(whole[0]),
            treatment=digest(["tokens", str(examples.element_spec[0])]),
            told=whole[1:],
            taken=lambda at: tf.data.Dataset.from_tensor_slices(
                tf.nest.map_structure(lambda part: part[at], whole)
            ),
            fingerprint=fingerprint,
        ),
    )
