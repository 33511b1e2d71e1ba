"""Reading a model: from the calls Keras recorded to a `Graph`."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import keras

from reusekit.graph import keras_internals as internals
from reusekit.graph.errors import NoGraphError
from reusekit.graph.graph import Call, Graph, Scope, Tensor
from reusekit.graph.keras_internals import Record
from reusekit.graph.masks import implicit_mask_sources, passes_mask


def read(model: keras.Model) -> Graph:
    """Reads a model into a graph of calls and tensors. The model is not changed.

    Nested Functional and Sequential models are inlined, to any depth. A nested model whose class
    has a `call` of its own is one opaque call. Time and memory grow linearly with the calls.

    Args:
        model: A built model with a functional graph: Functional, Sequential, or a subclass that
            was made from inputs and outputs.

    Returns:
        The graph.

    Raises:
        NoGraphError: The model has no graph: a subclassed model, or a Sequential not built yet.

    Example:
        >>> inputs = keras.Input((4,), name="x")
        >>> hidden = keras.layers.Dense(3, name="hidden")(inputs)
        >>> graph = read(keras.Model(inputs, keras.layers.Dense(1, name="head")(hidden), name="m"))
        >>> graph
        Graph(model='m', calls=3, tensors=3)
        >>> [tensor.address for tensor in graph.tensors]
        ['x', 'hidden', 'head']
    """
    if internals.functional(model) is None:
        raise NoGraphError(_refusal(model))
    return _Reader(model).read()


def _refusal(model: Any) -> str:
    if isinstance(model, keras.Sequential):
        return (
            f"Expected a built model, received the Sequential {model.name!r}, which does not know "
            "its input shape yet: call model.build(input_shape) or start it with keras.Input."
        )
    if isinstance(model, keras.Model):
        return (
            f"Expected a model with a functional graph, received {model.name!r} of class "
            f"{type(model).__name__}, whose computation is the Python code of its `call`: make it "
            "with keras.Model(inputs, model.call(inputs)), or read one of its functional parts."
        )
    return f"Expected a keras.Model, received {type(model).__name__}: {model!r}"


@dataclass(slots=True)
class _Frame:
    """A model that is being read: the root, or a nested one at one of its calls."""

    functional: Any
    prefix: str
    scopes: tuple[Scope, ...]
    records: Iterator[Record]
    bound: dict[int, Tensor | None]
    masks: dict[int, Tensor] = field(default_factory=dict)
    training: Any = None
    record: Record | None = None


@dataclass(slots=True)
class _Draft:
    """A call before it is known whether anything needs it."""

    address: str
    record: Record
    args: tuple
    kwargs: dict
    inputs: tuple[Tensor, ...]
    masks: tuple[tuple[Tensor, Tensor], ...]
    outputs: tuple[Tensor, ...]
    scopes: tuple[Scope, ...]


def _is_keras_tensor(leaf: Any) -> bool:
    return isinstance(leaf, keras.KerasTensor)


def _is_one_tensor(args: tuple, kwargs: dict) -> bool:
    """The usual call, worth a short way past the tree functions."""
    return not kwargs and len(args) == 1 and isinstance(args[0], Tensor | keras.KerasTensor)


class _Reader:
    def __init__(self, model: keras.Model):
        self.model = model
        self.drafts: list[_Draft] = []
        self.names: dict[str, Tensor] = {}
        self.ambiguous: dict[str, list[str]] = {}
        self.orders: dict[int, list[Record]] = {}
        self.call_names: dict[int, dict[tuple[int, int], str]] = {}
        self.attached: list[tuple[Tensor, keras.KerasTensor, dict]] = []
        self.carried: list[tuple[Tensor, Tensor]] = []
        # Scopes are made when their model is entered and know their outputs when it is left.
        self.finished: dict[Scope, Scope] = {}

    def read(self) -> Graph:
        root = internals.functional(self.model)
        frame = _Frame(root, "", (), iter(self._order(root)), {})
        stack = [frame]
        while stack:
            top = stack[-1]
            record = next(top.records, None)
            if record is None:
                stack.pop()
                if stack:
                    self._leave(top, stack[-1])
            elif self._may_inline(top, record):
                stack.append(self._enter(top, record))
            else:
                self._emit(top, record)
        return self._graph(root, frame.bound)

    # --- one model: which calls, in which order, under which address -------------------------

    def _order(self, functional: Any) -> list[Record]:
        """The model's calls in post-order from its outputs, then inputs that nothing reads."""
        if id(functional) in self.orders:
            return self.orders[id(functional)]
        # Everything the model's inputs are made of lies outside it.
        order: list[Record] = []
        done: set[tuple[int, int]] = set()
        for target in (*functional.outputs, *functional.inputs):
            stack = [(target, None)]
            while stack:
                tensor, waiting = stack.pop()
                if waiting is not None:
                    order.append(waiting)
                    continue
                key = internals.producer_key(tensor)
                if key in done:
                    continue
                done.add(key)
                record = internals.producer(tensor)
                stack.append((tensor, record))
                stack.extend((needed, None) for needed in reversed(self._needs(record)))
        self.orders[id(functional)] = order
        return order

    @staticmethod
    def _needs(record: Record) -> list[keras.KerasTensor]:
        sources = implicit_mask_sources(
            record.operation, record.args, record.kwargs, _is_keras_tensor
        )
        masks = (internals.mask_of(source) for source in sources)
        return [*record.inputs, *(m for m in masks if m is not None and internals.has_history(m))]

    def _addresses(self, functional: Any) -> dict[tuple[int, int], str]:
        """From each call to its name in this model: `layer`, or `layer@2` where there are several.

        Calls are numbered in the order in which they were made.
        """
        numbers: dict[int, list[int]] = {}
        order = self._order(functional)
        for record in order:
            numbers.setdefault(id(record.operation), []).append(record.number)
        places = {
            key: {number: place for place, number in enumerate(sorted(found))}
            for key, found in numbers.items()
        }
        named = {}
        for record in order:
            place = places[id(record.operation)]
            suffix = f"@{place[record.number]}" if len(place) > 1 else ""
            named[record.key] = f"{record.operation.name}{suffix}"
        return named

    # --- nested models ------------------------------------------------------------------------

    def _may_inline(self, frame: _Frame, record: Record) -> bool:
        """Whether a call is of a nested model that can be read in place of the call."""
        if not internals.runs_its_graph(record.operation):
            return False
        fed = self._fed(record)
        inner = internals.functional(record.operation)
        if fed is None or len(fed) != len(inner.inputs):
            return False
        # A nested model adds or drops a last axis of size one; that is not in its graph.
        return all(
            given is None or (_is_keras_tensor(given) and len(given.shape) == len(wanted.shape))
            for given, wanted in zip(fed, inner.inputs, strict=True)
        )

    @staticmethod
    def _fed(record: Record) -> list | None:
        """What a nested model is called on, in the flat order of its inputs."""
        given = record.args[0] if record.args else record.kwargs.get("inputs")
        inner = internals.functional(record.operation)
        structure = internals.input_structure(inner)
        if isinstance(given, dict) and not isinstance(structure, dict):
            names = [tensor.name for tensor in inner.inputs]
            return [given[name] for name in names] if set(names) <= set(given) else None
        return keras.tree.flatten(given)

    def _enter(self, frame: _Frame, record: Record) -> _Frame:
        name = self._names_in(frame)[record.key]
        inner = internals.functional(record.operation)
        args, kwargs = self._arguments(frame, record)
        scope = Scope(f"{frame.prefix}{name}", record.operation, args, kwargs, (), ())
        scopes = (*frame.scopes, scope)
        prefix = f"{scope.address}/"
        training = kwargs.get("training") if frame.training is None else frame.training
        nested = _Frame(
            inner, prefix, scopes, iter(self._order(inner)), {}, training=training, record=record
        )
        masks = keras.tree.flatten(kwargs.get("mask"))
        for position, (given, wanted) in enumerate(
            zip(self._fed(record), inner.inputs, strict=True)
        ):
            tensor = None if given is None else frame.bound[id(given)]
            address = f"{prefix}{internals.producer(wanted).operation.name}"
            if tensor is not None and tensor.dtype != wanted.dtype:
                tensor = self._convert(tensor, wanted, address, scopes)
            nested.bound[id(wanted)] = tensor
            if tensor is not None:
                self.names.setdefault(address, tensor)
            if position < len(masks) and isinstance(masks[position], Tensor):
                nested.masks[id(wanted)] = masks[position]
        return nested

    def _convert(
        self, tensor: Tensor, wanted: keras.KerasTensor, address: str, scopes: tuple[Scope, ...]
    ) -> Tensor:
        """A nested model converts what it is fed to the dtype of its input."""
        operation = internals.cast(wanted.dtype)
        source = keras.KerasTensor(tensor.shape, wanted.dtype)
        record = Record(operation, 0, (), {}, [], [source], False)
        made = Tensor(address, tensor.shape, wanted.dtype, source)
        self.drafts.append(
            _Draft(address, record, (tensor,), {}, (tensor,), (), (made,), scopes)
        )
        return made

    def _leave(self, frame: _Frame, outer: _Frame) -> None:
        scope = frame.scopes[-1]
        outputs = tuple(frame.bound[id(output)] for output in frame.functional.outputs)
        self.finished[scope] = replace(
            scope, outputs=outputs, sources=tuple(frame.record.outputs)
        )
        for source, mask in frame.masks.items():
            self.carried.append((frame.bound[source], mask))
        for position, (made, outside) in enumerate(
            zip(outputs, frame.record.outputs, strict=True)
        ):
            outer.bound[id(outside)] = made
            self._note_mask(made, outside, outer)
            inner = frame.functional.outputs[position]
            if id(inner) in frame.masks:
                outer.masks.setdefault(id(outside), frame.masks[id(inner)])
        self._name(scope.address, outputs)

    # --- one call -----------------------------------------------------------------------------

    def _emit(self, frame: _Frame, record: Record) -> None:
        if record.is_input and id(record.outputs[0]) in frame.bound:
            return
        name = self._names_in(frame)[record.key]
        address = f"{frame.prefix}{name}"
        args, kwargs = self._arguments(frame, record)
        if frame.training is not None and "training" in internals.context_arguments(
            record.operation
        ):
            kwargs = {**kwargs, "training": frame.training}
        leaves = args if _is_one_tensor(args, kwargs) else keras.tree.flatten((args, kwargs))
        inputs = tuple(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Tensor)))
        outputs = self._outputs(frame, record, address)
        masks = self._masks(frame, record)
        self.drafts.append(
            _Draft(address, record, args, kwargs, inputs, masks, outputs, frame.scopes)
        )

    def _names_in(self, frame: _Frame) -> dict[tuple[int, int], str]:
        key = id(frame.functional)
        if key not in self.call_names:
            self.call_names[key] = self._addresses(frame.functional)
        return self.call_names[key]

    @staticmethod
    def _arguments(frame: _Frame, record: Record) -> tuple[tuple, dict]:
        bound = frame.bound
        args, kwargs = record.args, record.kwargs
        if _is_one_tensor(args, kwargs):
            return (bound[id(args[0])],), {}

        def fill(leaf: Any) -> Any:
            return bound.get(id(leaf)) if _is_keras_tensor(leaf) else leaf

        return keras.tree.map_structure(fill, args), keras.tree.map_structure(fill, kwargs)

    def _outputs(self, frame: _Frame, record: Record, address: str) -> tuple[Tensor, ...]:
        several = len(record.outputs) > 1
        outputs = tuple(
            Tensor(
                f"{address}:{position}" if several else address,
                tuple(source.shape),
                str(source.dtype),
                source,
            )
            for position, source in enumerate(record.outputs)
        )
        for tensor in outputs:
            frame.bound[id(tensor.source)] = tensor
            self._note_mask(tensor, tensor.source, frame)
        self._name(address, outputs)
        self._propagate(frame, record)
        return outputs

    def _name(self, address: str, outputs: tuple[Tensor, ...]) -> None:
        """Enters a call's outputs under its address, and what is ambiguous under shorter names."""
        stem, at, number = address.rpartition("@")
        shorter = stem if at and number.isdecimal() else None
        full = [f"{address}:{i}" for i in range(len(outputs))] if len(outputs) > 1 else [address]
        for name, tensor in zip(full, outputs, strict=True):
            self.names.setdefault(name, tensor)
        if len(outputs) > 1:
            self.ambiguous.setdefault(address, []).extend(full)
        if shorter:
            self.ambiguous.setdefault(shorter, []).extend(full)

    # --- masks --------------------------------------------------------------------------------

    def _masks(self, frame: _Frame, record: Record) -> tuple[tuple[Tensor, Tensor], ...]:
        found = []
        for source in implicit_mask_sources(
            record.operation, record.args, record.kwargs, _is_keras_tensor
        ):
            mask = self._mask_of(frame, source)
            tensor = frame.bound.get(id(source))
            if mask is not None and tensor is not None:
                found.append((tensor, mask))
        return tuple(found)

    @staticmethod
    def _mask_of(frame: _Frame, source: keras.KerasTensor) -> Tensor | None:
        own = internals.mask_of(source)
        if own is not None and frame.bound.get(id(own)) is not None:
            return frame.bound[id(own)]
        return frame.masks.get(id(source))

    @staticmethod
    def _propagate(frame: _Frame, record: Record) -> None:
        """Hands the mask that a nested model was called with from call to call inside it."""
        if not frame.masks or not record.inputs or len(record.outputs) != 1:
            return
        first = record.inputs[0]
        mask = frame.masks.get(id(first))
        if mask is not None and passes_mask(record.operation, first, mask.shape):
            frame.masks[id(record.outputs[0])] = mask

    def _note_mask(self, tensor: Tensor, source: keras.KerasTensor, frame: _Frame) -> None:
        mask = internals.mask_of(source)
        if mask is not None:
            self.attached.append((tensor, mask, frame.bound))

    # --- the result ---------------------------------------------------------------------------

    def _graph(self, root: Any, bound: dict[int, Tensor | None]) -> Graph:
        def tensor(leaf: keras.KerasTensor) -> Tensor:
            return bound[id(leaf)]

        inputs = keras.tree.map_structure(tensor, internals.input_structure(root))
        outputs = keras.tree.map_structure(tensor, internals.output_structure(root))
        calls = self._needed_calls(set(keras.tree.flatten(outputs)))
        made = {output for call in calls for output in call.outputs}
        names = {name: tensor for name, tensor in self.names.items() if tensor in made}
        masks = {
            masked: mask for masked, mask in self.carried if masked in made and mask in made
        }
        for masked, mask, where in self.attached:
            found = where.get(id(mask))
            if masked in made and found in made:
                masks[masked] = found
        return Graph(
            model=self.model,
            calls=calls,
            inputs=tuple(keras.tree.flatten(inputs)),
            input_structure=inputs,
            output_structure=outputs,
            names=names,
            ambiguous={
                name: tuple(a for a in found if a in names)
                for name, found in self.ambiguous.items()
                if name not in names
            },
            masks=masks,
        )

    def _needed_calls(self, needed: set[Tensor]) -> tuple[Call, ...]:
        """Drops calls that no output depends on: a nested model may have outputs nobody reads."""
        kept = []
        for draft in reversed(self.drafts):
            if draft.record.is_input or not needed.isdisjoint(draft.outputs):
                kept.append(draft)
                needed.update(draft.inputs)
                needed.update(mask for _, mask in draft.masks)
        kept.reverse()
        return tuple(
            Call(
                index=index,
                address=draft.address,
                operation=draft.record.operation,
                args=draft.args,
                kwargs=draft.kwargs,
                inputs=draft.inputs,
                masks=draft.masks,
                outputs=draft.outputs,
                scopes=tuple(self.finished[scope] for scope in draft.scopes),
                is_input=draft.record.is_input,
            )
            for index, draft in enumerate(kept)
        )
