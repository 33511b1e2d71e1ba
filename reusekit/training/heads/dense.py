"""Heads that end in one dense layer: pooling, hidden layers, outputs."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import keras
import numpy as np
from keras import layers
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import Rate, checked
from reusekit.errors import HeadError
from reusekit.training.heads.head import Classes, Features, Head, one_tensor
from reusekit.training.heads.pooling import Pooling, pool

Normalization = Literal["batch", "layer"]


@dataclass(frozen=True, kw_only=True)
class DenseHead(Head):
    """Pooling where needed, hidden layers if wanted, one dense layer.

    Args:
        pooling: The way from features of several positions to one vector; a vector is taken as it
            is. "avg", "max", "concatenated" (both), "attention" (an average with learned weights),
            "flatten" or "token" (the first of a sequence). All pass over the positions that the
            mask of the features leaves out; see `rk.attach`.
        units: Width of the hidden ReLU layer, or widths of several in their order; 0 for none.
        dropout: Share that is dropped, while training, of each hidden layer's output; of the
            features where there is no hidden layer.
        normalization: "batch" or "layer" normalizes the features and each hidden layer's output.
        standardize: Pooled features (examples, channels) whose mean and variance the head learns to
            remove, so that one learning rate suits cuts of any scale; what does not vary keeps its
            scale. None leaves them as they are.
        name: As of any head.
    """

    pooling: Pooling = "avg"
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

    def _last(
        self, x: keras.KerasTensor, width: int, name: str, activation: str | None = None
    ) -> keras.KerasTensor:
        """Call the last layer, in full precision whatever the others compute in."""
        name = f"{self.name}_{name}"
        return layers.Dense(int(width), activation=activation, dtype="float32", name=name)(x)

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
        # In less than float64, sums of many features far from 0 lose their variance, or overflow.
        layer.adapt(features.astype("float64"))
        # Keras would divide what never varies by next to nothing, so that a channel that is silent
        # in these examples and speaks up in others would drown all else.
        constant = np.ptp(features, axis=0) == 0
        variance = keras.ops.convert_to_numpy(layer.adapt_variance)
        layer.adapt_variance.assign(np.where(constant, np.float32(1), variance))
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


def one_hot(labels: Any, classes: int) -> Any:
    """Return vectors of 0 and 1 of class numbers, shape (batch,) or (batch, 1).

    Shares of classes, shape (batch, classes), are taken for such vectors.
    """
    if len(labels.shape) == 2 and labels.shape[-1] == classes > 1:
        return keras.ops.cast(labels, "float32")
    flat = keras.ops.reshape(keras.ops.cast(labels, "int32"), (-1,))
    return keras.ops.one_hot(flat, classes)


@checked(HeadError)
@dataclass(frozen=True)
class Classifier(DenseHead):
    """A classification head: pooling where needed, hidden layers if wanted, probabilities.

    Args:
        classes: The number of classes to tell apart. Labels are their numbers, from 0.
        logits: Whether to give logits rather than probabilities; the loss then takes them.
        pooling: As of any dense head: "avg", "max", "concatenated", "attention", "flatten" or
            "token".
        units: Width of the hidden ReLU layer, or widths of several; 0 for none.
        dropout: Share that is dropped, while training, of each hidden layer's output; of the
            features where there is no hidden layer.
        normalization: "batch" or "layer" normalizes what each dense layer takes.
        standardize: Pooled features (examples, channels) whose mean and variance are removed.
        name: The name of the head; its layers' names begin with it.

    Raises:
        HeadError: Fewer than two classes, an unknown pooling or normalization, a negative width.

    Example:
        >>> head = Classifier(classes=3, units=16)
        >>> model = head.build((4, 4, 8))
        >>> model.output_shape
        (None, 3)
        >>> [layer.name for layer in model.layers]
        ['head_input', 'head_pooling', 'head_hidden', 'head_probabilities']
        >>> model.compile("adam", **head.compile_args)
    """

    classes: Classes
    _: KW_ONLY
    logits: bool = False

    @property
    def compile_args(self) -> dict[str, Any]:
        """Cross-entropy on class numbers, and accuracy."""
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=self.logits)
        return {"loss": loss, "metrics": ["accuracy"]}

    @checked(HeadError)
    def smoothed_loss(self, smoothing: Rate) -> Any:
        """Return cross-entropy on class numbers or shares; see `Head.smoothed_loss`."""
        loss = keras.losses.CategoricalCrossentropy(self.logits, smoothing)

        def smoothed(labels: Any, outputs: Any) -> Any:
            return loss.call(one_hot(labels, int(self.classes)), outputs)

        return smoothed

    def _output(self, x: keras.KerasTensor) -> keras.KerasTensor:
        if self.logits:
            return self._last(x, self.classes, "logits")
        return self._last(x, self.classes, "probabilities", "softmax")


@checked(HeadError)
@dataclass(frozen=True)
class Multilabel(DenseHead):
    """A head that says for each label whether it applies, each by itself.

    Args:
        labels: The number of labels. Targets are 0 or 1, shape (batch, labels).
        logits: Whether to give logits rather than probabilities; loss and metrics then take them.
        pooling: As of `Classifier`, and so are those below.
        units: Width of the hidden ReLU layer, or widths of several; 0 for none.
        dropout: Share that is dropped while training.
        normalization: "batch", "layer" or None.
        standardize: Pooled features (examples, channels) whose mean and variance are removed.
        name: The name of the head; its layers' names begin with it.

    Raises:
        HeadError: No label, or what `Classifier` would refuse.

    Example:
        >>> head = Multilabel(labels=5, pooling="max")
        >>> head.build((12, 8)).output_shape
        (None, 5)
        >>> [metric.name for metric in head.compile_args["metrics"]]
        ['accuracy', 'auc']
    """

    labels: PositiveInt
    _: KW_ONLY
    logits: bool = False

    @property
    def compile_args(self) -> dict[str, Any]:
        """Binary cross-entropy; accuracy over all labels, and the area under the ROC curve."""
        return {
            "loss": keras.losses.BinaryCrossentropy(from_logits=self.logits),
            "metrics": [
                keras.metrics.BinaryAccuracy("accuracy", threshold=0.0 if self.logits else 0.5),
                keras.metrics.AUC(
                    name="auc",
                    multi_label=True,
                    num_labels=int(self.labels),
                    from_logits=self.logits,
                ),
            ],
        }

    @checked(HeadError)
    def smoothed_loss(self, smoothing: Rate) -> Any:
        """Return binary cross-entropy with smoothed labels; see `Head.smoothed_loss`."""
        return keras.losses.BinaryCrossentropy(self.logits, smoothing)

    def _output(self, x: keras.KerasTensor) -> keras.KerasTensor:
        if self.logits:
            return self._last(x, self.labels, "logits")
        return self._last(x, self.labels, "probabilities", "sigmoid")


@checked(HeadError)
@dataclass(frozen=True)
class Regression(DenseHead):
    """A head that gives numbers.

    Args:
        outputs: The number of outputs. Targets have shape (batch, outputs), or (batch,) for one.
        pooling: As of `Classifier`, and so are those below.
        units: Width of the hidden ReLU layer, or widths of several; 0 for none.
        dropout: Share that is dropped while training.
        normalization: "batch", "layer" or None.
        standardize: Pooled features (examples, channels) whose mean and variance are removed.
        targets: Numbers of training, (examples, outputs), whose mean and spread the outputs begin
            with, so that one learning rate suits numbers of any scale. None begins at 0 and 1.
        name: The name of the head; its layers' names begin with it.

    Raises:
        HeadError: No output, or what `Classifier` would refuse.

    Example:
        >>> head = Regression(outputs=2, units=(32, 16))
        >>> [layer.name for layer in head.build((8,)).layers]
        ['head_input', 'head_hidden_0', 'head_hidden_1', 'head_values']
        >>> head.compile_args
        {'loss': 'mean_squared_error', 'metrics': ['mean_absolute_error']}
    """

    outputs: PositiveInt = 1
    _: KW_ONLY
    targets: Any = field(default=None, repr=False, compare=False)

    @property
    def compile_args(self) -> dict[str, Any]:
        """The mean squared error, and the mean absolute one to read."""
        return {"loss": "mean_squared_error", "metrics": ["mean_absolute_error"]}

    def _output(self, x: keras.KerasTensor) -> keras.KerasTensor:
        values = self._last(x, self.outputs, "values")
        if self.targets is None:
            return values
        numbers = np.asarray(self.targets, "float64")
        if numbers.ndim != 2 or len(numbers) < 1 or numbers.shape[1] != self.outputs:
            raise HeadError(
                f"Expected targets as numbers of shape (examples, {self.outputs}). Received: shape "
                f"{numbers.shape}."
            )
        spread = numbers.std(axis=0)
        return layers.Rescaling(
            scale=np.where(spread > 0, spread, 1.0).tolist(),
            offset=numbers.mean(axis=0).tolist(),
            dtype="float32",
            name=f"{self.name}_scaled",
        )(values)
