"""Folding of a head's learned mean and variance into its first dense layer."""

import keras
import numpy as np

from reusekit.graph import Call, Graph, read
from reusekit.surgery import Remove, edit


def fold_standardization(model: keras.Model) -> keras.Model:
    """Fold each `Normalization` into the dense layers right behind it.

    A dense layer then computes from the features what the two computed, equal up to rounding
    (about 6e-8 of a probability), and the model needs no layer that an export may not know. A
    `Normalization` before a Dropout, another layer, or a dense layer in half precision stays.

    Args:
        model: A trained model; its dense layers are changed in place.

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
    pairs = [(call, behind) for call in graph.calls if (behind := _dense_behind(graph, call))]
    if not pairs:
        return model
    folded = edit(model, *(Remove(call.address) for call, _ in pairs)).model
    for call, behind in pairs:
        for dense in behind:
            _fold(call.operation, dense.operation)
    return folded


def _dense_behind(graph: Graph, call: Call) -> list[Call]:
    """Return the calls of the dense layers that a `Normalization` can be folded into."""
    if type(call.operation) is not keras.layers.Normalization or call.operation.invert:
        return []
    (made,) = call.outputs
    readers = list(graph.readers[made])
    foldable = made not in graph.outputs and all(_is_foldable(graph, call, one) for one in readers)
    return readers if foldable else []


def _is_foldable(graph: Graph, call: Call, dense: Call) -> bool:
    """Return whether a `Normalization` can be folded into a layer that reads it."""
    layer, (made,) = dense.operation, call.outputs
    return (
        type(layer) is keras.layers.Dense
        and layer.use_bias
        and layer.compute_dtype in ("float32", "float64")
        and not layer.lora_enabled
        and layer.quantization_mode is None
        and sum(each.operation is layer for each in graph.calls) == 1
        and sum(each.operation is call.operation for each in graph.calls) == 1
        and made.shape[-1] == np.size(keras.ops.convert_to_numpy(call.operation.mean))
    )


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
