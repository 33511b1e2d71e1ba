"""A model of the same structure, with weights of its own or with the same ones."""

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import keras
from pydantic import PositiveInt

from reusekit.arguments import Name, checked
from reusekit.errors import CopyError, ShapeError, SurgeryError, TieError, nearest
from reusekit.graph import Graph, Tensor, keras_internals, read
from reusekit.graph.variables import Variables
from reusekit.surgery import rates
from reusekit.surgery.assembling import placeholder
from reusekit.surgery.building import Builder, assembled, is_rebuilt, leaves
from reusekit.surgery.certificate import prove_copy, runs
from reusekit.surgery.copying import Copier, hand_on_state, remake_operations
from reusekit.surgery.random_inputs import random_inputs
from reusekit.surgery.rebuild import Rebuild, plan

Shape = Sequence[PositiveInt | None]


@checked(SurgeryError)
def clone(
    model: keras.Model,
    weights: Literal["copy", "share", "fresh"] = "copy",
    *,
    input_shape: Shape | dict[str, Shape] | None = None,
    batch_size: PositiveInt | None = None,
    name: Name | None = None,
    dtype: str | keras.DTypePolicy | None = None,
    x: Any = None,
) -> keras.Model:
    """Make a model of the same structure, and prove it.

    With "copy" everything comes along that the model's layers are and hold at this moment: the
    values of all weights, what follows from data (adapted statistics, vocabularies), states and
    random seeds, attributes set after a layer was made, LoRA and quantised weights, and own
    functions and classes, registered or not. Kept by "fresh" and "share", too: the input and output
    structure, names, nesting, optional, sparse and ragged inputs, layers called several times or
    shared with nested models, weights tied between layers, recorded call arguments such as
    `training=False`, and the trainable flags of model, layers and weights. The compilation is not
    kept.

    "fresh" makes layers again from their configurations. What was set on a layer after it was made
    (a rate, a regularizer) comes along only if its `get_config` tells it.

    The clone is compared with the model on one batch in inference mode before it is returned: with
    "copy" as it is, with "fresh" with the model's weights in the place of its own. For an input
    shape that the model itself does not take, a clone made in the same way for the model's own
    shape is compared instead.

    Args:
        model: A model with a functional graph. It is not changed.
        weights: "copy" gives the clone weights of its own with the same values; "fresh" gives it
            newly initialised ones, but leaves it what was adapted to data; "share" makes new calls
            of the same layers, so that training one model trains the other.
        input_shape: Another shape of the inputs, without the batch: of the only input, or of some
            by their names. None in it leaves a size open. The layers are made again for it from
            their configurations, as by "fresh", and given the weights, which must fit; a batch that
            was fixed becomes open unless `batch_size` says otherwise. States of recurrent layers
            start anew.
        batch_size: Another fixed number of examples, likewise.
        name: Another name for the model.
        dtype: Another precision for all layers, as Keras's dtype policies are called: "float16",
            "mixed_bfloat16" ... Inputs keep their dtypes.
        x: Inputs in the model's structure to compare on; None makes random ones.

    Returns:
        The clone: a Sequential for a Sequential; with "copy" always of the model's class, with
        "fresh" where the class gives the same model from its own configuration; else a plain
        functional model.

    Warns:
        UserWarning: The model's class is not kept, or the clone could not be compared.

    Raises:
        CopyError: The clone would give something else than the model, or would not have its weights
            to itself; or, with "fresh", a layer does not come back from its configuration.
        ShapeError: A layer, or the weights of one, do not fit the input shape.
        SurgeryError: An input of that name is not there, or the dtype is not one for this model.
        TieError: With "fresh" or another shape, layers share a weight that only one knows of.
        NoGraphError: The model has no functional graph.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(2, name="head")(x), name="m")
        >>> twin = clone(model)
        >>> twin.name, twin.get_layer("head") is model.get_layer("head")
        ('m', False)

        The same weights on larger images, four at a time, in another precision:

        >>> image = keras.Input((8, 8, 3), name="image")
        >>> y = keras.layers.Conv2D(4, 3, padding="same", name="conv")(image)
        >>> y = keras.layers.GlobalAveragePooling2D(name="pool")(y)
        >>> model = keras.Model(image, keras.layers.Dense(2, name="head")(y), name="small")
        >>> large = clone(model, input_shape=(32, 32, 3), batch_size=4, name="large")
        >>> large.input_shape, large.name, large.count_params() == model.count_params()
        ((4, 32, 32, 3), 'large', True)
        >>> clone(model, dtype="mixed_bfloat16").get_layer("head").compute_dtype
        'bfloat16'
    """
    graph = read(model)
    policy = _policy(model, weights, dtype)
    shapes = _shapes(graph, input_shape, batch_size)
    if shapes:
        twin = _reshaped(graph, weights, shapes, policy, x)
    else:
        twin = twin_of(model, weights, x, policy)
    if name is not None:
        twin.name = name
    if type(twin) is not type(model):
        warn_of_lost_class(model, "clone")
    return twin


