"""Reading a model: from the calls Keras recorded to a `Graph`."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import keras

from reusekit.graph import keras_internals as internals
from reusekit.graph.errors import NoGraphError
from reusekit.graph.graph import Call, Graph, Scope, Tensor
from reusekit.graph.keras_internals import Record
from reusekit.graph.mask_flow import MaskFlow
from reusekit.graph.name_table import NameTable
from reusekit.graph.nesting import fed_to, may_inline
from reusekit.graph.outline import Outline


def read(model: keras.Model | Graph) -> Graph:
    """Reads a model into a graph of calls and tensors. The model is not changed.

    Nested Functional and Sequential models are inlined, to any depth. A nested model whose class
    has a `call` of its own is one opaque call. Time and memory grow linearly with the calls.

    Args:
        model: A built model with a functional graph: Functional, Sequential, or a subclass that
            was made from inputs and outputs. A graph is returned as it is: whoever cuts one model
            many times reads it once.

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
    if isinstance(model, Graph):
        return model
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
    outline: Outline
    records: Iterator[Record]
    prefix: str = ""
    scopes: tuple[Scope, ...] = ()
    training: Any = None
    bound: dict[int, Tensor | None] = field(default_factory=dict)
    record: Record | None = None


@dataclass(slots=True)
class _Draft:
    """A call before it is known whether anything needs it."""

    address: str
    operation: Any
    args: tuple
    kwargs: dict
    masks: tuple[tuple[Tensor, Tensor], ...]
    outputs: tuple[Tensor, ...]
    scopes: tuple[Scope, ...]
    is_input: bool = False

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        args, kwargs = self.args, self.kwargs
        leaves = args if _is_one_tensor(args, kwargs) else keras.tree.flatten((args, kwargs))
        return tuple(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Tensor)))


def _is_keras_tensor(leaf: Any) -> bool:
    return isinstance(leaf, keras.KerasTensor)


def _is_one_tensor(args: tuple, kwargs: dict) -> bool:
    """The usual call, worth a short way past the tree functions."""
    return not kwargs and len(args) == 1 and isinstance(args[0], Tensor | keras.KerasTensor)


