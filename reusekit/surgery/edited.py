"""Edited models: new ones with layers put in, exchanged or taken out."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import keras

from reusekit.arguments import checked
from reusekit.errors import EditError
from reusekit.graph import Graph, read, resolve
from reusekit.graph.addresses import At
from reusekit.surgery.clones import twin_of, warn_of_lost_class
from reusekit.surgery.edits import Edit, Insert, Orders, Remove, Replace, check_ties, orders
from reusekit.surgery.engine import Rebuild, assemble
from reusekit.surgery.rewiring import Rewiring

Weights = Literal["share", "copy"]


@dataclass(frozen=True, eq=False)
class Edited:
    """An edited model, and where things went.

    Attributes:
        model: The edited model.
        moved: From each address of the old model to that of the tensor which now stands in its
            place: a replacement's output, or the input of what was removed. None where nothing does
            because nothing reads it any more.
    """

    model: keras.Model
    moved: Mapping[str, str | None]


@checked(EditError)
def edit(model: keras.Model, *edits: Edit, weights: Weights = "share") -> Edited:
    """Make several edits at once: validated as a whole, built once.

    Addresses are those of the model as it is given. The model itself is not changed; a refused edit
    leaves no trace. A nested model in which something is edited comes out inlined. Masks are where
    Keras would have put them, had the layers been called; one that you passed by hand stays.

    Args:
        model: A model with a functional graph.
        *edits: `Insert`, `Replace` and `Remove`. Several insertions at one tensor come in order.
        weights: "share" keeps the model's layers, so that training one model trains the other;
            "copy" makes the result of copies with equal weights.

    Returns:
        The edited model and where old addresses went. The model is a plain functional one, whatever
        the class of the one that was edited.

    Warns:
        UserWarning: The model's class has something of its own, which the result lacks.

    Raises:
        AddressError: An address means nothing in the model.
        EditError: There is no edit, or edits contradict one another, or one makes no sense there.
        ShapeError: A layer could not take what it would be fed; the message names the layer and
            both shapes.
        TieError: A layer would go while one that stays is tied to its weights.
        CopyError: `weights` is "copy", and a layer does not come back from its configuration.
        NoGraphError: The model has no functional graph.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dense(3, name="a")(x)
        >>> y = keras.layers.ReLU(name="relu")(y)
        >>> model = keras.Model(x, keras.layers.Dense(1, name="b")(y), name="m")
        >>> result = edit(
        ...     model,
        ...     Insert(keras.layers.Dropout(0.5, name="drop"), after="a"),
        ...     Replace("relu", keras.layers.ELU(name="elu")),
        ... )
        >>> [layer.name for layer in result.model.layers], result.moved["relu"]
        (['x', 'a', 'drop', 'elu', 'b'], 'elu')
    """
    if not edits:
        raise EditError("Expected at least one edit. Received: none.")
    graph = read(model)
    wanted = orders(graph, edits)
    check_ties(graph, wanted, copied=weights == "copy")
    rewired = Rewiring(graph, wanted)
    _check_names(rewired, wanted)
    if weights == "copy":
        edits = tuple(_by_address(graph, each) for each in edits)
        graph = read(twin_of(graph.model, "copy"))
        rewired = Rewiring(graph, orders(graph, edits))
    # A copy may have kept the class; what is built of it does not.
    warn_of_lost_class(read(model).model, "edited form")
    return _build(graph, rewired)


@checked(EditError)
def insert(
    model: keras.Model,
    layer: keras.Layer,
    *,
    after: At = None,
    before: At = None,
    weights: Weights = "share",
) -> keras.Model:
    """Put a layer into a model.

    Args:
        model: A model with a functional graph. It is not changed.
        layer: The layer.
        after: Where: all that reads the tensor at this address will read the layer's output. A
            layer that is called several times means after each of its calls; `layer@1` means one.
        before: Or where: the layer at this address will read the new layer's output, others not.
            With both, only what it reads of `after` goes through the new layer.
        weights: "share" or "copy", as for `edit`.

    Returns:
        The new model, a plain functional one. Use `edit` to learn where addresses went.

    Raises:
        EditError: Neither `after` nor `before`, or the layer has several inputs.
        SurgeryError: As for `edit`.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(2, name="a")(x), name="m")
        >>> edited = insert(model, keras.layers.Dropout(0.1, name="drop"), before="a")
        >>> [layer.name for layer in edited.layers]
        ['x', 'drop', 'a']
    """
    return edit(model, Insert(layer, after=after, before=before), weights=weights).model


@checked(EditError)
def replace(
    model: keras.Model, at: At, layer: keras.Layer, *, weights: Weights = "share"
) -> keras.Model:
    """Call a layer in the place of another.

    Args:
        model: A model with a functional graph. It is not changed.
        at: Address of a layer or nested model: all its calls, or one of them (`layer@1`).
        layer: The layer to call in its place, on the same tensors, with those of the recorded call
            arguments that it takes.
        weights: "share" or "copy", as for `edit`.

    Returns:
        The new model, a plain functional one.

    Raises:
        EditError: The layer has another number of outputs, or a name that is taken.
        SurgeryError: As for `edit`.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dense(2, name="a")(x)
        >>> model = keras.Model(x, keras.layers.Dense(5, name="head")(y), name="m")
        >>> replace(model, "head", keras.layers.Dense(3, name="head")).output_shape
        (None, 3)
    """
    return edit(model, Replace(at, layer), weights=weights).model


@checked(EditError)
def remove(model: keras.Model, at: At, *, weights: Weights = "share") -> keras.Model:
    """Take a layer out of a model, so that what read its output reads its input.

    Args:
        model: A model with a functional graph. It is not changed.
        at: Address of a layer or nested model with one input: all its calls, or one (`layer@1`).
        weights: "share" or "copy", as for `edit`.

    Returns:
        The new model, a plain functional one.

    Raises:
        EditError: The layer has several inputs or outputs.
        SurgeryError: As for `edit`.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dropout(0.5, name="drop")(x)
        >>> model = keras.Model(x, keras.layers.Dense(2, name="a")(y), name="m")
        >>> [layer.name for layer in remove(model, "drop").layers]
        ['x', 'a']
    """
    return edit(model, Remove(at), weights=weights).model


def _build(graph: Graph, rewired: Rewiring) -> Edited:
    edited = dataclasses.replace(graph, masks=rewired.masks())
    engine = Rebuild(
        {tensor: tensor.keras_tensor for tensor in graph.inputs}, changed=rewired.changed
    )
    engine.reserve(graph, rewired.whole)
    for tensor in graph.inputs:
        engine.names.claim(graph.maker[tensor].operation)
    engine.run(edited, rewired.steps)
    inputs = keras.tree.map_structure(engine.values.get, graph.input_structure)
    outputs = engine.outputs(graph, rewired.now)
    model = assemble(inputs, outputs, graph.model.name, len(rewired.steps), graph.model.trainable)
    return Edited(model, _moved(graph, rewired, engine, read(model)))


def _moved(
    graph: Graph, rewired: Rewiring, engine: Rebuild, result: Graph
) -> dict[str, str | None]:
    addresses = {id(seen): tensor.address for tensor, seen in result.surface.items()}
    moved: dict[str, str | None] = {}
    for address, tensor in graph.names.items():
        # A layer inserted after a tensor does not replace it: the tensor itself is still there.
        here = engine.values.get(tensor)
        value = here if here is not None else engine.values.get(rewired.now(tensor))
        # Inside a nested model that stayed whole, everything is where it was.
        inside = address if value is None and address in result.names else None
        moved[address] = addresses.get(id(value), inside)
    return moved


def _check_names(rewired: Rewiring, wanted: Orders) -> None:
    """Refuse a new layer with the name of another that stays."""
    new = {id(layer): layer for layers in wanted.after.values() for layer in layers}
    new |= {id(layer): layer for layers in wanted.before.values() for layer in layers}
    new |= {id(layer): layer for layer in wanted.replaced.values()}
    names: dict[str, Any] = {}
    for tensor in rewired.graph.inputs:
        operation = rewired.graph.maker[tensor].operation
        names[operation.name] = operation
    for step in rewired.steps:
        other = names.setdefault(step.operation.name, step.operation)
        clash = other is not step.operation and (id(other) in new or id(step.operation) in new)
        if clash:
            raise EditError(
                f"Expected a new layer with a name of its own. Received: {other.name!r}, which "
                "another layer of the result has: pass name= when making it."
            )


def _by_address(graph: Graph, each: Edit) -> Edit:
    """Return an edit that names its tensors by addresses, which hold in a clone as well."""

    def address(at: Any) -> Any:
        if at is None or isinstance(at, str):
            return at
        return [tensor.address for tensor in resolve(graph, at)]

    if isinstance(each, Insert):
        return dataclasses.replace(each, after=address(each.after), before=address(each.before))
    return dataclasses.replace(each, at=address(each.at))
