"""Folding of a head's learned mean and variance into its first dense layer."""

import keras
import numpy as np

from reusekit.graph import Call, Graph, read
from reusekit.surgery import Remove, edit


def fold_standardization(model: keras.Model) -> keras.Model:
    """Fold each `Normalization` into the dense layer right behind it.

    The dense layer then computes from the features what the two computed, equal up to rounding
    (about 6e-8 of a probability), and the model needs no layer that an export may not know. A
    `Normalization` before a Dropout, another layer, or a dense layer in half precision stays.

    Args:
        model: A trained model; its dense layer is changed in place.

    Returns:
        A model that shares all other layers, not compiled; the model itself where nothing is to
        be folded.

    Example:
        >>> x = keras.Input((2,), name="x")
        >>> scale = keras.layers.Normalization(mean=[1.0, 2.0], variance=[4.0, 9.0], name="scale")
        >>> model = keras.Model(x, keras.layers.Dense(1, name="head")(scale(x)))
        >>> features = np.array([[5.0, 8.0]])
        >>> before = model.predict(features, verbose=0)
        >>> folded = fold_standardization(model)
        >>> [layer.name for layer in folded.layers]
        ['x', 'head']
        >>> bool(np.allclose(folded.predict(features, verbose=0), before))
        True
    """
    graph = read(model)
    pairs = [(call, dense) for call in graph.calls if (dense := _dense_behind(graph, call))]
    if not pairs:
        return model
    folded = edit(model, *(Remove(call.address) for call, _ in pairs)).model
    for call, dense in pairs:
        _fold(call.operation, dense.operation)
    return folded


def _dense_behind(graph: Graph, call: Call) -> Call | None:
    """Return the call of the dense layer that a `Normalization` can be folded into."""
    if type(call.operation) is not keras.layers.Normalization or call.operation.invert:
        return None
    (made,) = call.outputs
    readers = graph.readers[made]
    if len(readers) != 1 or made in graph.outputs:
        return None
    (dense,) = readers
    layer = dense.operation
    foldable = (
        type(layer) is keras.layers.Dense
        and layer.use_bias
        and layer.compute_dtype in ("float32", "float64")
        and not layer.lora_enabled
        and layer.quantization_mode is None
        and sum(each.operation is layer for each in graph.calls) == 1
        and sum(each.operation is call.operation for each in graph.calls) == 1
        and made.shape[-1] == np.size(keras.ops.convert_to_numpy(call.operation.mean))
    )
    return dense if foldable else None


def _fold(scale: keras.layers.Normalization, dense: keras.layers.Dense) -> None:
    mean, variance = (
        keras.ops.convert_to_numpy(part).astype("float64").ravel()
        for part in (scale.mean, scale.variance)
    )
    kernel, bias = (
        keras.ops.convert_to_numpy(part).astype("float64") for part in (dense.kernel, dense.bias)
    )
    kernel = kernel / np.maximum(np.sqrt(variance), keras.backend.epsilon())[:, None]
    dense.kernel.assign(kernel)
    dense.bias.assign(bias - mean @ kernel)
