"""Preprocessing in front of a model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras

from reusekit.arguments import Name, checked
from reusekit.errors import NoGraphError, ShapeError, SurgeryError
from reusekit.graph import Graph, Step, Tensor, keras_internals, may_agree, read
from reusekit.surgery.engine import Rebuild, assemble
from reusekit.surgery.steps import steps_between

# Their `training` is True by default, though it makes no difference to them, and Keras hands the
# default on to the layers that are called after them: a BatchNormalization would then run in
# training mode whenever the model is called without saying otherwise.
_SETS_TRAINING = (keras.layers.Resizing, keras.layers.CenterCrop)


@checked(SurgeryError)
def prepend(
    model: keras.Model,
    preprocessing: keras.Model | keras.Layer | Sequence[keras.Layer],
    name: Name | None = None,
) -> keras.Model:
    """Put preprocessing in front of a model, without nesting it.

    The model's own layers stay at the top level, so that `conv1` is still `conv1`. So do those of
    the preprocessing, and nested models in either stay nested, so that `base/conv1` is still
    `base/conv1`. Weights of both are shared, and neither is changed.

    Args:
        model: A model with a functional graph.
        preprocessing: A model with as many outputs as the model has inputs; the result then takes
            its inputs. Outputs go to the inputs of their names where names fit (the keys of a dict,
            else the names of the layers that make them), else in the order of `model.inputs`. Or a
            layer or a list of layers, called one after another
            on an input like the model's own; the model must then have a single input.
        name: The name of the result; the model's own name by default.

    Returns:
        A plain functional model with the preprocessing's inputs and the model's outputs.

    Raises:
        ShapeError: The outputs of the preprocessing do not fit the model's inputs by shape, dtype
            or name.
        NoGraphError: The model or the preprocessing has no functional graph.

    Example:
        >>> x = keras.Input((8, 8, 3), name="image")
        >>> model = keras.Model(x, keras.layers.Conv2D(4, 3, name="conv")(x), name="m")
        >>> whole = prepend(model, keras.layers.Rescaling(1 / 255, name="rescale"))
        >>> [layer.name for layer in whole.layers]
        ['image', 'rescale', 'conv']
    """
    graph = read(model)
    steps = steps_between(graph, graph.calls, graph.inputs, graph.outputs)
    engine = Rebuild()
    engine.reserve(graph, steps)
    if isinstance(preprocessing, keras.Model):
        inputs, fed = _call_model(graph, preprocessing, engine)
    else:
        inputs, fed = _call_layers(graph, _layers(preprocessing), engine)
    values = {}
    for tensor, value in zip(graph.inputs, fed, strict=True):
        same = value.dtype == tensor.dtype
        values[tensor] = value if same else keras.ops.cast(value, tensor.dtype)
    engine.feed_masked(values)
    engine.run(graph, steps)
    outputs = engine.outputs(graph)
    return assemble(inputs, outputs, name or model.name, len(graph.calls))


def take_over(model: keras.Model, preprocessing: keras.Model) -> keras.Model:
    """Put preprocessing in front as `prepend` does, of two models that are not used afterwards.

    Their layers are then layers of the result alone, so that Keras's own `layer.output` is a tensor
    of it; of layers in several models, Keras gives that of the first.
    """
    whole = prepend(model, preprocessing)
    calls = len(read(whole).calls)
    inputs, outputs = (
        structure(whole)
        for structure in (keras_internals.input_structure, keras_internals.output_structure)
    )
    for former in (model, preprocessing):
        keras_internals.forget_calls(former)
    return assemble(inputs, outputs, whole.name, calls)


def _call_model(
    graph: Graph, preprocessing: keras.Model, engine: Rebuild
) -> tuple[Any, list[keras.KerasTensor]]:
    """Return the preprocessing's inputs in its own structure, and its outputs, flat."""
    front = read(preprocessing, keep_masks=True)
    if len(front.outputs) == len(graph.inputs):
        outputs = _in_order_of_inputs(graph, front)
    else:
        outputs = list(front.outputs)
    _check_fit(graph, [tensor.shape for tensor in outputs])
    _check_dtypes(graph, outputs)
    pinned = any(call.scopes and isinstance(call.operation, _SETS_TRAINING) for call in front.calls)
    steps = steps_between(front, front.calls, front.inputs, front.outputs, inline=pinned)
    engine.add_inputs(front.inputs)
    engine.run(front, [_pinned(step) for step in steps])
    inputs = keras.tree.map_structure(engine.values.get, front.input_structure)
    for tensor in front.outputs:
        # As Keras would have it, where the layers of the model are called on what it puts out.
        if tensor in front.known_masks and keras_internals.mask_of(engine.values[tensor]) is None:
            keras_internals.attach_mask(
                engine.values[tensor], engine.values[front.known_masks[tensor]]
            )
    return inputs, [engine.values[tensor] for tensor in outputs]