def _policy(
    model: keras.Model, weights: str, dtype: str | keras.DTypePolicy | None
) -> keras.DTypePolicy | None:
    """Return the dtype policy that a clone is to have, where it can have one."""
    if dtype is None:
        return None
    layers = keras_internals.all_layers(model)
    quantised = [layer.name for layer in layers if getattr(layer, "quantization_mode", None)]
    if weights == "share" or quantised:
        why = f"{quantised[0]!r} is quantised" if quantised else "it shares its layers"
        raise SurgeryError(
            f"Expected a clone with weights of its own in floating point for another dtype, but "
            f"{why}. Received: dtype={dtype!r}."
        )
    try:
        policy = keras.dtype_policies.get(dtype)
        known = not policy.quantization_mode and "float" in policy.compute_dtype
    except (ValueError, TypeError, AttributeError):
        known = False
    if not known:
        names = ["float16", "bfloat16", "float32", "float64", "mixed_float16", "mixed_bfloat16"]
        raise SurgeryError(
            f"Expected the name of a dtype policy in floating point. Received: {dtype!r}. "
            f"{nearest(str(dtype), names)}"
        )
    return policy


def _shapes(
    graph: Graph, input_shape: Any, batch_size: int | None
) -> dict[int, tuple[int | None, ...]]:
    """Return the shapes that are wanted for a model's inputs, batch included."""
    if input_shape is None and batch_size is None:
        return {}
    inputs = {tensor.address: tensor for tensor in graph.inputs}
    given = input_shape if isinstance(input_shape, dict) else {}
    if input_shape is not None and not isinstance(input_shape, dict):
        if len(inputs) != 1:
            raise ShapeError(
                f"Expected the shapes of some of the inputs {', '.join(map(repr, inputs))} by "
                f"their names. Received: {input_shape!r}."
            )
        given = dict.fromkeys(inputs, input_shape)
    for name, shape in given.items():
        if name not in inputs:
            raise ShapeError(
                f"Expected the name of an input of {graph.model.name!r}. Received: {name!r}. "
                f"{nearest(name, inputs)}"
            )
        if len(shape) != len(inputs[name].shape) - 1:
            raise ShapeError(
                f"Expected {name!r} to keep its {len(inputs[name].shape) - 1} axes besides the "
                f"batch. Received: {shape!r}."
            )
    return {
        id(tensor.source): (batch_size, *given.get(name, tensor.shape[1:]))
        for name, tensor in inputs.items()
    }


def _reshaped(
    graph: Graph,
    weights: str,
    shapes: dict[int, tuple[int | None, ...]],
    policy: keras.DTypePolicy | None,
    x: Any,
) -> keras.Model:
    model = graph.model
    if weights == "share":
        layers = leaves(model)
        shapes = _shapes_inside(graph, {id(layer): layer for layer in layers}, shapes)
        twin = Builder({}, shared=True, shapes=shapes).build(model)
        _copy_flags(model, twin, ())
        return twin
    twin, pairs = _remade(graph, shapes, policy, unbuilt=True)
    state = [(new, old.value) for old, new in pairs]
    given = random_inputs(read(twin), batch=1) if x is None else x
    if x is not None or runs(model, given):
        prove_copy(model, twin, given, state, _anew(model), tolerance=_tolerance(policy))
    else:
        same, others = _remade(graph, {}, policy, unbuilt=True)
        state = [(new, old.value) for old, new in others]
        prove_copy(model, same, None, state, _anew(model), tolerance=_tolerance(policy))
    if weights == "copy":
        for old, new in pairs:
            new.assign(old.value)
    return twin


