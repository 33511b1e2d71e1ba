"""The one engine: calls of a graph made again, on other tensors.

Every operation of this room is a plan for it. It works in three steps that do not mix:

1. `plan` chooses what to call: nested models stay whole where nothing inside them is cut, fed or
   wanted; before a cut inside one it stays nested and ends there; anything else is called layer by
   layer.
2. `plan` then checks that each call finds all it reads. A refused plan has touched nothing.
3. `Rebuild.run` calls. Where a call's tensors are the source's own, the source's result serves and
   nothing is called. Where they have the same shapes, the call is recorded without running the
   layer. Only where shapes differ is the layer really called.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import keras

from reusekit.errors import DisconnectedError
from reusekit.graph import Call, Graph, Scope, Tensor, ancestors, keras_internals, read
from reusekit.graph.masks import HiddenMask, with_found_mask
from reusekit.graph.nesting import HandedOn
from reusekit.graph.variables import Variables
from reusekit.surgery.assembling import assemble, singleton
from reusekit.surgery.calling import Step, call_step, fill
from reusekit.surgery.masking import with_mask
from reusekit.surgery.names import Names


def plan(
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
    """Nested models that may be called as they are."""
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
        if count == members[scope] and scope not in exposed and _tensors(scope.args) <= available
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

    What comes before a cut stays nested, so that addresses inside it stay good.
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
        elsewhere = {id(each) for c in others for each in (c.operation, *_operations(c.scopes))}
        made = {tensor for call in members for tensor in call.outputs}
        read_inside = {tensor for call in members for tensor in call.reads}
        if (
            scope in graph.leaking
            or not operations.isdisjoint(elsewhere)
            or not made.isdisjoint(fed)
            or any(scope in graph.maker[t].scopes and t not in made for t in read_inside)
            or not _tensors(scope.args) <= available
            # What masks do is known of the calls that were recorded.
            or _tensors(scope.kwargs)
            or not made.isdisjoint(graph.masks)
        ):
            continue
        read_outside = {tensor for call in others for tensor in call.reads}
        ends = [t for call in members for t in call.outputs if t in wanted or t in read_outside]
        beginning = _beginning(scope, ends)
        if beginning is not None:
            found[scope] = beginning
    return found


def _operations(scopes: Iterable[Scope]) -> list[Any]:
    return [scope.operation for scope in scopes]


def _beginning(scope: Scope, ends: list[Tensor]) -> Scope | None:
    """Return a nested model's call up to some inner tensors; None where its graph lacks them."""
    graph = read(scope.operation)
    names = [tensor.address.removeprefix(f"{scope.address}/") for tensor in ends]
    inner = [graph.names[name] for name in names if name in graph.names]
    if not inner or len(inner) < len(ends) or not all(graph.maker[t].is_recorded for t in inner):
        return None
    engine = Rebuild({tensor: tensor.source for tensor in graph.inputs})
    engine.run(graph, plan(graph, ancestors(graph, inner), graph.inputs, inner))
    model = assemble(
        keras.tree.map_structure(engine.values.get, graph.input_structure),
        singleton([engine.values[tensor] for tensor in inner]),
        scope.operation.name,
        len(graph.calls),
        scope.operation.trainable,
    )
    model.supports_masking = scope.operation.supports_masking
    sources = tuple(_fresh(tensor.source, tensor.shape) for tensor in ends)
    return replace(scope, operation=model, outputs=tuple(ends), sources=sources)


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


def _tensors(structure: Any) -> set[Tensor]:
    return {leaf for leaf in keras.tree.flatten(structure) if isinstance(leaf, Tensor)}


def _reads(step: Step) -> Iterable[Tensor]:
    return step.reads if isinstance(step, Call) else _tensors(step.args)


