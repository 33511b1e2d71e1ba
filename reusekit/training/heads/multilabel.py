"""Any number of labels at once."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import keras
from pydantic import PositiveInt

from reusekit.arguments import checked
from reusekit.errors import HeadError
from reusekit.training.heads.dense_head import DenseHead


@checked(HeadError)
@dataclass(frozen=True)
class Multilabel(DenseHead):
    """A head that says for each label whether it applies, each by itself.

    Args:
        labels: How many labels there are. Targets are 0 or 1, shape (batch, labels).
        logits: Whether to give logits rather than probabilities; loss and metrics then take them.
        pooling: As of `classifier`, and so are those below.
        units: Width of the hidden ReLU layer, or widths of several; 0 for none.
        dropout: Share that is dropped while training.
        normalization: "batch", "layer" or None.
        standardize: Pooled features (examples, channels) whose mean and variance are removed.
        name: The name of the head; its layers' names begin with it.

    Raises:
        HeadError: No label, or what `classifier` would refuse.

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

    def _output(self, x: keras.KerasTensor) -> keras.KerasTensor:
        activation, what = (None, "logits") if self.logits else ("sigmoid", "probabilities")
        return keras.layers.Dense(
            int(self.labels), activation=activation, dtype="float32", name=f"{self.name}_{what}"
        )(x)
