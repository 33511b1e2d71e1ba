"""Random inputs that a model can digest: right dtypes, shapes and ranges."""

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from reusekit.errors import SurgeryError
from reusekit.graph import Graph, Tensor

_SEQUENCES = (8, 4, 2, 1, 16, 64)
_IMAGES = (64, 128, 256, 32, 16, 8)
"""Sizes of open axes, in the order in which they are tried."""

_LOOKUPS = (keras.layers.StringLookup, keras.layers.IntegerLookup)


def random_inputs(graph: Graph, batch: int = 2, seed: int = 0) -> Any:
    """Make inputs for a model, always the same for the same seed.

    Floats are normal, bools even, integers below the size of every embedding that they may reach
    (two where they reach none). What is looked up in a vocabulary is drawn from it; other strings
    are short words. Open spatial axes get a size of 64, open sequences one of 8, or, where the
    model cannot take that, the first of some others that it can.

    Args:
        graph: A model that was read.
        batch: Examples, where the model leaves the batch open.
        seed: Seed of the random numbers.

    Returns:
        Arrays in the model's input structure.

    Raises:
        SurgeryError: The model takes none of the sizes tried for its open axes.

    Example:
        >>> from reusekit.graph import read
        >>> x = keras.Input((3,), dtype="int32", name="ids")
        >>> model = keras.Model(x, keras.layers.Embedding(50, 2, name="e")(x), name="m")
        >>> array = random_inputs(read(model))
        >>> array.shape, array.dtype.name, bool((array < 50).all())
        ((2, 3), 'int32', True)
    """
    draw = _Draw(graph, batch, seed)
    if all(None not in tensor.shape[1:] for tensor in graph.inputs):
        return draw.inputs(0, 0)
    error: Exception | None = None
    for image, sequence in zip(_IMAGES, _SEQUENCES, strict=True):
        inputs = draw.inputs(image, sequence)
        try:
            with keras.StatelessScope():
                graph.model(inputs, training=False)
        except Exception as raised:
            # Whatever the model's layers and the backend say of a size that is none for them.
            error = error or raised
        else:
            return inputs
    reason = str(error).strip().splitlines()
    raise SurgeryError(
        f"Expected x, inputs of {graph.model.name!r} to compare with, since it takes no random "
        f"ones with open axes of {', '.join(map(str, _SEQUENCES))} (images: "
        f"{', '.join(map(str, _IMAGES))}). Keras says: {reason[0] if reason else error!r}"
    ) from error


class _Draw:
    """Draws inputs for one model."""

    def __init__(self, graph: Graph, batch: int, seed: int):
        self._graph, self._batch, self._seed = graph, batch, seed
        self._below = _limits(graph)
        self._words = _vocabularies(graph)

    def inputs(self, image: int, sequence: int) -> Any:
        """Draw inputs with open axes of these sizes."""
        generator = np.random.default_rng(self._seed)

        def draw(tensor: Tensor) -> np.ndarray:
            first, *rest = tensor.shape
            size = image if len(tensor.shape) > 3 else sequence
            shape = (first or self._batch, *(size if axis is None else axis for axis in rest))
            return self._values(tensor, shape, generator)

        return keras.tree.map_structure(draw, self._graph.input_structure)

    def _values(
        self, tensor: Tensor, shape: tuple[int, ...], generator: np.random.Generator
    ) -> np.ndarray:
        words = self._words.get(tensor)
        if words is None and tensor.dtype == "string":
            words = ["one", "two", "three"]
        if words is not None:
            values = np.array(words)[generator.integers(0, len(words), shape)]
            return values if tensor.dtype == "string" else values.astype(_numpy_dtype(tensor.dtype))
        if tensor.dtype == "bool":
            return generator.random(shape) < 0.5
        limit = self._below.get(tensor, math.inf)
        if "int" in tensor.dtype or limit < math.inf:
            values = generator.integers(0, 2 if limit == math.inf else int(limit), shape)
            return values.astype(_numpy_dtype(tensor.dtype))
        return generator.standard_normal(shape).astype(_numpy_dtype(tensor.dtype))


def _numpy_dtype(dtype: str) -> str:
    # numpy has no bfloat16 of its own; the model converts what it is fed.
    return "float32" if dtype.startswith(("bfloat", "float8")) else dtype


def _vocabularies(graph: Graph) -> dict[Tensor, list]:
    """Map each free tensor to the content of the first vocabulary it may be looked up in."""
    found: dict[Tensor, list] = {}
    for call in reversed(graph.calls):
        words: Iterable | None = next((found[t] for t in call.outputs if t in found), None)
        if isinstance(call.operation, _LOOKUPS) and not call.operation.invert:
            words = call.operation.get_vocabulary(include_special_tokens=False) or None
        elif call.variables:
            continue
        if words is not None:
            found.update((tensor, list(words)) for tensor in call.inputs)
    return found


def _limits(graph: Graph) -> dict[Tensor, float]:
    """Map each free tensor to the size of its smallest possible embedding."""
    limits: dict[Tensor, float] = {}
    for call in reversed(graph.calls):
        limit = min((limits[t] for t in call.outputs if t in limits), default=math.inf)
        if isinstance(call.operation, keras.layers.Embedding):
            limit = call.operation.input_dim
        elif isinstance(call.operation, _LOOKUPS):
            limit = call.operation.vocabulary_size() if call.operation.invert else math.inf
        elif isinstance(call.operation, keras.layers.CategoryEncoding):
            limit = call.operation.num_tokens
        elif call.variables:
            continue
        for tensor in call.inputs:
            if limit < limits.get(tensor, math.inf):
                limits[tensor] = limit
    return limits