def _check_connected(
    graph: Graph, steps: list[Step], fed: set[Tensor], wanted: Iterable[Tensor]
) -> None:
    known = set(fed)
    for step in steps:
        if not known.issuperset(_reads(step)):
            missing = [tensor for tensor in _reads(step) if tensor not in known]
            raise DisconnectedError(
                f"Expected every tensor that {step.address!r} of model {graph.model.name!r} reads "
                f"to be fed or computed, missing {_listed(missing)}."
            )
        known.update(step.outputs)
    missing = [tensor for tensor in wanted if tensor not in known]
    if missing:
        raise DisconnectedError(
            f"Expected the result to be connected to its inputs, but {_listed(missing)} of model "
            f"{graph.model.name!r} is not computed from them."
        )


def _check_not_hidden(graph: Graph, hidden: list[Step], wanted: list[Tensor]) -> None:
    """Refuse a wanted mask that only a hidden layer can make."""
    for step in hidden:
        if step.outputs[0] not in wanted:
            continue
        layer = step.address.removesuffix("/mask")
        readers = ", ".join(repr(call.address) for call in graph.readers[step.outputs[0]])
        raise DisconnectedError(
            f"Expected the masks that cross a cut to be computed by calls that Keras recorded, but "
            f"that of {layer!r} in model {graph.model.name!r} is set by the layer when it runs and "
            f"read by {readers}. Cut before {layer!r} or after what reads its mask, or have the "
            "layer's class compute it in compute_mask."
        )


def _listed(tensors: Iterable[Tensor]) -> str:
    return ", ".join(repr(tensor.address) for tensor in tensors)


