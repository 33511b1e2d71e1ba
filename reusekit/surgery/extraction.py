"""Inner tensors of a model as the outputs of another, pooled if wanted."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import ml_dtypes
from keras import ops

from reusekit.arguments import checked
from reusekit.errors import AddressError, SurgeryError, nearest
from reusekit.graph import Graph, Tensor, ancestors, keras_internals, read, resolve_one
from reusekit.graph.addresses import At
from reusekit.graph.padding_mask import AUTO, padding_mask, remember_whole
from reusekit.surgery.engine import Rebuild, assemble, singleton, without_mask
from reusekit.surgery.steps import steps_between

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
        mask: The positions to pass over: those that the tensor's Keras mask leaves out or, where it
            has none, those that layers before it are told to pass over by an argument such as
            `padding_mask`, if that is one mask of shape (batch, length). None passes over nothing;
            an address or a Keras tensor is where the mask is.
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
            f"Expected pooling 'avg', 'max', 'token' or None. Received: {pooling!r}. "
            f"{nearest(str(pooling), _POOLINGS)}"
        )
    graph = read(model, keep_masks=pooling is not None)
    if not keras.tree.flatten(at):
        raise AddressError(f"Expected at least one address. Received: {at!r}.")
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
        fed: The tensors that it takes instead of the model's inputs, from which all is computed.
        prune_inputs: As for `extract`.
    """
    tensors = list(dict.fromkeys(keras.tree.flatten(wanted)))
    masks = {tensor: _mask(graph, tensor, pooling, mask) for tensor in tensors}
    needed = list(dict.fromkeys([*tensors, *(m for m in masks.values() if m is not None)]))
    given = graph.inputs if fed is None else fed
    calls = ancestors(graph, needed, given=fed or ())
    steps = steps_between(graph, calls, given, needed, inline=bool(instead))
    steps = [replace(s, operation=instead[s]) if s in instead else s for s in steps]
    if fed is None:
        engine = Rebuild({tensor: tensor.keras_tensor for tensor in graph.inputs})
        structure = graph.input_structure
    else:
        engine = Rebuild()
        engine.claim(steps)  # first, since a placeholder gives way to a layer of its name
        engine.add_inputs(fed)
        structure = singleton(list(fed))
    placed = dict(engine.values)
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
    inputs = keras.tree.map_structure(placed.get, structure)
    outputs = keras.tree.map_structure(pooled.get, wanted)
    part = assemble(inputs, outputs, f"{graph.model.name}_features", len(calls))
    remember_whole(part, graph)
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
    engine = Rebuild({tensor: tensor.keras_tensor for tensor in graph.inputs})
    engine.run(
        graph, steps_between(graph, ancestors(graph, graph.outputs), graph.inputs, graph.outputs)
    )
    outputs = keras.tree.map_structure(
        lambda tensor: without_mask(engine.values[tensor], engine.names, tensor.address),
        graph.output_structure,
    )
    inputs = keras.tree.map_structure(engine.values.get, graph.input_structure)
    return assemble(inputs, outputs, graph.model.name, len(graph.calls))


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

        return masked_pool(value, mask, pooling, name)  # type: ignore[arg-type]  # pooled, so not None
    if token:
        return keras_internals.take(value, 0, axis=1, name=engine.names.unique(prefix))
    if mask_taken_off:
        value = without_mask(value, engine.names, prefix)
    # As the docstring has it, whatever the user's keras.json does.
    pooled = layer(
        data_format="channels_last", name=engine.names.unique(prefix), dtype=tensor.dtype
    )
    return pooled(value)


# --- pooling ------------------------------------------------------------------------------------


Name = Callable[[str], str]
"""From what an operation does, or nothing for the last one, to its name in the model."""