def _in_order_of_inputs(graph: Graph, front: Graph) -> list[Tensor]:
    """Return the outputs of the preprocessing, each in the place of the input that it is for."""
    names, wanted = _names_of_outputs(front), [tensor.address for tensor in graph.inputs]
    named: dict[Any, Tensor] = dict(zip(names, front.outputs, strict=True))
    paths = [path for path, _ in keras.tree.flatten_with_path(graph.input_structure)]
    for known in (wanted, [path[-1] if path else None for path in paths]):
        if named.keys() == set(known) and len(named) == len(known):
            return [named[name] for name in known]
    astray = [n for n, w in zip(names, wanted, strict=True) if n != w and n in wanted]
    unordered = len(wanted) > 1 and isinstance(graph.input_structure, dict)
    if astray or unordered:
        raise ShapeError(
            f"Expected preprocessing whose outputs are named like the inputs of "
            f"{graph.model.name!r}, such as a dict with the keys {', '.join(map(repr, wanted))}. "
            f"Received: outputs named {', '.join(map(repr, names))}."
        )
    return list(front.outputs)


def _names_of_outputs(front: Graph) -> list[str]:
    """Return the keys of a dict of outputs, else the names of what makes them."""
    paths = keras.tree.flatten_with_path(front.output_structure)
    names = keras_internals.functional(front.model).output_names
    return [
        path[0] if len(path) == 1 and isinstance(path[0], str) else name
        for (path, _), name in zip(paths, names, strict=True)
    ]


def _check_dtypes(graph: Graph, outputs: list[Tensor]) -> None:
    for tensor, output in zip(graph.inputs, outputs, strict=True):
        text = {tensor.dtype, output.dtype} & {"string"} and tensor.dtype != output.dtype
        # A single image may be rounded; of several inputs, one is taken for another.
        rounded = len(outputs) > 1 and "float" in output.dtype and "float" not in tensor.dtype
        if text or rounded:
            raise ShapeError(
                f"Expected preprocessing that gives {tensor.dtype} for the input "
                f"{tensor.address!r} of {graph.model.name!r}. Received: {output.dtype} from "
                f"{output.address!r}."
            )


def _call_layers(
    graph: Graph, layers: list[keras.Layer], engine: Rebuild
) -> tuple[keras.KerasTensor, list[keras.KerasTensor]]:
    """Return an input like the model's own, and what the layers make of it."""
    if len(graph.inputs) != 1:
        raise ShapeError(
            f"Expected a model with one input to put layers before. Received: {graph.model.name!r} "
            f"with {len(graph.inputs)}: pass the preprocessing as a model with as many outputs."
        )
    first = graph.inputs[0]
    # Asked on a tensor that records nothing, before anything is called.
    spec = keras.KerasTensor(first.shape, first.dtype)
    for layer in layers:
        spec = layer.compute_output_spec(spec)
    _check_fit(graph, [tuple(spec.shape)])
    (inputs,) = engine.add_inputs([first])
    value = inputs
    for layer in layers:
        engine.names.claim(layer)
        value = layer(value, training=False) if isinstance(layer, _SETS_TRAINING) else layer(value)
    return inputs, [value]


def _pinned(step: Step) -> Step:
    """Return a step that does not put what comes after it into training mode."""
    if isinstance(step.operation, _SETS_TRAINING) and "training" not in step.kwargs:
        return replace(step, kwargs={**step.kwargs, "training": False})
    return step


def _layers(preprocessing: Any) -> list[keras.Layer]:
    layers = [preprocessing] if isinstance(preprocessing, keras.Layer) else preprocessing
    if not isinstance(layers, Sequence) or not all(isinstance(x, keras.Layer) for x in layers):
        raise NoGraphError(
            "Expected preprocessing as a functional model, a layer or a list of layers. Received: "
            f"{type(preprocessing).__name__}: {preprocessing!r}"
        )
    return list(layers)


def _check_fit(graph: Graph, shapes: Sequence[tuple]) -> None:
    if len(shapes) != len(graph.inputs):
        raise ShapeError(
            f"Expected preprocessing with {len(graph.inputs)} output(s), one for each input of "
            f"{graph.model.name!r}. Received: {len(shapes)}."
        )
    for tensor, shape in zip(graph.inputs, shapes, strict=True):
        if not may_agree(shape, tensor.shape):
            raise ShapeError(
                f"Expected preprocessing that gives {tensor.shape} for the input "
                f"{tensor.address!r} of {graph.model.name!r}. Received: one that gives {shape}."
            )
