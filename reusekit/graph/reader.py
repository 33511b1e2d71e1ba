"""The reader of models: from the calls that Keras recorded to a `Graph`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import keras

from reusekit.errors import NoGraphError
from reusekit.graph import keras_internals as internals
from reusekit.graph.graph import Call, Graph, Scope, Tensor, tensors_in
from reusekit.graph.keras_internals import Record
from reusekit.graph.mask_flow import Add, Bound, MaskFlow
from reusekit.graph.masks import HiddenMask
from reusekit.graph.outline import HandedOn, Outline, as_called, fed_to, may_inline, shapes_now


def read(model: keras.Model | Graph, keep_masks: bool = False) -> Graph:
    """Read a model into a graph of calls and tensors. The model is not changed.

    Nested Functional and Sequential models are inlined, to any depth. A nested model whose class
    has a `call` of its own is one opaque call. Time and memory grow linearly with the calls.

    Args:
        model: A built model with a functional graph: Functional, Sequential, or a subclass that
            was made from inputs and outputs. A graph is returned as it is: whoever cuts one model
            many times reads it once.
        keep_masks: Whether the graph is to have the mask of every tensor that has one, as
            `known_masks`; else only those that a call reads are there.

    Returns:
        The graph.

    Raises:
        NoGraphError: The model has no graph (a subclassed model, or a Sequential not built yet), or
            a `call` of its own that does something else than run it.

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
        again = keep_masks and model.is_masked and not model.keeps_masks
        return read(model.model, keep_masks=True) if again else model
    if not internals.runs_its_graph(model):
        raise NoGraphError(_refusal(model))
    return _Reader(model, keep_masks).read()


def _refusal(model: Any) -> str:
    if internals.functional(model) is not None:
        return (
            f"Expected a model that does nothing but run its graph. Received: {model.name!r} of "
            f"class {type(model).__name__}, which has a `call` of its own: put "
            "keras.Model(inputs, model(inputs)) in its place, in which it is one layer, or what "
            "its `call` does into layers of the graph."
        )
    if isinstance(model, keras.Sequential):
        return (
            f"Expected a built model. Received: the Sequential {model.name!r}, which does not know "
            "its input shape yet: call model.build(input_shape) or start it with keras.Input."
        )
    if isinstance(model, keras.Model):
        return (
            f"Expected a model with a functional graph. Received: {model.name!r} of class "
            f"{type(model).__name__}, whose computation is the Python code of its `call`: make it "
            "with keras.Model(inputs, model.call(inputs)), or read one of its functional parts."
        )
    return f"Expected a keras.Model. Received: {type(model).__name__}: {model!r}"


@dataclass(slots=True)
class _Frame:
    """A model that is being read: the root, or a nested one at one of its calls."""

    functional: Any
    outline: Outline
    records: Iterator[Record]
    add: Add
    prefix: str = ""
    scopes: tuple[Scope, ...] = ()
    training: Any = None
    bound: Bound = field(default_factory=dict)
    record: Any = None  # of the nested model's call