def masked_pool(
    features: keras.KerasTensor, mask: keras.KerasTensor, pooling: str, name: Name
) -> keras.KerasTensor:
    """Pool the positions that a mask keeps; an example of which it keeps none gives zeros.

    Args:
        features: Shape (batch, length, ..., channels).
        mask: Shape (batch, length), or further axes of the features; 0 and False are passed over.
        pooling: "avg", "max", or "token": the first position that is kept.
        name: Names the operations.

    Returns:
        Shape (batch, channels), in the features' dtype; sums are made in float32 or better.
    """

    def step(what: str, made: keras.KerasTensor) -> keras.KerasTensor:
        return keras_internals.named(made, name(what))

    inner = tuple(range(len(mask.shape), len(features.shape) - 1))
    if inner:
        reduce = ops.max if pooling == "max" else ops.mean
        features = step("inner", reduce(features, axis=inner))
    features, mask = _positions(features, mask, name)
    keep = kept(mask, name)
    keep_all = step("kept_channels", ops.expand_dims(keep, -1))
    if pooling == "max":
        lowest = float(ml_dtypes.finfo(features.dtype).min)
        highest = step("highest", ops.max(ops.where(keep_all, features, lowest), axis=1))
        _name_of_where(highest, name)
        return zero_where_empty(highest, keep, name)
    if pooling == "token":
        number = step("number", ops.cumsum(step("counted", ops.cast(keep, "int32")), axis=1))
        first = step("first_one", ops.equal(number, 1))
        first = step("first_kept", ops.logical_and(first, keep))
        chosen = step("first_channels", ops.expand_dims(first, -1))
        return step("", ops.sum(step("chosen", ops.where(chosen, features, 0)), axis=1))
    dtype = features.dtype
    exact = keras.backend.result_type(dtype, "float32")
    if exact != dtype:
        features = step("exact", ops.cast(features, exact))
    total = step("total", ops.sum(step("chosen", ops.where(keep_all, features, 0)), axis=1))
    count = step("count", ops.sum(step("ones", ops.cast(keep, exact)), axis=1, keepdims=True))
    mean = ops.divide(total, step("at_least_one", ops.maximum(count, 1)))
    return step("", mean) if exact == dtype else step("", ops.cast(step("mean", mean), dtype))


def kept(mask: keras.KerasTensor, name: Name) -> keras.KerasTensor:
    """Return a mask as booleans."""
    if mask.dtype == "bool":
        return mask
    return keras_internals.named(ops.cast(mask, "bool"), name("kept"))


def zero_where_empty(
    pooled: keras.KerasTensor, keep: keras.KerasTensor, name: Name
) -> keras.KerasTensor:
    """Set pooled features to zero for examples of which no position is kept."""
    some = keras_internals.named(ops.any(keep, axis=1, keepdims=True), name("any"))
    return keras_internals.named(ops.where(some, pooled, 0), name(""))


def _positions(
    features: keras.KerasTensor, mask: keras.KerasTensor, name: Name
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return features and mask with one axis of positions."""
    if len(mask.shape) == 2:
        return features, mask
    positions = keras.layers.Reshape((-1, features.shape[-1]), name=name("positions"))
    return positions(features), keras.layers.Reshape((-1,), name=name("mask"), dtype=mask.dtype)(
        mask
    )


def masked_positions(
    features: keras.KerasTensor, mask: keras.KerasTensor, name: Name
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Return features as (batch, positions, channels), and the positions kept."""
    keep = kept(mask, name)
    while len(keep.shape) < len(features.shape) - 1:
        axis = len(keep.shape)
        wide = keras_internals.named(ops.expand_dims(keep, -1), name(f"axis_{axis}"))
        others = tuple(range(axis + 1, len(features.shape)))
        longer = keras_internals.named(ops.max(features, axis=others), name(f"slice_{axis}"))
        like = keras_internals.named(ops.ones_like(longer, dtype="bool"), name(f"ones_{axis}"))
        keep = keras_internals.named(ops.logical_and(wide, like), name(f"kept_{axis}"))
    return _positions(features, keep, name)


def _name_of_where(tensor: keras.KerasTensor, name: Name) -> None:
    (inner,) = keras_internals.producer(tensor).inputs
    keras_internals.named(inner, name("chosen"))
