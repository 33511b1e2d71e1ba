"""Layers and models made again from their configurations."""

import tempfile
import types
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras

from reusekit.errors import CopyError, ShapeError, TieError, reason
from reusekit.graph import Graph, Tensor, keras_internals, read
from reusekit.graph.reader import Variables
from reusekit.surgery import rates
from reusekit.surgery.copies import Builder, is_own, is_rebuilt, leaves, reachable
from reusekit.surgery.engine import Rebuild
from reusekit.surgery.steps import steps_between

Shapes = dict[int, tuple[int | None, ...]]
"""Shapes of inputs, batch included, by the id of the Keras tensor."""


def remade(
    graph: Graph,
    shapes: Shapes,
    unbuilt: bool = False,
) -> tuple[keras.Model, list[tuple[keras.Variable, keras.Variable]]]:
    """Return a twin of layers with fresh weights, and each old weight with its new one."""
    model = graph.model
    with rates.as_made(keras_internals.all_layers(model)):
        plain = unbuilt or is_rebuilt(model)
        twin = None if plain else _of_same_class(model)
        if twin is None:
            # Beside a class's own attributes, its layers stand in another order than in its graph.
            model = keras_internals.plain(model)
            copies = remake_operations(leaves(model), unbuilt)
            if unbuilt:
                shapes = shapes_inside(graph, dict(copies), shapes)
                copies |= _variables(model, copies)
            twin = Builder(copies, shapes=shapes).build(model)
    pairs = _pairs(model, twin, reshaped=unbuilt)
    _check_ties(model, twin)
    layers = list(zip(*map(keras_internals.all_layers, (model, twin)), strict=True))
    for old, new in layers:
        if hasattr(old, "finalize_state") and not hasattr(old, "save_assets"):
            hand_on_state(old, new)
    copy_flags(model, twin, pairs)
    for old, new in layers:
        if rates.silenced(old):
            rates.silence(new)
    return twin, pairs


def shapes_inside(graph: Graph, copies: dict[int, Any], shapes: Shapes) -> Shapes:
    """Return the input shapes of nested models, too, given those of the model."""
    # Conversions between nested models are called, too, and are in none of these.
    copies = {id(call.operation): call.operation for call in graph.calls} | copies
    operations = {id(each): each for each in copies.values() if isinstance(each, keras.Operation)}
    with keras_internals.forgetting(operations.values()):
        engine = Rebuild(copies=copies, variables=Variables(graph.model))
        engine.add_inputs(graph.inputs, shapes)
        steps = steps_between(graph, graph.calls, graph.inputs, graph.outputs, inline=True)
        engine.run(graph, steps)
    found = dict(shapes)
    for scope in {scope: None for call in graph.calls for scope in call.scopes}:
        inputs = keras_internals.functional(scope.operation).inputs
        for inner, tensor in zip(inputs, keras.tree.flatten(scope.args), strict=False):
            if isinstance(tensor, Tensor) and tensor in engine.values:
                shape = tuple(engine.values[tensor].shape)
                before = found.get(id(inner), shape)
                pairs = zip(before, shape, strict=True)
                found[id(inner)] = tuple(a if a == b else None for a, b in pairs)
    return found


def _variables(model: keras.Model, copies: dict[int, Any]) -> dict[int, keras.Variable]:
    """Map the id of each weight to its copy's, once the copies are built.

    An operation that takes a weight as its argument is called with the copy of that weight.
    """
    found: dict[int, keras.Variable] = {}
    for old in leaves(model):
        if isinstance(old, keras.Layer):
            each = map(keras_internals.all_layers, (old, copies[id(old)]))
            for one, other in zip(*each, strict=False):
                others = _by_name(other)
                found |= {id(v): others[n] for n, v in _by_name(one).items() if n in others}
    return found


