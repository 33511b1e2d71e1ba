"""The numbers of a model's parameters, each counted once."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import keras
import numpy as np

from reusekit.arguments import checked
from reusekit.errors import TieError
from reusekit.graph.keras_internals import state_variables
from reusekit.sharing.ties import tied_weights


@dataclass(frozen=True)
class ParameterCounts:
    """A model's parameters; `total` is `trainable` and `frozen` and `state` together.

    Attributes:
        total: All of them, as `model.count_params()` has it.
        trainable: Those that training changes now.
        frozen: Those that training could change, and does not, since it is set not to.
        state: Those that are never trained: moving statistics and the like.
        tied: Those of the total that are in weights with more than one owner (`rk.tied_weights`).
    """

    total: int
    trainable: int
    frozen: int
    state: int
    tied: int

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)

    def _repr_html_(self) -> str:
        import pandas

        return pandas.DataFrame([asdict(self)]).to_html(index=False)


@checked(TieError)
def count_params(model: keras.Model) -> ParameterCounts:
    """Count a model's parameters, a shared variable once.

    Args:
        model: A built model.

    Returns:
        The counts, in scalars. Seeds of random layers are not weights, for Keras either.

    Raises:
        TieError: That is no model, or it has no weights yet.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense"),
        ...                           keras.layers.BatchNormalization()])
        >>> model.get_layer("dense").trainable = False
        >>> count_params(model)
        ParameterCounts(total=27, trainable=6, frozen=15, state=6, tied=0)
    """
    ties = tied_weights(model)
    sizes = {id(v): int(keras.ops.size(v)) for v in model.weights}
    trainable = {id(v) for v in model.trainable_variables} & set(sizes)
    state = {id(v) for v in state_variables(model)} & set(sizes) - trainable
    counted = {
        "total": sum(sizes.values()),
        "trainable": sum(sizes[key] for key in trainable),
        "state": sum(sizes[key] for key in state),
        "tied": sum(tie.parameters for tie in ties),
    }
    frozen = counted["total"] - counted["trainable"] - counted["state"]
    return ParameterCounts(frozen=frozen, **counted)


def bytes_of(weights: Iterable[keras.Variable]) -> int:
    """Return the bytes of weights in memory, each counted once.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> bytes_of(model.weights)
        60
    """
    each = {id(one): math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in weights}
    return sum(each.values())