class _Reader:
    """Walks a model and the models nested in it, and lists their calls in one order."""

    def __init__(self, model: keras.Model, keep_masks: bool):
        self.model = model
        self.calls: list[Call] = []
        self.names = _NameTable()
        self.masks = MaskFlow(keep_masks)
        self.outlines: dict[int, Outline] = {}
        self.variables = Variables(model)

    def read(self) -> Graph:
        root = self._frame(internals.functional(self.model))
        stack = [root]
        while stack:
            top = stack[-1]
            record = next(top.records, None)
            if record is None:
                stack.pop()
                self.masks.end(top.bound, top.add)
                if stack:
                    self._leave(top, stack[-1])
            elif may_inline(record):
                stack.append(self._enter(top, record))
            elif not (record.is_input and id(record.outputs[0]) in top.bound):
                self._call(top, record)
        return self._graph(root)

    def _frame(self, functional: Any, **others: Any) -> _Frame:
        outline = self.outlines.get(id(functional))
        if outline is None:
            outline = self.outlines[id(functional)] = Outline(functional)
        add = partial(self._add, others.get("scopes", ()))
        return _Frame(functional, outline, iter(outline.records), add, **others)

    def _call(self, frame: _Frame, record: Record) -> None:
        address = f"{frame.prefix}{frame.outline.names[record.key]}"
        bound = frame.bound
        args, kwargs = self._arguments(frame, record)
        if frame.training is not None and internals.takes(record.operation, "training"):
            kwargs = {**kwargs, "training": frame.training}
        inputs = tuple([tensor for x in record.inputs if (tensor := bound[id(x)]) is not None])
        if len(inputs) > 1:
            inputs = tuple(dict.fromkeys(inputs))
        outputs = _outputs(address, record.outputs, shapes_now(record, bound))
        for tensor in outputs:
            bound[id(tensor.keras_tensor)] = tensor
        self.names.enter(address, outputs)
        masks = self.masks.reads(record, bound, frame.add)
        self.masks.made(record, bound, outputs, frame.add)
        self.calls.append(
            Call(
                len(self.calls),
                address,
                record.operation,
                args,
                kwargs,
                inputs,
                masks,
                outputs,
                frame.scopes,
                record.is_input,
                self.variables.among((args, kwargs)),
            )
        )

    def _arguments(self, frame: _Frame, record: Record) -> tuple[tuple, dict]:
        """Return a call's arguments, with tensors of the graph in the place of Keras tensors."""
        args, kwargs, bound = record.args, record.kwargs, frame.bound
        first = args[0] if len(args) == 1 else None
        # The usual calls, of a layer on a tensor or on a list, are worth a short way past the tree
        # functions.
        if isinstance(first, keras.KerasTensor):
            args = (bound[id(first)],)
        elif type(first) is list and all(isinstance(leaf, keras.KerasTensor) for leaf in first):
            args = ([bound[id(leaf)] for leaf in first],)
        else:
            args = self._filled(args, bound)
        return args, {
            name: value if value is None else self._filled(value, bound)
            for name, value in kwargs.items()
        }

    def _filled(self, structure: Any, bound: Bound) -> Any:
        def fill(leaf: Any) -> Any:
            if isinstance(leaf, keras.KerasTensor):
                return bound.get(id(leaf))
            return self.variables.of(leaf)

        return keras.tree.map_structure(fill, structure)

    def _enter(self, frame: _Frame, record: Record) -> _Frame:
        """Start to read a nested model in place of its call."""
        given, kwargs = self._arguments(frame, record)
        # However they were passed: a nested model's call has one signature.
        args, kwargs = as_called(given, kwargs)
        address = f"{frame.prefix}{frame.outline.names[record.key]}"
        fed = [None if x is None else frame.bound[id(x)] for x in fed_to(record) or ()]
        masks = keras.tree.flatten(kwargs.get("mask"))
        if not any(isinstance(mask, Tensor) for mask in masks):
            # Keras finds masks that it did not record on the tensors when the model runs.
            masks = [self.masks.carried(tensor, frame.add) for tensor in fed]
            if any(masks):
                kwargs = {**kwargs, "mask": masks if len(masks) > 1 else masks[0]}
        scope = Scope(address, record.operation, args, kwargs)
        nested = self._frame(
            internals.functional(record.operation),
            prefix=f"{address}/",
            scopes=(*frame.scopes, scope),
            training=kwargs.get("training") if frame.training is None else frame.training,
            record=record,
        )
        masks += [None] * (len(fed) - len(masks))
        handed_on = set(map(id, nested.functional.outputs))
        for tensor, inner, mask in zip(fed, nested.functional.inputs, masks, strict=False):
            if tensor is None:
                nested.bound[id(inner)] = None
                continue
            name = f"{nested.prefix}{internals.producer(inner).operation.name}"
            if tensor.dtype != inner.dtype:
                # A nested model converts what it is fed to the dtype of its input.
                spec = keras.KerasTensor(tensor.shape, inner.dtype)
                cast = internals.cast(inner.dtype)
                (tensor,) = nested.add(name, cast, (tensor,), {}, [spec])
            elif id(inner) in handed_on:
                # A handed-on input is an output of its own, not the tensor that was fed.
                spec = keras.KerasTensor(tensor.shape, tensor.dtype)
                (tensor,) = nested.add(name, HandedOn(inner.name), (tensor,), {}, [spec])
            nested.bound[id(inner)] = tensor
            self.names.enter(name, (tensor,))
            if isinstance(mask, Tensor):
                self.masks.fed(tensor, mask)
        return nested

    def _add(
        self,
        scopes: tuple[Scope, ...],
        address: str,
        operation: Any,
        args: tuple,
        kwargs: dict,
        specs: Sequence[keras.KerasTensor],
    ) -> tuple[Tensor, ...]:
        """Add a call that happens when the model runs, though Keras recorded none."""
        keras_tensors = [keras.KerasTensor(spec.shape, spec.dtype) for spec in specs]
        outputs = _outputs(address, keras_tensors)
        inputs = dict.fromkeys(tensors_in((args, kwargs)))
        self.names.enter(address, outputs)
        self.calls.append(
            Call(
                index=len(self.calls),
                address=address,
                operation=operation,
                args=args,
                kwargs=kwargs,
                inputs=tuple(inputs),
                masks=(),
                outputs=outputs,
                scopes=scopes,
                is_input=False,
            )
        )
        return outputs

    def _leave(self, frame: _Frame, outer: _Frame) -> None:
        """End a nested model: its outputs are what its call returned."""
        scope, returned = frame.scopes[-1], frame.record.outputs
        outputs = tuple(frame.bound[id(output)] for output in frame.functional.outputs)
        outer.bound.update(
            (id(outside), made) for made, outside in zip(outputs, returned, strict=True)
        )
        scope.close(outputs, tuple(returned))
        self.names.enter(scope.address, outputs)

    def _graph(self, root: _Frame) -> Graph:
        def tensor(leaf: keras.KerasTensor) -> Tensor:
            return root.bound[id(leaf)]

        inputs = keras.tree.map_structure(tensor, internals.input_structure(root.functional))
        outputs = keras.tree.map_structure(tensor, internals.output_structure(root.functional))
        wanted = keras.tree.flatten(outputs)
        calls = self._needed_calls(wanted)
        made = {output for call in calls for output in call.outputs}
        kept = {self.masks.kept[tensor] for tensor in made & self.masks.kept.keys()}
        if not kept <= made:
            calls = self._needed_calls([*wanted, *kept])
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
            is_masked=self.masks.any,
            keeps_masks=self.masks.keeps,
            known_masks=self._known_masks(calls),
        )

    def _known_masks(self, calls: tuple[Call, ...]) -> dict[Tensor, Tensor]:
        """Return the masks that are kept, without those that only their layer can make."""
        computed = {
            output
            for call in calls
            for output in call.outputs
            if not isinstance(call.operation, HiddenMask)
        }
        return {t: m for t, m in self.masks.kept.items() if t in computed and m in computed}

    def _needed_calls(self, outputs: list[Tensor]) -> tuple[Call, ...]:
        """Drop calls that no output depends on: a nested model may have outputs nobody reads."""
        needed = set(outputs)
        kept = []
        for call in reversed(self.calls):
            if call.is_input or not needed.isdisjoint(call.outputs):
                kept.append(call)
                needed.update(call.reads)
                for scope in call.scopes:  # Nor may it be called without an input it does not read.
                    needed.update(tensors_in(scope.args))
        if len(kept) == len(self.calls):
            return tuple(self.calls)
        return tuple(replace(call, index=index) for index, call in enumerate(reversed(kept)))


