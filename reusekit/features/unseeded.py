"""Layers that draw random numbers without a generator of their own, found by tracing them."""

from typing import Any
from weakref import WeakKeyDictionary

import keras
import tensorflow as tf

from reusekit.graph import Call, Graph, Tensor, keras_internals
from reusekit.surgery import rates

# Parts of the names of TensorFlow's operations that draw random numbers.
_DRAWING = ("Random", "Multinomial", "TruncatedNormal", "StatefulUniform", "StatefulStandardNormal")

_known: WeakKeyDictionary[Graph, dict[tuple[Call, bool], bool]] = WeakKeyDictionary()


def draws_unseeded(graph: Graph, call: Call, training: bool) -> bool:
    """Return whether a user's layer draws random numbers, though nothing in it holds a generator.

    Such a layer calls `tf.random`, or `keras.random` without a seed. Its call is traced, not run.
    One that cannot be traced is not found out.

    Args:
        graph: A model that was read.
        call: A call of it.
        training: Whether to trace it in training mode.

    Example:
        >>> from reusekit.graph import read
        >>> x = keras.Input((3,))
        >>> noise = keras.layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x)))
        >>> graph = read(keras.Model(x, noise(x)))
        >>> [draws_unseeded(graph, call, training=False) for call in graph.calls]
        [False, True]
    """
    known = _known.setdefault(graph, {})
    if (call, training) not in known:
        known[call, training] = _may_draw(call.operation) and _draws(call, training)
    return known[call, training]


def _may_draw(layer: Any) -> bool:
    if not isinstance(layer, keras.Layer):
        return False
    parts = keras_internals.all_layers(layer)
    # Keras's and KerasHub's layers draw from generators that they hold.
    held = (part for part in parts if keras_internals.has_generator(part))
    return all(map(rates.rates, held)) and not all(map(rates.is_stock, parts))


def _draws(call: Call, training: bool) -> bool:
    def run(*values: tf.Tensor) -> Any:
        fed = dict(zip(call.inputs, values, strict=True))
        args, kwargs = keras.tree.map_structure(
            lambda leaf: fed[leaf] if isinstance(leaf, Tensor) else leaf, (call.args, call.kwargs)
        )
        if keras_internals.takes(call.operation, "training"):
            kwargs = {**kwargs, "training": training}
        return call.operation(*args, **kwargs)

    try:
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in call.inputs]
        with rates.at_zero(keras_internals.all_layers(call.operation)):
            traced = tf.function(run).get_concrete_function(*specs).graph.as_graph_def()
    except Exception:  # whatever a user's code raises
        return False
    nodes = [*traced.node, *(node for each in traced.library.function for node in each.node_def)]
    return any(name in node.op for node in nodes for name in _DRAWING)
