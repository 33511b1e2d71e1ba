"""A head that predicts masked tokens."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import keras
from keras import layers
from pydantic import PositiveInt

from reusekit.arguments import checked
from reusekit.errors import HeadError
from reusekit.graph import read, resolve_one
from reusekit.sharing.layers import TiedDense
from reusekit.training.heads.head import Features, Head, one_tensor


@checked(HeadError)
@dataclass(frozen=True)
class MaskedLanguageModel(Head):
    """A head that gives a logit for each token of the vocabulary at each position.

    Its output is tied to the bottom's embedding: the weight is the embedding's own, not a copy.
    Where that is `keras.layers.ReversibleEmbedding`, the layer itself is called in reverse (made
    with `tie_weights=False`, it has weights of its own for that), and the saved model loads with
    nothing but Keras. Where it is a plain `Embedding`, the tie is a
    `rk.layers.TiedDense`, and the saved model loads after `import reusekit`.

    Labels are the tokens at all positions, shape (batch, length), and sample weights of the same
    shape are 1 where a token was masked out and counts, else 0.

    Args:
        vocabulary: Width of an output with weights of its own; None ties it to the embedding.
        embedding: The address of the embedding to tie to, or the layer itself. None finds it: the
            bottom's only ReversibleEmbedding, or else its only Embedding.
        transform: Whether a dense GELU layer and a layer normalization come first, as in BERT. They
            bring features of another width to that of the embedding.
        name: The name of the head; its layers' names begin with it.

    Raises:
        HeadError: An empty vocabulary, or both a vocabulary and an embedding.

    Example:
        >>> import reusekit as rk
        >>> tokens = keras.Input((12,), dtype="int32", name="tokens")
        >>> x = layers.ReversibleEmbedding(50, 8, name="embedding")(tokens)
        >>> bottom = keras.Model(tokens, layers.Dense(16, activation="relu", name="mixed")(x))
        >>> model = rk.attach(bottom, rk.heads.MaskedLanguageModel())
        >>> model.output_shape
        (None, 12, 50)
        >>> [layer.name for layer in model.layers]
        ['tokens', 'embedding', 'mixed', 'head_transform', 'head_normalization', 'head_logits']
    """

    vocabulary: PositiveInt | None = None
    _: KW_ONLY
    embedding: str | keras.Layer | None = None
    transform: bool = True

    def __post_init__(self) -> None:
        """Check that there is one vocabulary."""
        if self.vocabulary is not None and self.embedding is not None:
            raise HeadError(
                "Expected either a vocabulary, for an output of its own, or an embedding to tie it "
                f"to. Received: vocabulary={self.vocabulary!r}, embedding={self.embedding!r}."
            )

    @property
    def compile_args(self) -> dict[str, Any]:
        """Cross-entropy on tokens and accuracy, both over what the sample weights count."""
        loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )
        return {"loss": loss, "weighted_metrics": ["accuracy"]}

    @checked(HeadError)
    def connect(self, features: Features) -> keras.KerasTensor:
        """Call the head's layers on a sequence of features; see `Head.connect`."""
        x = one_tensor(features, "masked language model")
        if len(x.shape) != 3 or x.shape[-1] is None:
            raise HeadError(
                "Expected features of shape (length, channels). Received: "
                f"{tuple(x.shape[1:])}, without the batch axis."
            )
        if self.vocabulary is not None:
            x = self._transformed(x, x.shape[-1])
            return layers.Dense(int(self.vocabulary), dtype="float32", name=f"{self.name}_logits")(
                x
            )
        if not isinstance(self.embedding, layers.Embedding):
            raise HeadError(
                "Expected the embedding layer to tie the head to, since there is no bottom to find "
                f"it in: pass embedding=LAYER, or a vocabulary. Received: {self.embedding!r}."
            )
        x = self._transformed(x, self.embedding.output_dim)
        if isinstance(self.embedding, layers.ReversibleEmbedding):
            x = self.embedding(x, reverse=True)
            return layers.Activation("linear", dtype="float32", name=f"{self.name}_logits")(x)
        return TiedDense(self.embedding, dtype="float32", name=f"{self.name}_logits")(x)

    @checked(HeadError)
    def bound_to(self, bottom: keras.Model) -> "MaskedLanguageModel":
        """Return the head with the bottom's embedding."""
        if self.vocabulary is not None:
            return self
        graph = read(bottom)
        found = {
            call.operation: call.address
            for call in graph.calls
            if isinstance(call.operation, layers.Embedding)
        }
        if isinstance(self.embedding, str):
            layer = graph.maker[resolve_one(graph, self.embedding)].operation
        elif self.embedding is not None:
            layer = self.embedding
        else:
            reversible = [each for each in found if isinstance(each, layers.ReversibleEmbedding)]
            candidates = reversible or list(found)
            layer = candidates[0] if len(candidates) == 1 else None
        if layer not in found:
            listed = ", ".join(map(repr, found.values())) or "none"
            raise HeadError(
                f"Expected one embedding that the bottom calls, to tie the head to: {listed}. "
                f"Received: embedding={self.embedding!r}. Give vocabulary=N for a head with "
                "weights of its own."
            )
        return replace(self, embedding=layer)

    def _transformed(self, x: keras.KerasTensor, width: int) -> keras.KerasTensor:
        if self.transform:
            x = layers.Dense(width, activation="gelu", name=f"{self.name}_transform")(x)
            return layers.LayerNormalization(name=f"{self.name}_normalization")(x)
        if x.shape[-1] != width:
            raise HeadError(
                f"Expected features as wide as the embedding, {width}, or transform=True. "
                f"Received: {tuple(x.shape[1:])}, without the batch axis."
            )
        return x
