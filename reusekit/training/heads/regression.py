"""Numbers."""

from dataclasses import dataclass
from typing import Any

import keras
from pydantic import PositiveInt

from reusekit.arguments import checked
from reusekit.errors import HeadError
from reusekit.training.heads.dense_head import DenseHead


@checked(HeadError)
@dataclass(frozen=True)
class Regression(DenseHead):
    """A head that gives numbers.

    Args:
        outputs: How many numbers. Targets have shape (batch, outputs), or (batch,) for one.
        pooling: As of `classifier`, and so are those below.
        units: Width of the hidden ReLU layer, or widths of several; 0 for none.
        dropout: Share that is dropped while training.
        normalization: "batch", "layer" or None.
        standardize: Pooled features (examples, channels) whose mean and variance are removed.
        name: The name of the head; its layers' names begin with it.

    Raises:
        HeadError: No output, or what `classifier` would refuse.

    Example:
        >>> head = Regression(outputs=2, units=(32, 16))
        >>> [layer.name for layer in head.build((8,)).layers]
        ['head_input', 'head_hidden_0', 'head_hidden_1', 'head_values']
        >>> head.compile_args
        {'loss': 'mean_squared_error', 'metrics': ['mean_absolute_error']}
    """

    outputs: PositiveInt = 1

    @property
    def compile_args(self) -> dict[str, Any]:
        """The mean squared error, and the mean absolute one to read."""
        return {"loss": "mean_squared_error", "metrics": ["mean_absolute_error"]}

    def _output(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return keras.layers.Dense(int(self.outputs), dtype="float32", name=f"{self.name}_values")(x)