def _anew(model: keras.Model) -> list[tuple[keras.Variable, Any]]:
    """Return the states of recurrent layers, each with the value that it begins with."""
    states = [getattr(layer, "states", None) for layer in keras_internals.all_layers(model)]
    variables = [v for v in keras.tree.flatten(states) if isinstance(v, keras.Variable)]
    return [(v, keras.ops.zeros(v.shape, v.dtype)) for v in variables]


def _shapes_inside(
    graph: Graph, copies: dict[int, Any], shapes: dict[int, tuple[int | None, ...]]
) -> dict[int, tuple[int | None, ...]]:
    """Return the input shapes of nested models, too, given those of the model."""
    # Conversions between nested models are called, too, and are in none of these.
    copies = {id(call.operation): call.operation for call in graph.calls} | copies
    operations = {id(each): each for each in copies.values() if isinstance(each, keras.Operation)}
    with keras_internals.forgetting(operations.values()):
        engine = Rebuild(copies=copies, variables=Variables(graph.model))
        for tensor in graph.inputs:
            shape = shapes.get(id(tensor.source))
            engine.values[tensor] = placeholder(tensor, engine.names, shape)
        engine.run(graph, plan(graph, graph.calls, graph.inputs, graph.outputs, inline=True))
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


def _tolerance(policy: keras.DTypePolicy | None) -> float | None:
    """Return the relative difference that another precision may make."""
    narrow = policy is not None and policy.compute_dtype in ("float16", "bfloat16")
    return 0.25 if narrow else None if policy is None else 1e-4


def twin_of(
    model: keras.Model, weights: str, x: Any = None, policy: keras.DTypePolicy | None = None
) -> keras.Model:
    """Return what `clone` does, without a word about the class."""
    if weights == "share":
        twin = Builder({}, shared=True).build(model)
        _copy_flags(model, twin, ())
        return twin
    if weights == "copy":
        twin = Copier(policy).copy(model)
        prove_copy(model, twin, x, tolerance=_tolerance(policy))
        return twin
    twin, pairs = _remade(read(model), {}, policy)
    state = [(new, old.value) for old, new in pairs]
    prove_copy(model, twin, x, state, tolerance=_tolerance(policy))
    return twin


def _remade(
    graph: Graph,
    shapes: dict[int, tuple[int | None, ...]],
    policy: keras.DTypePolicy | None,
    unbuilt: bool = False,
) -> tuple[keras.Model, list[tuple[keras.Variable, keras.Variable]]]:
    """Return a twin of layers with fresh weights, and each old weight with its new one."""
    model = graph.model
    with rates.as_made(keras_internals.all_layers(model)):
        plain = unbuilt or policy is not None or is_rebuilt(model)
        twin = None if plain else _of_same_class(model)
        if twin is None:
            # Beside a class's own attributes, its layers stand in another order than in its graph.
            model = keras_internals.plain(model)
            copies = remake_operations(leaves(model), policy, unbuilt)
            if unbuilt:
                shapes = _shapes_inside(graph, dict(copies), shapes)
                copies |= _variables(model, copies)
            twin = Builder(copies, shapes=shapes).build(model)
    pairs = _pairs(model, twin, reshaped=unbuilt)
    _check_ties(model, twin)
    layers = list(zip(*map(keras_internals.all_layers, (model, twin)), strict=True))
    for old, new in layers:
        if hasattr(old, "finalize_state") and not hasattr(old, "save_assets"):
            hand_on_state(old, new)
    _copy_flags(model, twin, pairs)
    for old, new in layers:
        if rates.silenced(old):
            rates.silence(new)
    return twin, pairs