class _Reader:
    """Walks a model and the models nested in it, and drafts their calls in one order."""

    def __init__(self, model: keras.Model):
        self.model = model
        self.drafts: list[_Draft] = []
        self.names = NameTable()
        self.masks = MaskFlow()
        self.outlines: dict[int, Outline] = {}
        # Scopes are made when their model is entered and know their outputs when it is left.
        self.finished: dict[Scope, Scope] = {}

    def read(self) -> Graph:
        root = self._frame(internals.functional(self.model))
        stack = [root]
        while stack:
            top = stack[-1]
            record = next(top.records, None)
            if record is None:
                stack.pop()
                if stack:
                    self._leave(top, stack[-1])
            elif may_inline(record):
                stack.append(self._enter(top, record))
            elif not (record.is_input and id(record.outputs[0]) in top.bound):
                self._draft(top, record)
        return self._graph(root)

    def _frame(self, functional: Any, **others: Any) -> _Frame:
        outline = self.outlines.get(id(functional))
        if outline is None:
            outline = self.outlines[id(functional)] = Outline(functional)
        return _Frame(functional, outline, iter(outline.records), **others)

    def _draft(self, frame: _Frame, record: Record) -> None:
        address = f"{frame.prefix}{frame.outline.names[record.key]}"
        args, kwargs = _arguments(frame, record)
        takes_training = "training" in internals.context_arguments(record.operation)
        if frame.training is not None and takes_training:
            kwargs = {**kwargs, "training": frame.training}
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
        frame.bound.update((id(tensor.source), tensor) for tensor in outputs)
        self.names.enter(address, outputs)
        masks = self.masks.reads(record, frame.bound)
        self.masks.made(record, frame.bound, outputs)
        self.drafts.append(
            _Draft(
                address,
                record.operation,
                args,
                kwargs,
                masks,
                outputs,
                frame.scopes,
                record.is_input,
            )
        )

    def _enter(self, frame: _Frame, record: Record) -> _Frame:
        """Starts to read a nested model in place of its call."""
        args, kwargs = _arguments(frame, record)
        address = f"{frame.prefix}{frame.outline.names[record.key]}"
        scope = Scope(address, record.operation, args, kwargs, (), ())
        nested = self._frame(
            internals.functional(record.operation),
            prefix=f"{address}/",
            scopes=(*frame.scopes, scope),
            training=kwargs.get("training") if frame.training is None else frame.training,
            record=record,
        )
        wanted = nested.functional.inputs
        masks = keras.tree.flatten(kwargs.get("mask"))
        masks += [None] * (len(wanted) - len(masks))
        for given, inner, mask in zip(fed_to(record), wanted, masks, strict=False):
            if given is None:
                nested.bound[id(inner)] = None
                continue
            name = f"{nested.prefix}{internals.producer(inner).operation.name}"
            tensor = frame.bound[id(given)]
            if tensor.dtype != inner.dtype:
                tensor = self._convert(tensor, inner.dtype, name, nested.scopes)
            nested.bound[id(inner)] = tensor
            self.names.enter(name, (tensor,))
            if isinstance(mask, Tensor):
                self.masks.fed(tensor, mask)
        return nested

    def _convert(
        self, tensor: Tensor, dtype: str, address: str, scopes: tuple[Scope, ...]
    ) -> Tensor:
        """A nested model converts what it is fed to the dtype of its input."""
        made = Tensor(address, tensor.shape, dtype, keras.KerasTensor(tensor.shape, dtype))
        self.drafts.append(
            _Draft(address, internals.cast(dtype), (tensor,), {}, (), (made,), scopes)
        )
        return made

    def _leave(self, frame: _Frame, outer: _Frame) -> None:
        """Ends a nested model: its outputs are what its call returned."""
        scope, returned = frame.scopes[-1], frame.record.outputs
        outputs = tuple(frame.bound[id(output)] for output in frame.functional.outputs)
        outer.bound.update(
            (id(outside), made) for made, outside in zip(outputs, returned, strict=True)
        )
        self.finished[scope] = replace(scope, outputs=outputs, sources=tuple(returned))
        self.names.enter(scope.address, outputs)

    def _graph(self, root: _Frame) -> Graph:
        def tensor(leaf: keras.KerasTensor) -> Tensor:
            return root.bound[id(leaf)]

        inputs = keras.tree.map_structure(tensor, internals.input_structure(root.functional))
        outputs = keras.tree.map_structure(tensor, internals.output_structure(root.functional))
        calls = self._needed_calls(keras.tree.flatten(outputs))
        made = {output for call in calls for output in call.outputs}
        names, ambiguous = self.names.among(made)
        return Graph(
            model=self.model,
            calls=calls,
            inputs=tuple(keras.tree.flatten(inputs)),
            input_structure=inputs,
            output_structure=outputs,
            names=names,
            ambiguous=ambiguous,
            masks=self.masks.among(made),
        )

    def _needed_calls(self, outputs: list[Tensor]) -> tuple[Call, ...]:
        """Drops calls that no output depends on: a nested model may have outputs nobody reads."""
        needed = set(outputs)
        kept = []
        for draft in reversed(self.drafts):
            if draft.is_input or not needed.isdisjoint(draft.outputs):
                inputs = draft.inputs
                kept.append((draft, inputs))
                needed.update(inputs)
                needed.update(mask for _, mask in draft.masks)
        return tuple(
            Call(
                index=index,
                address=draft.address,
                operation=draft.operation,
                args=draft.args,
                kwargs=draft.kwargs,
                inputs=inputs,
                masks=draft.masks,
                outputs=draft.outputs,
                scopes=tuple(self.finished[scope] for scope in draft.scopes),
                is_input=draft.is_input,
            )
            for index, (draft, inputs) in enumerate(reversed(kept))
        )


def _arguments(frame: _Frame, record: Record) -> tuple[tuple, dict]:
    """A call's arguments, with tensors of the graph in the place of Keras tensors."""
    args, kwargs = record.args, record.kwargs
    if _is_one_tensor(args, kwargs):
        return (frame.bound[id(args[0])],), {}

    def fill(leaf: Any) -> Any:
        return frame.bound.get(id(leaf)) if _is_keras_tensor(leaf) else leaf

    return keras.tree.map_structure(fill, args), keras.tree.map_structure(fill, kwargs)
