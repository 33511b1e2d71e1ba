"""The calls to make from some tensors of a graph to others, chosen before any is made.

Nested models stay whole where nothing inside them is cut, fed or wanted; before a cut inside one it
stays nested and ends there; anything else is called layer by layer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import keras

from reusekit.errors import DisconnectedError
from reusekit.graph import Call, Graph, Scope, Step, Tensor, ancestors, read, tensors_in
from reusekit.graph.masks import HiddenMask
from reusekit.surgery.engine import Rebuild, assemble, fresh, singleton


def steps_between(
    graph: Graph,
    calls: Iterable[Call],
    fed: Iterable[Tensor],
    wanted: Iterable[Tensor],
    inline: bool = False,
) -> list[Step]:
    """Return the steps from some tensors to others, in order.

    Args:
        graph: The graph that the calls belong to.
        calls: Calls to make, in topological order. Those of model inputs are passed over.
        fed: Tensors that are there before the first call.
        wanted: Tensors that must be there after the last.
        inline: Whether to call the layers of nested models one by one even where the nested model
            could stay whole.

    Returns:
        The steps: single calls, and nested models called whole.

    Raises:
        DisconnectedError: A call, or the result, needs a tensor that is neither fed nor made.
    """
    calls = [call for call in calls if not call.is_input]
    fed, wanted = set(fed), list(wanted)
    nested: dict[Scope, Scope] = {}
    if not inline and any(call.scopes for call in calls):
        nested = {scope: scope for scope in _whole_scopes(graph, calls, fed, set(wanted))}
        nested |= _beginnings(graph, calls, fed, set(wanted), nested)
    steps: list[Step] = _grouped(calls, nested) if nested else [*calls]
    hidden = [step for step in steps if isinstance(step.operation, HiddenMask)]
    _check_connected(graph, steps, fed, wanted)
    _check_not_hidden(graph, hidden, wanted)
    return [step for step in steps if step not in hidden]


def _grouped(calls: list[Call], nested: Mapping[Scope, Scope]) -> list[Step]:
    """Return the calls, those inside a nested model that stays nested as one step."""
    steps: list[Step] = []
    for call in calls:
        step = next((nested[scope] for scope in call.scopes if scope in nested), call)
        if not steps or steps[-1] is not step:
            steps.append(step)
    return steps


def surface(graph: Graph) -> list[Step]:
    """Return the calls of a model as the model itself sees them: nested models whole."""
    steps: list[Step] = []
    for call in graph.calls:
        step = call.scopes[0] if call.scopes else call
        if step in graph.own_steps and not call.is_input and (not steps or steps[-1] is not step):
            steps.append(step)
    return steps


def _whole_scopes(
    graph: Graph, calls: list[Call], fed: set[Tensor], wanted: set[Tensor]
) -> set[Scope]:
    """Return the nested models that may be called as they are."""
    members: dict[Scope, int] = {}
    for call in graph.calls:
        for scope in call.scopes:
            members[scope] = members.get(scope, 0) + 1
    taken: dict[Scope, int] = {}
    exposed: set[Scope] = set(graph.leaking)
    for call in calls:
        outside = {tensor for tensor in call.outputs if tensor in wanted}
        inside_fed = any(tensor in fed for tensor in call.outputs)
        for scope in call.scopes:
            taken[scope] = taken.get(scope, 0) + 1
            if inside_fed or not outside.issubset(scope.outputs):
                exposed.add(scope)
    available = fed | {tensor for call in calls for tensor in call.outputs}
    whole = {
        scope
        for scope, count in taken.items()
        if count == members[scope] and scope not in exposed and available.issuperset(scope.reads)
    }
    return _without_shared_layers(calls, whole)


def _beginnings(
    graph: Graph,
    calls: list[Call],
    fed: set[Tensor],
    wanted: set[Tensor],
    whole: Mapping[Scope, Scope],
) -> dict[Scope, Scope]:
    """Map nested models that are cut inside to nested models that end there.

    Calls before a cut stay nested, so that addresses inside it stay good.
    """
    inside: dict[Scope, list[Call]] = {}
    for call in calls:
        if call.scopes and whole.keys().isdisjoint(call.scopes[:1]):
            inside.setdefault(call.scopes[0], []).append(call)
    available = fed | {tensor for call in calls for tensor in call.outputs}
    found: dict[Scope, Scope] = {}
    for scope, members in inside.items():
        among = set(members)
        others = [call for call in calls if call not in among]
        operations = {id(call.operation) for call in members} | {id(scope.operation)}
        elsewhere = {id(step.operation) for call in others for step in call.path}
        made = {tensor for call in members for tensor in call.outputs}
        read_inside = {tensor for call in members for tensor in call.reads}
        if (
            scope in graph.leaking
            or not operations.isdisjoint(elsewhere)
            or not made.isdisjoint(fed)
            or any(scope in graph.maker[t].scopes and t not in made for t in read_inside)
            or not available.issuperset(scope.reads)
            # The masks of recorded calls alone are known.
            or tensors_in(scope.kwargs)
            or not made.isdisjoint(graph.masks)
        ):
            continue
        read_outside = {tensor for call in others for tensor in call.reads}
        ends = [t for call in members for t in call.outputs if t in wanted or t in read_outside]
        beginning = _beginning(scope, ends)
        if beginning is not None:
            found[scope] = beginning
    return found


def _beginning(scope: Scope, ends: list[Tensor]) -> Scope | None:
    """Return a nested model's call up to some inner tensors; None where its graph lacks them."""
    graph = read(scope.operation)
    names = [tensor.address.removeprefix(f"{scope.address}/") for tensor in ends]
    inner = [graph.names[name] for name in names if name in graph.names]
    if not inner or len(inner) < len(ends) or not all(graph.maker[t].is_recorded for t in inner):
        return None
    engine = Rebuild({tensor: tensor.keras_tensor for tensor in graph.inputs})
    engine.run(graph, steps_between(graph, ancestors(graph, inner), graph.inputs, inner))
    model = assemble(
        keras.tree.map_structure(engine.values.get, graph.input_structure),
        singleton([engine.values[tensor] for tensor in inner]),
        scope.operation.name,
        len(graph.calls),
        scope.operation.trainable,
    )
    model.supports_masking = scope.operation.supports_masking
    keras_tensors = tuple(fresh(tensor.keras_tensor, tensor.shape) for tensor in ends)
    return replace(scope, operation=model, outputs=tuple(ends), keras_tensors=keras_tensors)


