"""A model of the same structure, with weights of its own or with the same ones."""

import warnings
from typing import Literal

import keras

from reusekit.arguments import checked
from reusekit.errors import SurgeryError, TieError
from reusekit.graph import keras_internals, read
from reusekit.surgery import rates
from reusekit.surgery.assembling import placeholder
from reusekit.surgery.building import Builder, assembled, is_rebuilt, leaves
from reusekit.surgery.copying import copy_operations
from reusekit.surgery.rebuild import Rebuild, plan


@checked(SurgeryError)
def clone(model: keras.Model, weights: Literal["copy", "share", "fresh"] = "copy") -> keras.Model:
    """Makes a model of the same structure.

    Kept are: the input and output structure, names, optional inputs, nesting, layers called several
    times or shared with nested models, weights tied between layers, recorded call arguments such as
    `training=False`, the trainable flags of model, layers and weights, and with "copy" the values
    of all weights and other state (moving averages, random seeds). A subclass of Model keeps its
    class where its own configuration gives the same model again, as KerasHub's backbones do;
    elsewhere, and with "share", it comes back as a plain functional model, with a warning. The
    compilation is not kept.

    Args:
        model: A model with a functional graph.
        weights: "copy" gives the clone weights of its own with the same values; "fresh" gives it
            newly initialised ones; "share" makes new calls of the same layers, so that training one
            model trains the other.

    Returns:
        The clone: a Sequential for a Sequential, a model of the same class where that can be kept,
        else a plain functional model.

    Warns:
        UserWarning: The model's class is not kept.

    Raises:
        TieError: Layers share a weight without one knowing the other, so that copies would not.
        CopyError: A layer does not come back from its configuration.
        NoGraphError: The model has no functional graph.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(2, name="head")(x), name="m")
        >>> twin = clone(model)
        >>> twin.name, twin.get_layer("head") is model.get_layer("head")
        ('m', False)
    """
    read(model)
    twin = twin_of(model, weights)
    if type(twin) is not type(model):
        warn_of_lost_class(model, "clone")
    return twin


def twin_of(model: keras.Model, weights: str) -> keras.Model:
    """As `clone`, without a word about the class."""
    if weights == "share":
        twin = Builder({}, shared=True).build(model)
        _copy_flags(model, twin)
        return twin
    with rates.as_made(keras_internals.all_layers(model)) as silenced:
        twin = None if is_rebuilt(model) else _of_same_class(model)
        if twin is None:
            twin = Builder(copy_operations(leaves(model))).build(model)
    for layer, was in zip(keras_internals.all_layers(twin), silenced, strict=True):
        if was:
            rates.silence(layer)
    _check_ties(model, twin)
    if weights == "copy":
        for old, new in zip(_state(model), _state(twin), strict=True):
            # JAX would hand the very array over, and a training step gives its arrays away.
            new.assign(keras.ops.copy(old.value))
    _copy_flags(model, twin)
    return twin


def warn_of_lost_class(model: keras.Model, what: str) -> None:
    """Says of what was made of a model that it is not of the model's class, if that has its own."""
    if not is_rebuilt(model):
        warnings.warn(
            f"The {what} of {model.name!r} is a plain functional model, not a "
            f"{type(model).__name__}: what that class adds is not kept.",
            stacklevel=4,  # the caller, past the check of arguments
        )


@checked(SurgeryError)
def flatten(model: keras.Model) -> keras.Model:
    """Inlines nested models, so that all layers stand at the top level.

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
    """What the model's class makes of its configuration, or None where that is another model."""
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
    """What two models of one structure have in common: their calls and weights, without names."""
    calls = [
        (type(call.operation), [(tensor.shape, tensor.dtype) for tensor in call.outputs])
        for call in read(model).calls
    ]
    return calls, [(tuple(variable.shape), variable.dtype) for variable in _state(model)]


def _state(model: keras.Model) -> list[keras.Variable]:
    """Every variable of a model once, in the order of its layers."""
    layers = keras_internals.all_layers(model)
    found = {id(variable): variable for layer in layers for variable in layer.variables}
    return list(found.values())


def _check_ties(model: keras.Model, twin: keras.Model) -> None:
    """Each weight of the copy must stand in the same places as that of the model."""
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


def _copy_flags(model: keras.Model, twin: keras.Model) -> None:
    pairs = list(
        zip(keras_internals.all_layers(model), keras_internals.all_layers(twin), strict=True)
    )
    # A layer's flag is handed down to the layers in it, which stand later in this order.
    for old, new in pairs:
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    for old, new in zip(_state(model), _state(twin), strict=True):
        if new.trainable != old.trainable:
            new.trainable = old.trainable
