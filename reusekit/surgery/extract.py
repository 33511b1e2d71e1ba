"""Reading inner tensors of a model out as its outputs."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from reusekit.arguments import checked
from reusekit.errors import AddressError, SurgeryError, nearest
from reusekit.graph import Call, Graph, Tensor, ancestors, keras_internals, read, resolve_one
from reusekit.graph.addresses import At
from reusekit.graph.padding_mask import AUTO, padding_mask, remember_source
from reusekit.surgery.assembling import assemble, placeholder, singleton
from reusekit.surgery.masking import without_mask
from reusekit.surgery.pooling import masked_pool
from reusekit.surgery.rebuild import Rebuild, plan

_POOLINGS = ("avg", "max", "token")
_POOLS: dict[Any, Any] = {
    ("avg", 3): keras.layers.GlobalAveragePooling1D,
    ("avg", 4): keras.layers.GlobalAveragePooling2D,
    ("avg", 5): keras.layers.GlobalAveragePooling3D,
    ("max", 3): keras.layers.GlobalMaxPooling1D,
    ("max", 4): keras.layers.GlobalMaxPooling2D,
    ("max", 5): keras.layers.GlobalMaxPooling3D,
}


@checked(SurgeryError)
def extract(
    model: keras.Model | Graph,
    at: At,
    pooling: str | None = None,
    mask: At = AUTO,
    prune_inputs: bool = False,
) -> keras.Model:
    """Return a model from the same inputs to any inner tensors.

    It shares the model's weights, keeps its input structure, and changes nothing about it.

    Args:
        model: A model with a functional graph, or one that was read already.
        at: An address, a `CutPoint`, a Keras tensor, or a list, tuple or dict of these, nested as
            you like.
        pooling: "avg" or "max" pools each tensor of rank three to five over all axes between batch
            and channels; "token" takes the first position of each sequence, a tensor of rank three.
            All pass over what the mask leaves out. Others, and all with None, come as they are.
        mask: Which positions are passed over: those that the tensor's Keras mask leaves out or,
            where it has none, those that layers before it are told to pass over by an argument
            such as `padding_mask`, if that is one mask of shape (batch, length). None passes over
            nothing; an address or a Keras tensor is where the mask is.
        prune_inputs: Whether to leave out the inputs that none of the tensors depends on. With the
            `frontier` of a split as `at`, this is its bottom without the inputs it does not need.

    Returns:
        A plain functional model, whatever the model's class, whose output has the structure of
        `at`.

    Raises:
        AddressError: A leaf of `at` or `mask` names no tensor of the model, or several, or there is
            none.
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
    graph = read(model, keep_masks=pooling is not None)
    if not keras.tree.flatten(at):
        raise AddressError(f"Expected at least one address, received {at!r}.")
    wanted = keras.tree.map_structure(lambda leaf: resolve_one(graph, leaf), at)
    return taps(graph, wanted, pooling, {}, mask, prune_inputs=prune_inputs)


def taps(
    graph: Graph,
    wanted: Any,
    pooling: str | None,
    instead: Mapping[Any, keras.Layer],
    mask: Any = AUTO,
    fed: Sequence[Tensor] | None = None,
    prune_inputs: bool = False,
) -> keras.Model:
    """Extract as `extract` does, with other layers in the place of some calls'.

    Args:
        graph: A model that was read.
        wanted: Tensors of it, in the structure of the output.
        pooling: As for `extract`.
        instead: From a call to what is called on its arguments instead, giving the same shapes.
            Where there is any, nested models come out inlined.
        mask: As for `extract`.
        fed: What the model takes instead of the model's inputs: tensors that all is computed from.
        prune_inputs: As for `extract`.
    """
    tensors = list(dict.fromkeys(keras.tree.flatten(wanted)))
    masks = {tensor: _mask(graph, tensor, pooling, mask) for tensor in tensors}
    needed = list(dict.fromkeys([*tensors, *(m for m in masks.values() if m is not None)]))
    given = graph.inputs if fed is None else fed
    calls = ancestors(graph, needed)
    if fed is not None:
        calls = _between(calls, fed, needed)
    steps = plan(graph, calls, given, needed, inline=bool(instead))
    steps = [replace(s, operation=instead[s]) if s in instead else s for s in steps]
    if fed is None:
        engine = Rebuild({tensor: tensor.source for tensor in graph.inputs})
        structure = graph.input_structure
    else:
        engine = Rebuild()
        engine.claim(steps)  # first, since a placeholder gives way to a layer of its name
        engine.values.update((tensor, placeholder(tensor, engine.names)) for tensor in fed)
        structure = singleton(list(fed))
    engine.run(graph, steps)
    unmasked = pooling is not None and mask is None
    pooled = {
        tensor: _pooled(
            tensor,
            engine,
            pooling,
            None if carried is None else engine.values[carried],
            unmasked and tensor in graph.known_masks,
        )
        for tensor, carried in masks.items()
    }
    if prune_inputs:
        structure = _pruned(structure, {tensor for call in calls for tensor in call.outputs})
    inputs = keras.tree.map_structure(engine.values.get, structure)
    outputs = keras.tree.map_structure(pooled.get, wanted)
    part = assemble(inputs, outputs, f"{graph.model.name}_features", len(calls))
    remember_source(part, graph)
    return part


