"""The three edits, and the calls of a model that they mean."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import keras

from reusekit.arguments import checked
from reusekit.errors import EditError, TieError, UnknownAddressError, nearest
from reusekit.graph import Call, Graph, Scope, Step, Tensor, keras_internals, resolve, tensors_in
from reusekit.graph.addresses import At, without_call_number


@checked(EditError)
@dataclass(frozen=True)
class Insert:
    """Puts a layer after a tensor, for all that reads it, or before a call, for that call alone.

    With both, the layer is put on the one edge between the tensor and the call: before one of the
    tensors that an `Add` is called on.

    Attributes:
        layer: The layer to insert.
        after: Address of a tensor, or of a layer: then after each of its calls.
        before: Address of a layer or nested model: then before each of its calls.
    """

    layer: keras.Layer
    after: At = None
    before: At = None

    def __post_init__(self):
        if self.after is None and self.before is None:
            raise EditError("Expected after=, before= or both. Received: none.")


@checked(EditError)
@dataclass(frozen=True)
class Replace:
    """Calls a layer in the place of another.

    Attributes:
        at: Address of the layer or nested model to replace: all its calls, or one (`layer@1`).
        layer: The layer to call in its place, on the same tensors.
    """

    at: At
    layer: keras.Layer


@checked(EditError)
@dataclass(frozen=True)
class Remove:
    """Takes a layer out, so that what read its output reads its input.

    Attributes:
        at: Address of a layer or nested model with one input: all its calls, or one (`layer@1`).
    """

    at: At


Edit = Insert | Replace | Remove


@dataclass(frozen=True, eq=False)
class Orders:
    """The meaning of edits for the calls of one graph.

    Attributes:
        after: From each tensor to the layers to put after it, in order.
        before: From each step to the layers to put before it, in order.
        replaced: From each step to the layer to call in its place.
        removed: The steps to take out.
        edges: From a step and a layer to put before it to the one tensor that it is put after.
    """

    after: dict[Tensor, list[keras.Layer]]
    before: dict[Step, list[keras.Layer]]
    replaced: dict[Step, keras.Layer]
    removed: set[Step]
    edges: dict[tuple[Step, keras.Layer], Tensor] = field(default_factory=dict)

    def opened(self, graph: Graph) -> set[Scope]:
        """Return the nested models inside which something is to be done, at all of their calls."""
        tensors = set(self.after)
        steps = {*self.before, *self.replaced, *self.removed}
        touched: set[int] = set()
        for call in graph.calls:
            for depth, scope in enumerate(call.scopes):
                inside = {call, *call.scopes[depth + 1 :]} & steps
                made = {tensor for tensor in call.outputs if tensor in tensors}
                if inside or made - set(scope.outputs):
                    touched.add(id(scope.operation))
        return {
            scope for call in graph.calls for scope in call.scopes if id(scope.operation) in touched
        }


def orders(graph: Graph, edits: Iterable[Edit]) -> Orders:
    """Find the calls that edits mean, and see to it that they do not contradict one another.

    Raises:
        AddressError: An address means nothing in the model.
        EditError: Two edits contradict each other.
    """
    found = Orders({}, {}, {}, set())
    steps = _steps_by_address(graph)
    for edit in edits:
        match edit:
            case Insert(after=None):
                for step in _steps(graph, steps, edit.before):
                    found.before.setdefault(step, []).append(edit.layer)
            case Insert() if edit.before is not None:
                (tensor, *others) = _insertion_tensors(graph, steps, edit.after)
                for step in _steps(graph, steps, edit.before):
                    if others or tensor not in tensors_in((step.args, step.kwargs)):
                        raise EditError(
                            f"Expected after= to be one of the tensors that {step.address!r} is "
                            f"called on. Received: {edit.after!r}."
                        )
                    found.before.setdefault(step, []).append(edit.layer)
                    found.edges[step, edit.layer] = tensor
            case Insert():
                for tensor in _insertion_tensors(graph, steps, edit.after):
                    found.after.setdefault(tensor, []).append(edit.layer)
            case Replace():
                for step in _steps(graph, steps, edit.at):
                    if step in found.replaced:
                        raise EditError(
                            f"Expected one replacement of {step.address!r}. Received: two. Leave "
                            "one of them out."
                        )
                    found.replaced[step] = edit.layer
            case Remove():
                found.removed.update(_steps(graph, steps, edit.at))
            case _:
                raise EditError(
                    f"Expected Insert, Replace or Remove. Received: {type(edit).__name__}: {edit!r}"
                )
    for step in found.removed:
        if step in found.replaced or step in found.before or found.after.keys() & {*step.outputs}:
            raise EditError(
                f"Expected {step.address!r} to be removed or kept. Received: edits for both. Leave "
                "one of them out."
            )
    return found


def _steps_by_address(graph: Graph) -> dict[str, list[Step]]:
    """Map each address, with or without a number, to the calls it means."""
    found: dict[str, dict[Step, None]] = {}
    for call in graph.calls:
        for step in call.path:
            for name in {step.address, without_call_number(step.address)}:
                found.setdefault(name, {})[step] = None
    return {name: list(steps) for name, steps in found.items()}


def _steps(graph: Graph, steps: dict[str, list[Step]], at: Any) -> list[Step]:
    if isinstance(at, str) and at in steps:
        return _editable(steps[at])
    if isinstance(at, str) and at not in graph.names:
        raise UnknownAddressError(
            f"Expected the address of a layer of model {graph.model.name!r}. Received: {at!r}. "
            f"{nearest(at, steps)}"
        )
    return _editable([graph.maker[tensor] for tensor in resolve(graph, at)])


def _editable(steps: list[Step]) -> list[Step]:
    for step in steps:
        if not isinstance(step, Scope) and step.is_input:
            raise EditError(
                f"Expected a layer. Received: the model input {step.address!r}: insert after it."
            )
    return steps


def _insertion_tensors(graph: Graph, steps: dict[str, list[Step]], at: Any) -> list[Tensor]:
    """Return the tensors after which to insert, one for each call of a layer."""
    if isinstance(at, str) and len(steps.get(at, ())) > 1:
        at = [output for step in steps[at] for output in step.outputs]
    return resolve(graph, at)


# --- ties ---------------------------------------------------------------------------------------


def check_ties(graph: Graph, wanted: Orders, copied: bool) -> None:
    """Raise TieError where edits would leave two weights of one.

    Args:
        graph: The model to edit.
        wanted: The edits.
        copied: Whether the result is to have weights of its own.

    Raises:
        TieError: A layer would go while one that stays is tied to its weights, or a new layer is
            tied to one that is to be copied.
    """
    if copied:
        _check_new(graph, wanted)
    going = {*wanted.replaced, *wanted.removed}
    if not going:
        return
    leaving = dict.fromkeys(call for call in graph.calls if not going.isdisjoint(call.path))
    staying = {id(call.operation): call for call in graph.calls if call not in leaving}
    lost = {id(call.operation): call for call in leaving if id(call.operation) not in staying}
    weights = {id(v): call for call in lost.values() for v in call.variables}
    for call in graph.calls:
        tied = [weights[id(v)] for v in call.given if id(v) in weights]
        if tied and call not in leaving:
            raise TieError(_parted(graph, tied[0], call))
    for call in staying.values():
        for inner in _inner_layers(call.operation):
            if id(inner) in lost:
                raise TieError(_parted(graph, lost[id(inner)], call))


def _parted(graph: Graph, lost: Call, kept: Call) -> str:
    return (
        f"Expected an edit that keeps {lost.address!r} of model {graph.model.name!r}. Received: "
        f"one after which {kept.address!r}, tied to its weights, would keep the old ones. Edit "
        f"{kept.address!r} as well, in the "
        "same rk.edit."
    )


def _check_new(graph: Graph, wanted: Orders) -> None:
    own = {id(call.operation): call for call in graph.calls}
    lists = (*wanted.after.values(), *wanted.before.values(), wanted.replaced.values())
    for layer in (layer for layers in lists for layer in layers):
        for inner in _inner_layers(layer):
            if id(inner) in own:
                raise TieError(
                    f"Expected weights='share' for {layer.name!r}, which is tied to {inner.name!r} "
                    f"of model {graph.model.name!r} and not to the copy that the result would "
                    "have. Received: weights='copy'."
                )


def _inner_layers(operation: Any) -> list[keras.Layer]:
    if not isinstance(operation, keras.Layer):
        return []
    return keras_internals.all_layers(operation)[1:]