def _without_shared_layers(calls: list[Call], whole: set[Scope]) -> set[Scope]:
    """Return the nested models that share no layer with their surroundings.

    Keras cannot load a model in which a nested model shares a layer with what is outside it.
    """
    settled = False
    while not settled:
        homes: dict[int, set[int | None]] = {}
        for call in calls:
            homes.setdefault(id(call.operation), set()).add(_home(call, whole))
        shared = {
            scope for call in calls if len(homes[id(call.operation)]) > 1 for scope in call.scopes
        }
        settled = whole.isdisjoint(shared)
        whole = whole - shared
    return whole


def _home(call: Call, whole: set[Scope]) -> int | None:
    """Return the nested model in which a layer would be called, or None."""
    return next((id(scope.operation) for scope in call.scopes if scope in whole), None)


def _check_connected(
    graph: Graph, steps: list[Step], fed: set[Tensor], wanted: Iterable[Tensor]
) -> None:
    known = set(fed)
    for step in steps:
        if not known.issuperset(step.reads):
            missing = [tensor for tensor in step.reads if tensor not in known]
            raise DisconnectedError(
                f"Expected every tensor that {step.address!r} of model {graph.model.name!r} reads "
                f"to be fed or computed. Received: {_listed(missing)}, of which that is missing. "
                "Name these as inputs too, or cut elsewhere."
            )
        known.update(step.outputs)
    missing = [tensor for tensor in wanted if tensor not in known]
    if missing:
        raise DisconnectedError(
            f"Expected the result to be connected to its inputs. Received: {_listed(missing)} of "
            f"model {graph.model.name!r}, which is not computed from them. Name inputs from which "
            "it is."
        )


def _check_not_hidden(graph: Graph, hidden: list[Step], wanted: list[Tensor]) -> None:
    """Refuse a wanted mask that only a hidden layer can make."""
    for step in hidden:
        if step.outputs[0] not in wanted:
            continue
        layer = step.address.removesuffix("/mask")
        readers = ", ".join(repr(call.address) for call in graph.readers[step.outputs[0]])
        raise DisconnectedError(
            "Expected the masks that cross a cut to be computed by calls that Keras recorded. "
            f"Received: that of {layer!r} in model {graph.model.name!r}, which is set by the layer "
            f"when it runs and read by {readers}. Cut before {layer!r} or after what reads its "
            "mask, or have the layer's class compute it in compute_mask."
        )


def _listed(tensors: Iterable[Tensor]) -> str:
    return ", ".join(repr(tensor.address) for tensor in tensors)
