"""Heads that end in one dense layer: pooling, hidden layers, outputs."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import keras
import numpy as np
from keras import layers
from pydantic import NonNegativeInt

from reusekit.arguments import Rate, checked
from reusekit.errors import HeadError
from reusekit.training.heads.head import Features, Head, one_tensor
from reusekit.training.heads.pooling import Pooling, pool

Normalization = Literal["batch", "layer"]


@dataclass(frozen=True, kw_only=True)
class DenseHead(Head):
    """Pooling where needed, hidden layers if wanted, one dense layer.

    Args:
        pooling: How features of several positions become one vector; a vector is taken as it is.
            "average", "max", "concatenated" (both), "attention" (an average with learned weights),
            "flatten" or "token" (the first of a sequence). All pass over
            the positions that the mask of the features leaves out; see `rk.attach`.
        units: Width of the hidden ReLU layer, or widths of several in their order; 0 for none.
        dropout: Share that is dropped, while training, of each hidden layer's output; of the
            features where there is no hidden layer.
        normalization: "batch" or "layer" normalizes the features and each hidden layer's output.
        standardize: Pooled features (examples, channels) whose mean and variance the head learns to
            remove, so that one learning rate suits cuts of any scale; what does not vary keeps its
            scale. None leaves them as they are.
        name: As of any head.
    """

    pooling: Pooling = "average"
    units: NonNegativeInt | Sequence[NonNegativeInt] = 0
    dropout: Rate = 0.0
    normalization: Normalization | None = None
    standardize: Any = field(default=None, repr=False, compare=False)

    @abstractmethod
    def _output(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Return the last layer."""

    @checked(HeadError)
    def connect(self, features: Features) -> keras.KerasTensor:
        """Call the head's layers on features; see `Head.connect`."""
        features = one_tensor(features, type(self).__name__.lower())
        pooled = self._standardized(pool(features, self.pooling, self.name))
        return self._output(self._hidden(pooled))

    def _hidden(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Build the part before the last layer."""
        x = self._normalized(x, f"{self.name}_features")
        widths = [int(units) for units in self._widths() if units]
        for number, units in enumerate(widths):
            suffix = f"_{number}" if len(widths) > 1 else ""
            x = layers.Dense(units, activation="relu", name=f"{self.name}_hidden{suffix}")(x)
            x = self._normalized(x, f"{self.name}_hidden{suffix}")
            x = self._dropped(x, suffix)
        return x if widths else self._dropped(x)

    def _widths(self) -> Sequence[Any]:
        return self.units if isinstance(self.units, Sequence) else [self.units]

    def _standardized(self, x: keras.KerasTensor) -> keras.KerasTensor:
        if self.standardize is None:
            return x
        features = np.asarray(self.standardize)
        if features.ndim != 2 or len(features) < 1 or features.shape[1] != x.shape[-1]:
            raise HeadError(
                f"Expected standardize as pooled features of shape (examples, {x.shape[-1]}). "
                f"Received: shape {features.shape}."
            )
        # In half precision a small variance would be none.
        layer = layers.Normalization(dtype="float32", name=f"{self.name}_normalization")
        layer.adapt(features)
        # Keras would divide what never varies by next to nothing, so that a channel that is silent
        # in these examples and speaks up in others would drown all else.
        constant = np.ptp(features, axis=0) == 0
        layer.adapt_variance.assign(keras.ops.where(constant, 1.0, layer.adapt_variance))
        layer.finalize_state()
        return layer(x)

    def _normalized(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        if self.normalization is None:
            return x
        kinds = {"batch": layers.BatchNormalization, "layer": layers.LayerNormalization}
        return kinds[self.normalization](name=f"{name}_{self.normalization}_normalization")(x)

    def _dropped(self, x: keras.KerasTensor, suffix: str = "") -> keras.KerasTensor:
        if not self.dropout:
            return x
        return layers.Dropout(self.dropout, name=f"{self.name}_dropout{suffix}")(x)
