"""A model of the same structure, with weights of its own or with the same ones."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import keras
from pydantic import PositiveInt

from reusekit.arguments import Name, checked
from reusekit.errors import ShapeError, SurgeryError, nearest, reason
from reusekit.graph import Graph, keras_internals, read
from reusekit.surgery.certificate import outputs_on, prove_copy, random_inputs, runs
from reusekit.surgery.copies import Builder, Copier, assembled, is_rebuilt, leaves
from reusekit.surgery.engine import Rebuild
from reusekit.surgery.remakes import Shapes, copy_flags, remade, shapes_inside
from reusekit.surgery.steps import steps_between

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

    "fresh" makes layers again from their configurations. Attributes set on a layer after it was
    made (a rate, a regularizer) come along only if its `get_config` tells them.

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
    twin = _reshaped(graph, weights, shapes, x) if shapes else twin_of(model, weights, x)
    if policy is not None:
        # Not every initial value can be drawn in every precision.
        before, twin = twin, Copier(policy).copy(twin)
        prove_copy(before, twin, x, tolerance=_tolerance(policy, before))
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


def _shapes(graph: Graph, input_shape: Any, batch_size: int | None) -> Shapes:
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
        id(tensor.keras_tensor): (batch_size, *given.get(name, tensor.shape[1:]))
        for name, tensor in inputs.items()
    }


def _reshaped(
    graph: Graph,
    weights: str,
    shapes: Shapes,
    x: Any,
) -> keras.Model:
    model = graph.model
    if weights == "share":
        layers = {id(layer): layer for layer in leaves(model)}
        twin = _sharing(model, shapes_inside(graph, layers, shapes))
        _check_runs(graph, twin, random_inputs(read(twin), batch=1) if x is None else x)
        return twin
    twin, pairs = remade(graph, shapes, unbuilt=True)
    state = [(new, old.value) for old, new in pairs]
    given = random_inputs(read(twin), batch=1) if x is None else x
    _check_runs(graph, twin, given)
    if x is not None or runs(model, given):
        prove_copy(model, twin, given, state, _anew(model))
    else:
        same, others = remade(graph, {}, unbuilt=True)
        state = [(new, old.value) for old, new in others]
        prove_copy(model, same, None, state, _anew(model))
    if weights == "copy":
        for old, new in pairs:
            new.assign(old.value)
    return twin


def _check_runs(graph: Graph, twin: keras.Model, given: Any) -> None:
    """Raise ShapeError where a twin takes its inputs in name only, or mixes their examples.

    Args:
        graph: The model of another shape.
        twin: Its twin.
        given: Inputs of the twin.
    """
    try:
        expected = _examples(graph.model, random_inputs(graph, batch=1))
    except Exception:
        return  # there is nothing to compare with
    try:
        received = _examples(twin, given)
    except Exception as error:
        raise ShapeError(
            f"Expected an input shape that {graph.model.name!r} runs on. Received: "
            f"{twin.input_shape}, of which Keras says: {reason(error)}"
        ) from error
    if received != expected:
        raise ShapeError(
            f"Expected an input shape for which {graph.model.name!r} keeps examples apart. "
            f"Received: {twin.input_shape}, of which a layer or operation that changes shapes "
            "makes another number of examples. Replace it by one that follows its input."
        )


def _examples(model: keras.Model, x: Any) -> list[float]:
    """Return how many examples each output has for one of the inputs."""
    batch = len(next(leaf for leaf in keras.tree.flatten(x) if leaf is not None))
    return [each.shape[0] / batch if each.ndim else 0 for each in outputs_on(model, x)]


def _anew(model: keras.Model) -> list[tuple[keras.Variable, Any]]:
    """Return the states of recurrent layers, each with the value that it begins with."""
    states = [getattr(layer, "states", None) for layer in keras_internals.all_layers(model)]
    variables = [v for v in keras.tree.flatten(states) if isinstance(v, keras.Variable)]
    return [(v, keras.ops.zeros(v.shape, v.dtype)) for v in variables]


def _tolerance(policy: keras.DTypePolicy, model: keras.Model) -> float:
    """Return the relative difference that another precision than a model's may make."""
    layers = keras_internals.all_layers(model)
    dtypes = {policy.compute_dtype, *(getattr(layer, "compute_dtype", "") for layer in layers)}
    return 0.25 if dtypes & {"float16", "bfloat16"} else 1e-4


def twin_of(model: keras.Model, weights: str, x: Any = None) -> keras.Model:
    """Return what `clone` does, without a word about the class."""
    if weights == "share":
        return _sharing(model)
    if weights == "copy":
        twin = Copier().copy(model)
        prove_copy(model, twin, x)
        return twin
    twin, pairs = remade(read(model), {})
    state = [(new, old.value) for old, new in pairs]
    prove_copy(model, twin, x, state)
    return twin


def _sharing(model: keras.Model, shapes: Shapes | None = None) -> keras.Model:
    """Return a model of new calls of the same layers."""
    twin = Builder({}, shared=True, shapes=shapes).build(model)
    copy_flags(model, twin, ())
    return twin


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
    steps = steps_between(graph, graph.calls, graph.inputs, graph.outputs, inline=True)
    engine = Rebuild()
    engine.reserve(graph, steps)
    engine.add_inputs(graph.inputs)
    engine.run(graph, steps)
    return assembled(graph, engine)
