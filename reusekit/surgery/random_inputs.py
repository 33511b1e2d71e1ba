"""Random inputs that a model can digest: right dtypes, shapes and ranges."""

import math
from typing import Any

import keras
import numpy as np

from reusekit.graph import Graph, Tensor

_OPEN_IMAGE_SIZE = 64
_OPEN_SEQUENCE_LENGTH = 8


def random_inputs(graph: Graph, batch: int = 2, seed: int = 0) -> Any:
    """Makes inputs for a model, always the same for the same seed.

    Floats are normal, bools even, integers below the size of every embedding that they may reach
    (two where they reach none). Open spatial axes get a size of 64, open sequences one of 8.

    Args:
        graph: A model that was read.
        batch: Examples, where the model leaves the batch open.
        seed: Seed of the random numbers.

    Returns:
        Arrays in the model's input structure.

    Raises:
        TypeError: An input's dtype is a string: no text can be made up for it.

    Example:
        >>> from reusekit.graph import read
        >>> x = keras.Input((3,), dtype="int32", name="ids")
        >>> model = keras.Model(x, keras.layers.Embedding(50, 2, name="e")(x), name="m")
        >>> array = random_inputs(read(model))
        >>> array.shape, array.dtype.name, bool((array < 50).all())
        ((2, 3), 'int32', True)
    """
    generator = np.random.default_rng(seed)
    below = _limits(graph)

    def draw(tensor: Tensor) -> np.ndarray:
        shape = _shape(tensor, batch)
        if tensor.dtype == "string":
            raise TypeError(
                f"Expected numeric inputs to draw at random, but {tensor.address!r} takes strings: "
                "pass x."
            )
        if tensor.dtype == "bool":
            return generator.random(shape) < 0.5
        limit = below.get(tensor, math.inf)
        if "int" in tensor.dtype or limit < math.inf:
            values = generator.integers(0, 2 if limit == math.inf else limit, shape)
            return values.astype(_numpy_dtype(tensor.dtype))
        return generator.standard_normal(shape).astype(_numpy_dtype(tensor.dtype))

    return keras.tree.map_structure(draw, graph.input_structure)


def _numpy_dtype(dtype: str) -> str:
    # numpy has no bfloat16 of its own; the model converts what it is fed.
    return "float32" if dtype.startswith(("bfloat", "float8")) else dtype


def _shape(tensor: Tensor, batch: int) -> tuple[int, ...]:
    open_size = _OPEN_IMAGE_SIZE if len(tensor.shape) > 3 else _OPEN_SEQUENCE_LENGTH
    first, *rest = tensor.shape
    return (first or batch, *(open_size if size is None else size for size in rest))


def _limits(graph: Graph) -> dict[Tensor, float]:
    """For each free tensor, the size of the smallest embedding that it may be looked up in."""
    limits: dict[Tensor, float] = {}
    for call in reversed(graph.calls):
        limit = min((limits[t] for t in call.outputs if t in limits), default=math.inf)
        if isinstance(call.operation, keras.layers.Embedding):
            limit = call.operation.input_dim
        elif call.variables:
            continue
        for tensor in call.inputs:
            if limit < limits.get(tensor, math.inf):
                limits[tensor] = limit
    return limits