def _pruned(structure: Any, needed: set[Tensor]) -> Any:
    """Return the needed inputs in their structure; one that is left comes alone."""
    if isinstance(structure, Tensor):
        return structure if structure in needed else None
    if isinstance(structure, dict):
        parts = {key: _pruned(part, needed) for key, part in structure.items()}
        return {key: part for key, part in parts.items() if part is not None} or None
    kept = [part for each in structure if (part := _pruned(each, needed)) is not None]
    if len(kept) == len(structure):
        return kept
    return singleton(kept) if kept else None


def without_masks(graph: Graph) -> keras.Model:
    """Return a model whose outputs carry no mask when it runs."""
    engine = Rebuild({tensor: tensor.source for tensor in graph.inputs})
    engine.run(graph, plan(graph, ancestors(graph, graph.outputs), graph.inputs, graph.outputs))
    outputs = keras.tree.map_structure(
        lambda tensor: without_mask(engine.values[tensor], engine.names, tensor.address),
        graph.output_structure,
    )
    inputs = keras.tree.map_structure(engine.values.get, graph.input_structure)
    return assemble(inputs, outputs, graph.model.name, len(graph.calls))


def _between(
    calls: Sequence[Call], given: Sequence[Tensor], wanted: Sequence[Tensor]
) -> list[Call]:
    """Return the calls between given tensors and wanted ones."""
    needed, kept = set(wanted), []
    for call in reversed(calls):
        made = [tensor for tensor in call.outputs if tensor in needed and tensor not in given]
        if made:
            kept.append(call)
            needed.update(call.reads)
    return kept[::-1]


def _mask(graph: Graph, tensor: Tensor, pooling: str | None, mask: Any) -> Tensor | None:
    if pooling is None:
        return None
    found, doubt = padding_mask(graph, tensor, mask)
    if doubt:
        warnings.warn(doubt, stacklevel=4)
    return found


def _pooled(
    tensor: Tensor,
    engine: Rebuild,
    pooling: str | None,
    mask: keras.KerasTensor | None,
    mask_taken_off: bool,
) -> keras.KerasTensor:
    value = engine.values[tensor]
    prefix = f"{tensor.address}_{pooling}"
    token = pooling == "token" and len(tensor.shape) == 3
    layer: Any = _POOLS.get((pooling, len(tensor.shape)))
    if layer is None and not token:
        return value
    if mask is not None:
        names = engine.names

        def name(what: str) -> str:
            return names.unique(f"{prefix}_{what}" if what else prefix)

        return masked_pool(value, mask, pooling, name)  # type: ignore[arg-type]
    if token:
        return keras_internals.take(value, 0, axis=1, name=engine.names.unique(prefix))
    if mask_taken_off:
        value = without_mask(value, engine.names, prefix)
    # As the docstring has it, whatever the user's keras.json does.
    pooled = layer(
        data_format="channels_last", name=engine.names.unique(prefix), dtype=tensor.dtype
    )
    return pooled(value)