def _variables(model: keras.Model, copies: dict[int, Any]) -> dict[int, keras.Variable]:
    """Map the id of each weight to its copy's, once the copies are built.

    What takes a weight as its argument is called with the copy of that weight.
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
            f"{len(layers[0])} layers in it, received {len(layers[1])}. Use weights='copy' or "
            "'share'."
        )
    for old, new in zip(*layers, strict=True):
        ones, others = _by_name(old), _by_name(new)
        differing = [n for n, v in ones.items() if n not in others or v.shape != others[n].shape]
        differing += [name for name in others if name not in ones]
        if differing and reshaped and differing[0] in others and differing[0] in ones:
            was, now = (tuple(each[differing[0]].shape) for each in (ones, others))
            raise ShapeError(
                f"Expected an input shape that the weights of {old.name!r} fit, but "
                f"{differing[0][0]!r} is {was} and would be {now}: only sizes that no weight "
                "depends on can change. Cut before this layer and attach another."
            )
        if differing:
            raise CopyError(
                f"Expected the configuration of {old.name!r} of class {type(old).__name__} to give "
                f"the weights that it has, but they differ in {differing[0][0]!r}: it was changed "
                "after it was made, as by LoRA or quantisation. Use weights='copy' or 'share'."
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


def warn_of_lost_class(model: keras.Model, what: str) -> None:
    """Warn that the copy of a `Model` subclass is a plain functional model."""
    if not is_rebuilt(model):
        warnings.warn(
            f"The {what} of {model.name!r} is a plain functional model, not a "
            f"{type(model).__name__}: what that class adds is not kept.",
            stacklevel=4,  # the caller, past the check of arguments
        )


@checked(SurgeryError)
def flatten(model: keras.Model) -> keras.Model:
    """Inline nested models, so that all layers stand at the top level.

    A layer keeps its name where that is free; else it is put into a small nested model named by its
    address, `encoder.dense` for `encoder/dense`. Weights are shared with the model, which is not
    changed. Nested models with a `call` of their own stay whole.

    Args:
        model: A model with a functional graph.

    Returns:
        A plain functional model with equal outputs, whatever the model's class.

    Raises:
        NoGraphError: The model has no functional graph.

    Example:
        >>> inner = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(3, name="a")], name="inner"
        ... )
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(1, name="b")(inner(x)), name="m")
        >>> [layer.name for layer in flatten(model).layers]
        ['x', 'a', 'b']
    """
    graph = read(model)
    steps = plan(graph, graph.calls, graph.inputs, graph.outputs, inline=True)
    engine = Rebuild()
    engine.reserve(graph, steps)
    engine.values.update((t, placeholder(t, engine.names)) for t in graph.inputs)
    engine.run(graph, steps)
    return assembled(graph, engine)


def _of_same_class(model: keras.Model) -> keras.Model | None:
    """Make a model of its class's configuration; None where that gives another model."""
    names = [layer.name for layer in keras_internals.all_layers(model)]
    try:
        # What the class leaves to Keras to name is to have the same name, as everything else has.
        with keras_internals.naming_afresh(names, again=True):
            twin = type(model).from_config(model.get_config())
        same = _shape(twin) == _shape(model)
    except Exception:
        # Whatever a class does with a configuration that is not meant for it.
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
    """Raise where a weight of the copy stands in other places than the model's."""
    places = [_places(each) for each in (model, twin)]
    if places[0] != places[1]:
        raise TieError(
            f"Expected the weights of {model.name!r} to be shared between layers in a way that "
            "copies of the layers keep, but some layers share a weight without one holding the "
            "other in its configuration. Use weights='share', tie them by rk.layers.TiedDense, or "
            "rk.flatten the model first where a nested one of a class of its own has such a layer."
        )


def _places(model: keras.Model) -> list[list[int]]:
    numbers: dict[int, int] = {}
    held = [layer.variables for layer in keras_internals.all_layers(model)]
    given = [call.given for call in read(model).calls if call.given]
    return [
        [numbers.setdefault(id(variable), len(numbers)) for variable in variables]
        for variables in (*held, *given)
    ]


def _copy_flags(
    model: keras.Model,
    twin: keras.Model,
    pairs: Iterable[tuple[keras.Variable, keras.Variable]],
) -> None:
    # A layer's flag is handed down to the layers in it, which stand later in this order.
    for old, new in zip(*map(keras_internals.all_layers, (model, twin)), strict=True):
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    for old, new in pairs:
        if new.trainable != old.trainable:
            new.trainable = old.trainable
