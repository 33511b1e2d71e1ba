"""The roles of a model's layers: attention, dense layers between, convolutions, normalisation."""

from collections.abc import Iterable
from typing import Any, Literal

import keras
import numpy as np

from reusekit.errors import TrainingError
from reusekit.graph import Call, Graph, keras_internals
from reusekit.graph.tracing import read_inside
from reusekit.surgery import rates
from reusekit.training.freezing import layers_of, parts_of

Role = Literal["attention", "mlp", "convolution", "embedding"]

NORMS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)
_OPEN_SIZE = 8  # of an axis whose length is left open
_SCALE_INVARIANT = 1e-2


def roles_of(graph: Graph, calls: Iterable[Call], told_apart: bool = True) -> dict[int, Role]:
    """Return the role of each layer that LoRA can be added to, by its id.

    Args:
        graph: The model that was read.
        calls: The calls whose layers are asked for.
        told_apart: Whether attention is looked for, which takes tracing; else it is an "mlp".

    Raises:
        TrainingError: A layer that may hold attention cannot be traced.
    """
    calls = [call for call in calls if isinstance(call.operation, keras.layers.Layer)]
    attending = set(map(id, _feeding(graph))) if told_apart else set()
    for call in {id(call.operation): call for call in calls}.values() if told_apart else ():
        for part in _attentions(call):
            attending |= set(map(id, keras_internals.all_layers(part)))
    found: dict[int, Role] = {}
    for part in filter(takes_lora, parts_of(layers_of(calls))):
        if isinstance(part, keras.layers.Embedding):
            found[id(part)] = "embedding"
        elif not isinstance(part, keras.layers.Dense | keras.layers.EinsumDense):
            found[id(part)] = "convolution"
        else:
            found[id(part)] = "attention" if id(part) in attending else "mlp"
    return found


def _attentions(call: Call) -> list[keras.Layer]:
    """Return the attention layers in the layer that is called, perhaps itself."""
    layer = call.operation
    parts = keras_internals.all_layers(layer)
    if isinstance(layer, keras_internals.ATTENTION):
        return [layer]
    if sum(map(takes_lora, parts[1:])) < 2:  # no query and key
        return []
    shapes = {tensor: [size or _OPEN_SIZE for size in tensor.shape[1:]] for tensor in call.inputs}
    inside = read_inside(call, {tensor: tuple(shape) for tensor, shape in shapes.items()})
    if inside is None:
        raise TrainingError(
            f"Expected layers that Keras can trace, to tell attention from others. Received: "
            f"{layer.name!r} of class {type(layer).__name__}. Choose targets='all'."
        )
    if _feeding(inside):
        return [layer]
    inner = (one for one in inside.calls if isinstance(one.operation, keras.layers.Layer))
    return [part for one in inner for part in _attentions(one)]


def _feeding(graph: Graph) -> list[keras.Layer]:
    """Return the layers whose outputs a graph attends with: queries, keys and values."""
    found: list[Call] = []
    for call in graph.calls:
        if isinstance(call.operation, keras_internals.WEIGHING):
            found += _makers(graph, call)
        if isinstance(call.operation, keras_internals.SOFTMAX):
            scored = _makers(graph, call)
            if len({id(maker.operation) for maker in scored}) > 1:  # else of a classifier
                found += [*scored, *_makers(graph, _reader_of_several(graph, call))]
    return layers_of(found)


def _reader_of_several(graph: Graph, call: Call) -> Call:
    """Return the first call behind one that reads something else, too."""
    while len(call.outputs) == 1 and len(graph.readers[call.outputs[0]]) == 1:
        (call,) = graph.readers[call.outputs[0]]
        if len(call.inputs) > 1 or call.variables:
            break
    return call


def _makers(graph: Graph, call: Call) -> list[Call]:
    """Return the calls with weights that a call's inputs come from, over others without any."""
    found: list[Call] = []
    waiting, seen = [graph.maker[tensor] for tensor in call.inputs], set()
    while waiting:
        maker = waiting.pop()
        if maker not in seen:
            seen.add(maker)
            if maker.variables:
                found.append(maker)
            else:
                waiting.extend(graph.maker[tensor] for tensor in maker.inputs)
    return found


def normalises(layer: Any) -> bool:
    """Return whether a layer is a normalisation: of Keras, or one that acts as one.

    KerasHub's models and users have classes of their own. Such a layer has scales of channels and
    gives the same for the double of its input.
    """
    if isinstance(layer, NORMS):
        return True
    sizes = {tuple(variable.shape) for variable in keras_internals.trainable_kind(layer)}
    if len(sizes) != 1 or keras_internals.direct_layers(layer) or len(shape := sizes.pop()) != 1:
        return False
    x = np.random.default_rng(0).standard_normal((2, 3, *shape)).astype("float32")
    try:
        with keras.StatelessScope():
            one, other = (
                np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(layer(each), "float32")))
                for each in (x, 2 * x)
            )
    except Exception:  # whatever a layer raises that takes something else
        return False
    alike = (
        one.shape == x.shape and np.abs(one - other).max() <= _SCALE_INVARIANT * np.abs(one).max()
    )
    return bool(alike and shape[0] > 1 and np.abs(one).max() > 0)


def takes_lora(layer: keras.Layer) -> bool:
    """Return whether a layer uses its kernel as Keras does, LoRA included."""
    kind = next((kind for kind in keras_internals.LORA_LAYERS if isinstance(layer, kind)), None)
    own = kind is not None and type(layer).call is not kind.call and not rates.is_stock(layer)
    return kind is not None and layer.built and not own