def _pairs(
    model: keras.Model, twin: keras.Model, reshaped: bool = False
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Return each weight of a model with that of a twin made from configurations."""
    pairs: dict[int, tuple[keras.Variable, keras.Variable]] = {}
    layers = [keras_internals.all_layers(each) for each in (model, twin)]
    if len(layers[0]) != len(layers[1]):
        raise CopyError(
            f"Expected the configurations of the layers of {model.name!r} to give all "
            f"{len(layers[0])} layers in it. Received: {len(layers[1])}. Use weights='copy' or "
            "'share'."
        )
    for old, new in zip(*layers, strict=True):
        ones, others = _by_name(old), _by_name(new)
        differing = [n for n, v in ones.items() if n not in others or v.shape != others[n].shape]
        differing += [name for name in others if name not in ones]
        if differing and reshaped and differing[0] in others and differing[0] in ones:
            was, now = (tuple(each[differing[0]].shape) for each in (ones, others))
            raise ShapeError(
                f"Expected an input shape that the weights of {old.name!r} fit. Received: one by "
                f"which {differing[0][0]!r}, {was}, would be {now}: only sizes that no weight "
                "depends on can change. Cut before this layer and attach another."
            )
        if differing:
            raise CopyError(
                f"Expected the configuration of {old.name!r} of class {type(old).__name__} to give "
                f"the weights that it has. Received: others, which differ in {differing[0][0]!r}: "
                "it was changed after it was made, as by LoRA or quantisation. Use weights='copy' "
                "or 'share'."
            )
        pairs |= {id(v): (v, others[name]) for name, v in ones.items()}
    return list(pairs.values())


def _by_name(layer: keras.Layer) -> dict[tuple[str, int], keras.Variable]:
    """Return a layer's own variables by their names, those of one name numbered."""
    found: dict[tuple[str, int], keras.Variable] = {}
    counts: Counter[str] = Counter()
    for variable in keras_internals.own_variables(layer):
        found[variable.name, counts[variable.name]] = variable
        counts[variable.name] += 1
    return found


def _of_same_class(model: keras.Model) -> keras.Model | None:
    """Make a model of its class's configuration; None where that gives another model."""
    names = [layer.name for layer in keras_internals.all_layers(model)]
    try:
        # Layers that the class leaves to Keras to name are to have the same names as before.
        with keras_internals.naming_afresh(names, again=True):
            twin = type(model).from_config(model.get_config())
        same = _shape(twin) == _shape(model)
    except Exception:
        # A class may raise anything for a configuration that is not meant for it.
        return None
    return twin if same else None


def _shape(model: keras.Model) -> tuple[list, list]:
    """Return the common shape of two models: calls and weights, without names."""
    calls = [
        (type(call.operation), [(tensor.shape, tensor.dtype) for tensor in call.outputs])
        for call in read(model).calls
    ]
    weights = [variable for layer in model.layers for variable in layer.variables]
    return calls, [(tuple(variable.shape), variable.dtype) for variable in weights]


def _check_ties(model: keras.Model, twin: keras.Model) -> None:
    """Raise where the layers and calls that use a weight are others in the copy."""
    uses = [_uses(each) for each in (model, twin)]
    if uses[0] != uses[1]:
        raise TieError(
            f"Expected the weights of {model.name!r} to be shared between layers in a way that "
            "copies of the layers keep. Received: layers that share a weight without one holding "
            "the other in its configuration. Use weights='share', tie them by "
            "rk.layers.TiedDense, or rk.flatten the model first where a nested one of a class of "
            "its own has such a layer."
        )


def _uses(model: keras.Model) -> list[list[int]]:
    numbers: dict[int, int] = {}
    held = [layer.variables for layer in keras_internals.all_layers(model)]
    given = [call.given for call in read(model).calls if call.given]
    return [
        [numbers.setdefault(id(variable), len(numbers)) for variable in variables]
        for variables in (*held, *given)
    ]


def copy_flags(
    model: keras.Model,
    twin: keras.Model,
    pairs: Iterable[tuple[keras.Variable, keras.Variable]],
) -> None:
    """Give a twin the flags of a model's layers, and of the weights in `pairs`."""
    # A layer's flag is handed down to the layers in it, which stand later in this order.
    for old, new in zip(*map(keras_internals.all_layers, (model, twin)), strict=True):
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    for old, new in pairs:
        if new.trainable != old.trainable:
            new.trainable = old.trainable


def remake_operations(operations: Iterable[Any], unbuilt: bool = False) -> dict[int, Any]:
    """Make layers and operations again from their configurations, with fresh weights.

    They are made together, as a saved model's layers are, so that a layer that holds another one
    holds the other's copy. Their own classes and functions need not be registered.

    Args:
        operations: Layers and operations, each once; no functional models.
        unbuilt: Whether to leave them unbuilt, for other shapes than those they were built for.

    Returns:
        From the id of each, and of each of its variables, to the copy.

    Raises:
        CopyError: One does not come back from its own configuration.
    """
    operations = list(operations)
    with keras_internals.sharing_scope():
        configurations = [_serialised(operation) for operation in operations]
    if unbuilt:
        # Without the shapes that they were built for.
        configurations = [keras_internals.without(c, "build_config") for c in configurations]
    with keras_internals.sharing_scope():
        copies = [
            _revived(operation, configuration)
            for operation, configuration in zip(operations, configurations, strict=True)
        ]
    found: dict[int, Any] = {}
    for old, new in zip(operations, copies, strict=True):
        found[id(old)] = new
        held = [getattr(each, "variables", ()) for each in (old, new)]
        found.update((id(one), other) for one, other in zip(*held, strict=False))
    return found


def _serialised(operation: Any) -> dict:
    try:
        return keras.saving.serialize_keras_object(operation)
    except Exception as error:
        raise _refusal(operation, error) from error


def _revived(operation: Any, configuration: dict) -> Any:
    known = {**keras_internals.scoped_objects(), **_own_objects(operation)}
    try:
        with keras.saving.custom_object_scope(known):
            # It was made a moment ago from a live object: there is nothing to distrust.
            made = keras.saving.deserialize_keras_object(configuration, safe_mode=False)
    except Exception as error:
        raise _refusal(operation, error) from error
    _keep_functions(operation, made)
    for old, new in zip(_layers(operation), _layers(made), strict=False):
        if hasattr(old, "save_assets"):  # A vocabulary decides the shape of what it looks up.
            hand_on_state(old, new)
    return made


def _refusal(operation: Any, error: Exception) -> CopyError:
    return CopyError(
        f"Expected the layer {operation.name!r} of class {type(operation).__name__} to come back "
        "from its configuration (get_config and from_config). Received: one of which Keras says: "
        f"{reason(error).rstrip('.')}. Use weights='copy' or 'share', or mend its configuration."
    )


def _own_objects(operation: Any) -> Mapping[str, Any]:
    """Return a layer's classes and functions that are not Keras's, by registered name."""
    found: dict[str, Any] = {}
    for part in _layers(operation):
        for value in (part, *reachable(keras_internals.attributes(part))):
            each = value if isinstance(value, types.FunctionType | type) else type(value)
            module = getattr(each, "__module__", None) or ""
            if not module.startswith(("keras.", "builtins", "tensorflow.", "numpy.")):
                found[each.__name__] = each
                found[keras.saving.get_registered_name(each)] = each
    return found


def _keep_functions(old: Any, new: Any) -> None:
    """Give a layer made again the functions of its original, whose surroundings no text tells."""
    for one, other in zip(_layers(old), _layers(new), strict=False):
        for name, value in keras_internals.attributes(one).items():
            both = isinstance(value, types.FunctionType) and isinstance(
                vars(other).get(name), types.FunctionType
            )
            if both and not any(map(is_own, reachable(value))):
                vars(other)[name] = value


def _layers(operation: Any) -> list[Any]:
    if isinstance(operation, keras.Layer):
        return keras_internals.all_layers(operation)
    return [operation]


def hand_on_state(old: keras.Layer, new: keras.Layer) -> None:
    """Give a layer made again what its original was adapted to: statistics or a vocabulary."""
    store: dict[str, Any] = {}
    old.save_own_variables(store)
    new.load_own_variables(store)
    if hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            if any(Path(folder).iterdir()):
                new.load_assets(folder)
