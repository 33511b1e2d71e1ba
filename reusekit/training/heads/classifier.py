"""One of several classes."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import keras

from reusekit.arguments import checked
from reusekit.errors import HeadError
from reusekit.training.heads.dense_head import DenseHead
from reusekit.training.heads.head import Classes


@checked(HeadError)
@dataclass(frozen=True)
class Classifier(DenseHead):
    """A classification head: pooling where needed, hidden layers if wanted, probabilities.

    Args:
        classes: How many classes to tell apart. Labels are their numbers, from 0.
        logits: Whether to give logits rather than probabilities; the loss then takes them.
        pooling: As of any dense head: "average", "max", "concatenated", "attention", "flatten" or
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

    def _output(self, x: keras.KerasTensor) -> keras.KerasTensor:
        activation, what = (None, "logits") if self.logits else ("softmax", "probabilities")
        return keras.layers.Dense(
            int(self.classes), activation=activation, dtype="float32", name=f"{self.name}_{what}"
        )(x)
