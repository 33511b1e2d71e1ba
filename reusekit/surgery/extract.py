"""Reading inner tensors of a model out as its outputs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras

from reusekit.arguments import checked
from reusekit.errors import SurgeryError, nearest
from reusekit.graph import (
    AddressError,
    Call,
    Graph,
    Tensor,
    ancestors,
    keras_internals,
    read,
    resolve_one,
)
from reusekit.graph.addresses import At
from reusekit.surgery.assembling import assemble, singleton
from reusekit.surgery.rebuild import Rebuild, plan

_POOLINGS = ("avg", "max", "token")
_POOLS = {
    ("avg", 3): keras.layers.GlobalAveragePooling1D,
    ("avg", 4): keras.layers.GlobalAveragePooling2D,
    ("avg", 5): keras.layers.GlobalAveragePooling3D,
    ("max", 3): keras.layers.GlobalMaxPooling1D,
    ("max", 4): keras.layers.GlobalMaxPooling2D,
    ("max", 5): keras.layers.GlobalMaxPooling3D,
}


@checked(SurgeryError)
def extract(
    model: keras.Model | Graph, at: At, pooling: str | None = None, prune_inputs: bool = False
) -> keras.Model:
    """A model from the same inputs to any inner tensors.

    It shares the model's weights, keeps its input structure, and changes nothing about it.

    Args:
        model: A model with a functional graph, or one that was read already.
        at: An address, a `CutPoint`, a Keras tensor, or a list, tuple or dict of these, nested as
            you like.
        pooling: "avg" or "max" pools each tensor of rank three to five over all axes between batch
            and channels ("avg" passes over what a Keras mask leaves out); "token" takes the first
            position of each sequence, a tensor of rank three. Others, and all with None, come as
            they are.
        prune_inputs: Whether to leave out the inputs that none of the tensors depends on. With the
            `frontier` of a split as `at`, this is its bottom without the inputs it does not need.

    Returns:
        A plain functional model, whatever the model's class, whose output has the structure of
        `at`.

    Raises:
        AddressError: A leaf of `at` names no tensor of the model, or several, or there is none.
        SurgeryError: `pooling` is none of the above.
        NoGraphError: The model has no functional graph.

    Example:
        >>> x = keras.Input((8, 8, 3), name="x")
        >>> y = keras.layers.Conv2D(4, 3, name="conv")(x)
        >>> model = keras.Model(x, keras.layers.Flatten(name="flat")(y), name="m")
        >>> taps = extract(model, {"early": "conv", "late": "flat"}, pooling="avg")
        >>> {key: value.shape for key, value in taps.output.items()}
        {'early': (None, 4), 'late': (None, 144)}
    """
    if pooling not in (None, *_POOLINGS):
        raise SurgeryError(
            f"Expected pooling 'avg', 'max', 'token' or None, received {pooling!r}. "
            f"{nearest(str(pooling), _POOLINGS)}"
        )
    graph = read(model)
    if not keras.tree.flatten(at):
        raise AddressError(f"Expected at least one address, received {at!r}.")
    wanted = keras.tree.map_structure(lambda leaf: resolve_one(graph, leaf), at)
    return taps(graph, wanted, pooling, {}, prune_inputs)


def taps(
    graph: Graph,
    wanted: Any,
    pooling: str | None,
    instead: Mapping[Call, keras.Layer],
    prune_inputs: bool = False,
) -> keras.Model:
    """As `extract`, and with other layers in the place of those of some calls.

    Args:
        graph: A model that was read.
        wanted: Tensors of it, in the structure of the output.
        pooling: As for `extract`.
        instead: From a call to what is called on its arguments instead, giving the same shapes.
            Where there is any, nested models come out inlined.
        prune_inputs: As for `extract`.
    """
    tensors = list(dict.fromkeys(keras.tree.flatten(wanted)))
    calls = ancestors(graph, tensors)
    steps = plan(graph, calls, graph.inputs, tensors, inline=bool(instead))
    steps = [replace(s, operation=instead[s]) if s in instead else s for s in steps]
    engine = Rebuild({tensor: tensor.source for tensor in graph.inputs})
    engine.run(graph, steps)
    pooled = {tensor: _pooled(tensor, engine, pooling) for tensor in tensors}
    structure = graph.input_structure
    if prune_inputs:
        structure = _pruned(structure, {tensor for call in calls for tensor in call.outputs})
    inputs = keras.tree.map_structure(engine.values.get, structure)
    outputs = keras.tree.map_structure(pooled.get, wanted)
    return assemble(inputs, outputs, f"{graph.model.name}_features", len(calls))


def _pruned(structure: Any, needed: set[Tensor]) -> Any:
    """The inputs that are needed, in their structure; one that is left in a list comes alone."""
    if isinstance(structure, Tensor):
        return structure if structure in needed else None
    if isinstance(structure, dict):
        parts = {key: _pruned(part, needed) for key, part in structure.items()}
        return {key: part for key, part in parts.items() if part is not None} or None
    kept = [part for each in structure if (part := _pruned(each, needed)) is not None]
    if len(kept) == len(structure):
        return kept
    return singleton(kept) if kept else None


def _pooled(tensor: Tensor, engine: Rebuild, pooling: str | None) -> keras.KerasTensor:
    value = engine.values[tensor]
    if pooling == "token" and len(tensor.shape) == 3:
        name = engine.names.unique(f"{tensor.address}_{pooling}")
        return keras_internals.take(value, 0, axis=1, name=name)
    layer = _POOLS.get((pooling, len(tensor.shape)))
    if layer is None:
        return value
    return layer(name=engine.names.unique(f"{tensor.address}_{pooling}"), dtype=tensor.dtype)(value)