class Rebuild:
    """Makes a graph's calls on new tensors. One object for each model that is built.

    Args:
        values: What is fed, to begin with.
        copies: From the id of an operation or variable to the one to use in its place, for a model
            that is to have layers of its own. Copies of further variables are added to it.
        variables: Those of the whole model, where this is a nested one of it.
        changed: Steps of an edited graph that are fed other tensors than in the source. Where masks
            are involved, they and what comes after them are really called, so that the masks are
            where Keras would have put them.

    Attributes:
        values: From each tensor of the source to what stands for it in the new model.
        names: The names taken in the new model.
        opened: The nested models whose outputs are to keep their names though they are not called
            whole.
    """

    def __init__(
        self,
        values: Mapping[Tensor, keras.KerasTensor] | None = None,
        copies: dict[int, Any] | None = None,
        variables: Variables | None = None,
        changed: Iterable[Step] = (),
    ):
        self.values: dict[Tensor, keras.KerasTensor] = dict(values or {})
        self.names = Names()
        self.opened: set[Scope] = set()
        self._copies = copies
        self._variables = variables
        self._carriers: dict[Tensor, Tensor] = {}
        self._changed = set(changed)
        self._remasked: set[Tensor] = set()

    def claim(self, steps: Iterable[Step]) -> None:
        """Take the names of layers at the top level; layers out of nested models give way."""
        for step in steps:
            if _is_at_top(step):
                self.names.claim(step.operation)

    def run(self, graph: Graph, steps: Iterable[Step]) -> None:
        """Make the calls of a plan; `values` then has every tensor they make.

        Raises:
            ShapeError: A layer cannot take the shapes that it is now fed.
        """
        steps = list(steps)
        self.claim(steps)
        for step in steps:
            remasked = self._is_remasked(step)
            self._attach_masks(graph, step, remasked)
            made = self._outputs(graph, step, remasked)
            for tensor, value in zip(step.outputs, made, strict=True):
                self.values.setdefault(tensor, value)
            if remasked:
                self._remasked.update(t for t in step.outputs if self._had_mask(graph, t))
            else:
                self._note_masks(graph, step)

    def _outputs(self, graph: Graph, step: Step, remasked: bool) -> list[keras.KerasTensor]:
        sources = step.sources if isinstance(step, Scope) else [t.source for t in step.outputs]
        tensors = [tensor for tensor in _reads(step) if tensor in self.values]
        if self._copies is not None:
            operation = self._copies[id(step.operation)]
            arguments = keras.tree.map_structure(self._copied, fill(step, self.values))
            return call_step(step, operation, *arguments)
        if self._is_source(graph, step):
            return list(sources)
        if isinstance(step.operation, HandedOn):
            return [self.values[tensors[0]]]
        if not self.names.claim(step.operation):
            return self._call_wrapped(step, tensors)
        args, kwargs = fill(step, self.values)
        built = getattr(step.operation, "built", True)
        alike = built and all(_alike(tensor, self.values[tensor]) for tensor in tensors)
        if alike and not remasked:
            pairs = zip(step.outputs, sources, strict=True)
            outputs = [_fresh(source, tensor.shape) for tensor, source in pairs]
            keras_internals.record(step.operation, args, kwargs, outputs)
            return outputs
        if remasked:
            kwargs = with_found_mask(step.operation, args, kwargs)
        return call_step(step, step.operation, args, kwargs)

    def _copied(self, leaf: Any) -> Any:
        """Return the copy of an argument that is a variable; any other argument as it is."""
        leaf = leaf if self._variables is None else self._variables.of(leaf)
        if not isinstance(leaf, keras.Variable):
            return leaf
        assert self._copies is not None  # else nothing is copied
        if id(leaf) not in self._copies:
            # One that belongs to no layer of the model.
            self._copies[id(leaf)] = keras_internals.copy_variable(leaf)
        return self._copies[id(leaf)]

    def _is_source(self, graph: Graph, step: Step) -> bool:
        """Return whether a step is one of the model's own, on the model's own tensors."""
        # A mask that it reads off one of these is there whenever the tensor is.
        tensors = step.inputs if isinstance(step, Call) else _tensors(step.args)
        return step in graph.own_steps and all(
            self.values.get(tensor) is graph.surface.get(tensor) for tensor in tensors
        )

    def _call_wrapped(self, step: Step, tensors: list[Tensor]) -> list[keras.KerasTensor]:
        """Call an operation whose name another one has by a nested model around it."""
        wrapper = self.names.wrapper(step, {tensor: self.values[tensor] for tensor in tensors})
        given = [self.values[tensor] for tensor in tensors]
        return call_step(step, wrapper, (given if len(given) > 1 else given[0],), {})

    # --- outputs --------------------------------------------------------------------------------

    def reserve(self, graph: Graph, steps: Iterable[Step]) -> None:
        """Keep the names of a model's outputs from the layers that come out of nested models.

        Args:
            graph: The model.
            steps: What will be called; nested models among it keep their outputs' names themselves.
        """
        self.opened = {graph.maker[t].scopes[0] for t in graph.outputs if graph.maker[t].scopes}
        self.opened.difference_update(steps)
        for tensor, name in zip(graph.outputs, _output_names(graph), strict=True):
            call = graph.maker[tensor]
            if not self.opened.isdisjoint(call.scopes):
                self.names.reserve(name, call.operation if call.operation.name == name else None)

    def outputs(self, graph: Graph, now: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
        """Return the model's outputs in its own structure and under its own names.

        Keras names an output by the layer that makes it. Where a nested model made it and its
        layers are called one by one, a layer that does nothing takes the nested model's name.

        Args:
            graph: The model. Names are kept where `reserve` was called before the first call.
            now: From each tensor of the model to what stands in its place.
        """
        named: dict[Tensor, keras.KerasTensor] = {}
        layers: dict[tuple[str, str], keras.Layer] = {}
        for tensor, name in zip(graph.outputs, _output_names(graph), strict=True):
            value, scopes = self.values[now(tensor)], graph.maker[tensor].scopes
            if self.opened.isdisjoint(scopes) or tensor in named or _maker_name(value) == name:
                continue
            # All that the nested model's call returned, so that `outer:1` is still `outer:1`.
            together = [t for t in scopes[0].outputs if now(t) in self.values]
            if len({self.values[now(t)].dtype for t in together}) != 1:
                together = [tensor]
            values = [self.values[now(t)] for t in together]
            key = (name, values[0].dtype)
            if key not in layers:
                layers[key] = keras.layers.Identity(name=self.names.redeem(name), dtype=key[1])
            made = keras.tree.flatten(layers[key](singleton(values)))
            named.update(zip(together, made, strict=True))
        return keras.tree.map_structure(
            lambda tensor: named.get(tensor, self.values.get(now(tensor))), graph.output_structure
        )

    # --- masks ----------------------------------------------------------------------------------

    def feed_masked(self, values: Mapping[Tensor, keras.KerasTensor]) -> None:
        """Feed tensors that may carry masks which those of the source do not."""
        self.values.update(values)
        masked = (t for t, value in values.items() if keras_internals.mask_of(value) is not None)
        self._remasked.update(masked)

    def _is_remasked(self, step: Step) -> bool:
        """Return whether a step must be called for Keras to set the masks of its outputs."""
        if not isinstance(step.operation, keras.Layer):
            return False
        if isinstance(step, Call) and step.is_new:
            return True
        tensors = list(_tensors((step.args, step.kwargs)))
        is_changed, is_fed_anew = step in self._changed, not self._remasked.isdisjoint(tensors)
        # What comes out of a nested model was recorded there without masks from outside.
        inlined = isinstance(step, Call) and bool(step.scopes) and bool(self._changed)
        if not is_changed and (is_fed_anew or not inlined):
            return is_fed_anew
        values = [self.values.get(tensor) for tensor in tensors]
        if is_changed:
            values += [tensor.source for tensor in step.outputs]  # a layer that makes the mask
        return any(keras_internals.mask_of(v) is not None for v in values if v is not None)

    def _had_mask(self, graph: Graph, tensor: Tensor) -> bool:
        """Return whether a tensor has a mask, or had one where it comes from."""
        masks = (keras_internals.mask_of(x) for x in (self.values[tensor], tensor.source))
        return tensor in graph.masks or any(mask is not None for mask in masks)

    def _attach_masks(self, graph: Graph, step: Step, remasked: bool) -> None:
        """See to it that a tensor carries its mask where the step reads the mask off it."""
        if isinstance(step, Scope):
            return
        for tensor, mask in step.masks:
            if remasked and mask in graph.maker:
                continue  # Keras finds the mask that is there now; an edited one is not
            # A hidden mask has no value; the layer that sets it is in this model as well.
            if self._carriers.get(tensor) is not mask and mask in self.values:
                carrying = with_mask(
                    self.values[tensor], self.values[mask], self.names, tensor.address
                )
                self.values[tensor] = carrying
                self._carriers[tensor] = mask

    def _note_masks(self, graph: Graph, step: Step) -> None:
        """Keep account of which tensors of the new model carry their mask when it runs."""
        if not graph.masks or not isinstance(step.operation, keras.Layer):
            return
        inputs = [tensor for tensor in _tensors(step.args) if tensor in graph.masks]
        given = any(
            tensor in self.values
            for name, value in step.kwargs.items()
            if name.endswith("mask")
            for tensor in _tensors(value)
        )
        # A layer makes its output's mask of its inputs' masks, or is the origin of the mask.
        carries = given or all(tensor in self._carriers for tensor in inputs)
        for tensor in step.outputs:
            if tensor in graph.masks and carries:
                self._carriers[tensor] = graph.masks[tensor]
                mask, value = self.values.get(graph.masks[tensor]), self.values[tensor]
                own = value is graph.surface.get(tensor)
                if mask is not None and not own and keras_internals.mask_of(value) is None:
                    keras_internals.attach_mask(value, mask)


def _output_names(graph: Graph) -> list[str]:
    return keras_internals.functional(graph.model).output_names


def _maker_name(value: keras.KerasTensor) -> str:
    return keras_internals.producer(value).operation.name


def _is_at_top(step: Step) -> bool:
    return "/" not in step.address


def _alike(tensor: Tensor, value: keras.KerasTensor) -> bool:
    return tensor.shape == tuple(value.shape) and tensor.dtype == value.dtype


def _fresh(source: keras.KerasTensor, shape: tuple) -> keras.KerasTensor:
    return keras.KerasTensor(
        shape, source.dtype, sparse=source.sparse, ragged=source.ragged, name=source.name
    )
