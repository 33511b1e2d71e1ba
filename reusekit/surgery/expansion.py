"""Composite layers opened into nested models of their inner layers."""

import inspect
from collections.abc import Sequence
from typing import Any

import keras

from reusekit.arguments import checked
from reusekit.errors import EditError, SurgeryError, reason
from reusekit.graph import Call, Graph, Tensor, keras_internals, read
from reusekit.graph.addresses import At
from reusekit.graph.tracing import fed_dtype, trace
from reusekit.surgery.certificate import Snapshot, certify
from reusekit.surgery.clones import warn_of_lost_class
from reusekit.surgery.copies import Builder
from reusekit.surgery.edits import Remove, orders
from reusekit.surgery.engine import Names, assemble, singleton


@checked(SurgeryError)
def expand(model: keras.Model, at: At, x: Any = None) -> keras.Model:
    """Open composite layers, so that there are addresses inside them.

    A composite layer is one whose `call` calls other layers: KerasHub's ViTEncoder, a residual
    block, a transformer block of your own. In the result a nested model of the same name stands in
    its place, made of the calls that its `call` makes on symbolic tensors. An encoder's blocks then
    have addresses such as `encoder/block_1`, to cut at, extract and edit. To open a block in turn,
    expand the result at that address.

    The weights are those of the model. The result is compared with it on random inputs before it is
    returned: in inference, and in training with equal seeds and other weights.

    `training` reaches the inner layers as in any nested model: they get what the model is called
    with, so that dropout drops in `fit` and not in `predict`. A layer whose Python code branches on
    `training`, or that runs an inner layer always in the same mode, gives something else in
    training than its traced calls, and is refused. Arguments other than tensors keep the values
    they were called with.

    To be saved and loaded, or cloned, the result needs each inner layer to come back from its own
    configuration. KerasHub's ViT blocks do not; what is inside them, expanded in turn, does.

    The model is not changed, except that Keras keeps, on each layer that is called again, a record
    of each call for as long as the layer lives; on inner layers of what is expanded this is their
    first. A refusal leaves no record.

    Args:
        model: A model with a functional graph.
        at: Address of a layer, or a list of addresses. A layer that is called several times is
            expanded at all of its calls, which must pass the same arguments.
        x: Inputs to compare on, in the model's structure; None makes random ones.

    Returns:
        The model with these layers open; a functional one, or a Sequential for a Sequential.

    Warns:
        UserWarning: The model's class is not kept.

    Raises:
        AddressError: An address means nothing in the model.
        EditError: A layer holds no other layers, or a nested model of them would not do the same:
            it has weights or a regulariser of its own, or makes masks, or its `call` does not run
            on symbolic tensors.
        CertificateError: The result would give something else than the model: in training, or once
            the weights have changed.
        NoGraphError: The model has no functional graph.

    Example:
        >>> class Block(keras.layers.Layer):
        ...     def __init__(self, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.dense = keras.layers.Dense(4, name="dense")
        ...         self.drop = keras.layers.Dropout(0.1, name="drop")
        ...     def call(self, x):
        ...         return x + self.drop(self.dense(x))
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(1, name="head")(Block(name="block")(x)))
        >>> opened = expand(model, "block")
        >>> [tensor.address for tensor in read(opened).tensors][:3]
        ['x', 'block/dense', 'block/drop']
    """
    graph = read(model)
    before = Snapshot.of(model)
    targets = _targets(graph, at)
    operations = {id(call.operation): call.operation for call in graph.calls}
    operations |= {id(layer): layer for layer in keras_internals.all_layers(model)}
    with keras_internals.forgetting(operations.values(), only_after_an_error=True):
        nested = {id(calls[0].operation): _nested(graph, calls) for calls in targets}
        opened = {s.operation for calls in targets for call in calls for s in call.scopes}
        _check_sequentials((model, *opened), nested)
        expanded = Builder(_kept(model, opened) | nested).build(model)
        certify(graph, [expanded], before, x)
        certify(graph, [expanded], before, x, training=True, state=_other_weights(graph))
    for whole in (model, *opened):
        warn_of_lost_class(whole, "expansion")
    return expanded


def _targets(graph: Graph, at: Any) -> list[list[Call]]:
    """Return all calls of each layer that is meant."""
    layers_at = at if isinstance(at, list | tuple) else [at]
    if not layers_at:
        raise EditError("Expected the address of at least one layer. Received: none.")
    # A removal is told by the same addresses.
    steps = orders(graph, [Remove(one) for one in layers_at]).removed
    for step in steps:
        _check_composite(step.operation, step.address)
    layers = {id(step.operation) for step in steps}
    found: dict[int, list[Call]] = {}
    for call in graph.calls:
        if id(call.operation) in layers:
            found.setdefault(id(call.operation), []).append(call)
    for call in (call for calls in found.values() for call in calls):
        if call not in steps:
            raise EditError(
                f"Expected all calls of a layer to be expanded together. Received: some without "
                f"{call.address!r}: pass {call.operation.name!r}."
            )
    return list(found.values())


def _check_composite(operation: Any, address: str) -> None:
    if keras_internals.runs_its_graph(operation):
        raise EditError(
            f"Expected a layer to expand. Received: {address!r}, which is a nested model: what is "
            f"in it has addresses already, such as '{address}/...'."
        )
    inner = isinstance(operation, keras.Layer) and keras_internals.direct_layers(operation)
    if not inner:
        raise EditError(
            f"Expected a layer made of other layers. Received: {address!r} of class "
            f"{type(operation).__name__}, which holds none."
        )


