"""A model of the same structure, with weights of its own or with the same ones."""

import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import keras

from reusekit.arguments import checked
from reusekit.errors import SurgeryError, TieError
from reusekit.graph import keras_internals, read
from reusekit.surgery import rates
from reusekit.surgery.assembling import placeholder
from reusekit.surgery.building import Builder, assembled, is_rebuilt, leaves
from reusekit.surgery.certificate import prove_copy
from reusekit.surgery.copying import Copier, hand_on_state, remake_operations
from reusekit.surgery.errors import CopyError
from reusekit.surgery.rebuild import Rebuild, plan


@checked(SurgeryError)
def clone(
    model: keras.Model, weights: Literal["copy", "share", "fresh"] = "copy", *, x: Any = None
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
    "copy" as it is, with "fresh" with the model's weights in the place of its own.

    Args:
        model: A model with a functional graph. It is not changed.
        weights: "copy" gives the clone weights of its own with the same values; "fresh" gives it
            newly initialised ones, but leaves it what was adapted to data; "share" makes new calls
            of the same layers, so that training one model trains the other.
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
        TieError: With "fresh", layers share a weight without one knowing the other.
        NoGraphError: The model has no functional graph.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(2, name="head")(x), name="m")
        >>> twin = clone(model)
        >>> twin.name, twin.get_layer("head") is model.get_layer("head")
        ('m', False)
    """
    read(model)
    twin = twin_of(model, weights, x)
    if type(twin) is not type(model):
        warn_of_lost_class(model, "clone")
    return twin


def twin_of(model: keras.Model, weights: str, x: Any = None) -> keras.Model:
    """Return what `clone` does, without a word about the class."""
    if weights == "share":
        twin = Builder({}, shared=True).build(model)
        _copy_flags(model, twin, ())
        return twin
    if weights == "copy":
        twin = Copier().copy(model)
        prove_copy(model, twin, x)
        return twin
    return _fresh(model, x)


def _fresh(model: keras.Model, x: Any) -> keras.Model:
    with rates.as_made(keras_internals.all_layers(model)) as silenced:
        twin = None if is_rebuilt(model) else _of_same_class(model)
        if twin is None:
            twin = Builder(remake_operations(leaves(model))).build(model)
    pairs = _pairs(model, twin)
    _check_ties(model, twin)
    for old, new in zip(*map(keras_internals.all_layers, (model, twin)), strict=True):
        if hasattr(old, "finalize_state") and not hasattr(old, "save_assets"):
            hand_on_state(old, new)
    _copy_flags(model, twin, pairs)
    for layer, was in zip(keras_internals.all_layers(twin), silenced, strict=True):
        if was:
            rates.silence(layer)
    prove_copy(model, twin, x, [(new, old.value) for old, new in pairs])
    return twin


def _pairs(model: keras.Model, twin: keras.Model) -> list[tuple[keras.Variable, keras.Variable]]:
    """Each weight of a model with that of a twin made from configurations."""
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
        if differing:
            raise CopyError(
                f"Expected the configuration of {old.name!r} of class {type(old).__name__} to give "
                f"the weights that it has, but they differ in {differing[0][0]!r}: it was changed "
                "after it was made, as by LoRA or quantisation. Use weights='copy' or 'share'."
            )
        pairs |= {id(v): (v, others[name]) for name, v in ones.items()}
    return list(pairs.values())


def _by_name(layer: keras.Layer) -> dict[tuple[str, int], keras.Variable]:
    """A layer's own variables by their names, those of one name numbered."""
    found: dict[tuple[str, int], keras.Variable] = {}
    counts: Counter[str] = Counter()
    for variable in keras_internals.own_variables(layer):
        found[variable.name, counts[variable.name]] = variable
        counts[variable.name] += 1
    return found


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
    """What two models of one structure have in common: their calls and weights, without names."""
    calls = [
        (type(call.operation), [(tensor.shape, tensor.dtype) for tensor in call.outputs])
        for call in read(model).calls
    ]
    weights = [variable for layer in model.layers for variable in layer.variables]
    return calls, [(tuple(variable.shape), variable.dtype) for variable in weights]


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
