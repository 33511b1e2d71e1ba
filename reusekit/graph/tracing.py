"""The inside of a composite layer: one whose `call` is made of calls of other layers.

To a model such a layer is one opaque call. Its `call` is Python code; run on symbolic tensors, it
shows the calls that it is made of.
"""

from collections.abc import Mapping
from typing import Any

import keras

from reusekit.graph import keras_internals as internals
from reusekit.graph.graph import Call, Graph, Tensor
from reusekit.graph.reader import read


def read_inside(call: Call, shapes: Mapping[Tensor, tuple[int, ...]]) -> Graph | None:
    """Return the calls that one call of a layer is made of, for one example of given shapes.

    Nothing is left behind: no record of a call, no state that moved on.

    Args:
        call: A call of a layer.
        shapes: From each tensor to the shape of one example, without the batch dimension.

    Returns:
        The graph of the layer's own `call`, or None where it does not run on symbolic tensors.

    Example:
        >>> class Twice(keras.layers.Layer):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.dense = keras.layers.Dense(4, name="dense")
        ...     def call(self, x):
        ...         return self.dense(self.dense(x))
        >>> x = keras.Input((4,), name="x")
        >>> graph = read(keras.Model(x, Twice()(x)))
        >>> shapes = {tensor: tensor.shape[1:] for tensor in graph.tensors}
        >>> [call.address for call in read_inside(graph.calls[1], shapes).calls]
        ['input', 'dense@0', 'dense@1']
    """
    layer = call.operation
    if not isinstance(layer, keras.Layer):
        return None
    with internals.forgetting(internals.all_layers(layer)):
        try:
            fed = {
                tensor: keras.Input(
                    # A tensor without axes has no batch dimension either.
                    batch_shape=(1, *shapes[tensor]) if tensor.shape else (),
                    dtype=fed_dtype(layer, tensor),
                    name="input" if number == 0 else f"input_{number}",
                )
                for number, tensor in enumerate(call.inputs)
            }
            outputs = trace(layer, call.args, call.kwargs, fed)
            return read(keras.Model(list(fed.values()), outputs, name=layer.name))
        except Exception:
            # Code that was not written for symbolic tensors may raise anything.
            return None


def trace(
    layer: keras.Layer, args: tuple, kwargs: dict[str, Any], fed: Mapping[Tensor, Any]
) -> Any:
    """Return the outputs of a layer's `call` on symbolic tensors, recording inner calls.

    Whether the model is being trained is left open, so that each inner layer is told when it runs.
    No state moves on. Operations between the layers have the same names each time.

    Args:
        layer: A built layer.
        args: Positional arguments as a graph has them.
        kwargs: Keyword arguments, likewise.
        fed: The symbolic tensor for each tensor among them.
    """

    def put(leaf: Any) -> Any:
        return fed[leaf] if isinstance(leaf, Tensor) else leaf

    args, kwargs = keras.tree.map_structure(put, (args, kwargs))
    if internals.takes(layer, "training"):
        kwargs = {**kwargs, "training": None}
    taken = [each.name for each in (*internals.all_layers(layer), *fed.values())]
    with internals.naming_afresh(taken), keras.StatelessScope():
        return layer.call(*args, **kwargs)


def fed_dtype(layer: keras.Layer, tensor: Tensor) -> str:
    """Return the dtype of a tensor inside a layer's `call`, after Keras's conversion."""
    probe = keras.KerasTensor(tensor.shape, tensor.dtype)
    return layer.dtype_policy.convert_input(probe, layer.autocast, layer.input_dtype).dtype