def _nested(graph: Graph, calls: Sequence[Call]) -> Any:
    """Return the nested model that replaces a layer, made of the calls inside it."""
    call, layer = calls[0], calls[0].operation
    pattern = _pattern(call)
    for other in calls[1:]:
        if _pattern(other) != pattern:
            raise _refusal(
                call, f"the call {other.address!r} passes other arguments or other shapes"
            )
    _check_layer(graph, calls)
    names = Names()
    for inner in keras_internals.direct_layers(layer):
        names.claim(inner)
    try:
        fed = {
            tensor: keras.Input(
                batch_shape=tensor.shape, dtype=fed_dtype(layer, tensor), name=names.unique(name)
            )
            for tensor, name in _parameters(call).items()
        }
        outputs = trace(layer, call.args, call.kwargs, fed)
        inputs = singleton(list(fed.values()))
        # As many calls as there are layers inside, and as much again for operations.
        room = 10 * len(keras_internals.all_layers(layer))
        model = assemble(inputs, outputs, layer.name, room, layer.trainable)
    except Exception as error:
        raise _refusal(
            call,
            f"Keras says on symbolic tensors: {reason(error).rstrip('.')}",
        ) from error
    model.supports_masking = layer.supports_masking
    _check_weights(call, model)
    plain = len(call.args) == 1 and isinstance(call.args[0], Tensor)
    return model if plain and set(call.kwargs) <= {"training"} else _Regrouping(model)


class _Regrouping:
    """A nested model that is called as the layer was, with tensors under several parameters."""

    def __init__(self, model: keras.Model):
        self._model = model
        self.name = model.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        training = {"training": kwargs.pop("training")} if "training" in kwargs else {}
        leaves = keras.tree.flatten((args, kwargs))
        tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)}
        return self._model(singleton(list(tensors.values())), **training)


def _check_sequentials(models: Sequence[keras.Model], nested: dict[int, Any]) -> None:
    """Refuse a nested model of several tensors in a Sequential."""
    for model in models:
        for layer in model.layers if isinstance(model, keras.Sequential) else ():
            if isinstance(nested.get(id(layer)), _Regrouping):
                raise EditError(
                    f"Expected layers of the Sequential {model.name!r} that take one tensor. "
                    f"Received: {layer.name!r}, which takes a mask as well: expand it in what "
                    "flatten(model) gives."
                )


def _kept(model: keras.Model, opened: set[keras.Model]) -> dict[int, Any]:
    """Return every layer and operation that is called again as it is, by id.

    Nested models around what is expanded are not among them: these are built again.
    """
    return {
        id(step.operation): step.operation
        for whole in (model, *opened)
        for call in read(whole).calls
        for step in call.path
        if step.operation not in opened
    }


def _parameters(call: Call) -> dict[Tensor, str]:
    """Return a call's tensors, each once, and the parameters they are passed as."""
    order = keras_internals.call_arguments(call.operation)
    given = [*zip(order, call.args, strict=False), *sorted(call.kwargs.items())]
    found: dict[Tensor, str] = {}
    for name, value in given:
        for leaf in keras.tree.flatten(value):
            if isinstance(leaf, Tensor):
                found.setdefault(leaf, name)
    return found


def _pattern(call: Call) -> str:
    """Return the pattern that calls of one nested model have in common."""
    tensors = list(_parameters(call))

    def spell(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return tensors.index(leaf), leaf.shape, leaf.dtype
        return repr(leaf)

    kwargs = {name: value for name, value in call.kwargs.items() if name != "training"}
    return repr(keras.tree.map_structure(spell, (call.args, kwargs)))


def _check_layer(graph: Graph, calls: Sequence[Call]) -> None:
    """Check what can be seen of a layer without running its code."""
    call, layer = calls[0], calls[0].operation
    if layer.activity_regularizer is not None:
        raise _refusal(call, "an activity regulariser of its own would be lost")
    training = inspect.signature(layer.call).parameters.get("training")
    if training is not None and training.default is True:
        raise _refusal(call, "the call takes training=True where nothing is said")
    for each in calls:
        masked = [tensor for tensor in each.inputs if tensor in graph.masks]
        own_mask = type(layer).compute_mask is not keras.Layer.compute_mask
        if each.masks or (masked and own_mask):
            tensors = masked or [tensor for tensor, _ in each.masks]
            raise _refusal(
                each,
                f"the code has to do with the mask that {tensors[0].address!r} carries",
            )


def _check_weights(call: Call, model: keras.Model) -> None:
    """Refuse a layer with a weight that no layer in its call holds."""
    reached = {id(variable) for variable in model.variables}
    lost = [v.path for v in call.operation.variables if id(v) not in reached]
    if lost:
        listed = ", ".join(map(repr, lost))
        raise _refusal(call, f"no layer that its call calls holds the weights {listed}")


def _other_weights(graph: Graph) -> list[tuple[keras.Variable, Any]]:
    """Return another value for each weight, to find a value that a trace took for good."""
    weights = {id(v): v for call in graph.calls for v in call.variables if "float" in v.dtype}
    return [(v, keras.ops.cast(1.25 * v + 0.125, v.dtype)) for v in weights.values()]


def _refusal(call: Call, reason: str) -> EditError:
    return EditError(
        f"Expected {call.address!r} of class {type(call.operation).__name__} to do nothing but "
        f"call the layers it holds. Received: one of which {reason}. Cut before or after it."
    )