def _outputs(
    address: str, keras_tensors: Sequence[keras.KerasTensor], shapes: Any = None
) -> tuple[Tensor, ...]:
    """Return a call's outputs under its address, numbered where there are several."""
    shapes = shapes or [one.shape for one in keras_tensors]
    if len(keras_tensors) == 1:
        return (Tensor(address, keras_tensors[0], shapes[0]),)
    pairs = zip(keras_tensors, shapes, strict=True)
    return tuple([Tensor(f"{address}:{n}", one, shape) for n, (one, shape) in enumerate(pairs)])


class _NameTable:
    """Collects the addresses of tensors, and the shorter names that would fit several."""

    def __init__(self):
        self._names: dict[str, Tensor] = {}
        self._short: dict[str, list[str]] = {}

    def enter(self, address: str, outputs: Sequence[Tensor]) -> None:
        """Enter the outputs of one call under its address.

        Args:
            address: The address of the call, with `@` and a number where its layer is called
                several times.
            outputs: Its outputs. Several are told apart by `:` and a number.
        """
        if len(outputs) == 1:
            full = [address]
            self._names.setdefault(address, outputs[0])
        else:
            full = [f"{address}:{number}" for number in range(len(outputs))]
            self._short.setdefault(address, []).extend(full)
            for name, tensor in zip(full, outputs, strict=True):
                self._names.setdefault(name, tensor)
        stem, _, number = address.rpartition("@")
        if stem and number.isdecimal():
            self._short.setdefault(stem, []).extend(full)

    def among(self, tensors: set[Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
        """Return the addresses of some tensors, and those that each shorter name may mean."""
        names = {name: tensor for name, tensor in self._names.items() if tensor in tensors}
        short = {
            name: tuple(address for address in found if address in names)
            for name, found in self._short.items()
            if name not in names
        }
        return names, short


class Variables:
    """Finds variables among the arguments of a model's calls.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = model

    def of(self, leaf: Any) -> Any:
        """Return the model's variable whose `value` an argument is; any other argument as it is."""
        if leaf is None or isinstance(leaf, str | int | float | keras.Variable):
            return leaf
        return self._by_value.get(id(leaf), leaf) if keras.ops.is_tensor(leaf) else leaf

    def among(self, arguments: Any) -> tuple[keras.Variable, ...]:
        """Return the variables among some arguments, each once."""
        (args, kwargs) = arguments
        if len(args) == 1 and not kwargs and not isinstance(args[0], list | tuple | dict):
            # The usual case; a call on nothing but a variable is not recorded.
            return ()
        leaves = keras.tree.flatten(arguments)
        found = {id(leaf): leaf for leaf in leaves if isinstance(leaf, keras.Variable)}
        return tuple(found.values())

    @cached_property
    def _by_value(self) -> dict[int, keras.Variable]:
        return {id(internals.stored_value(v)): v for v in self._model.variables}
