"""Layers copied as they are now, and models built again of other layers."""

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from reusekit.errors import CopyError
from reusekit.graph import Graph, Tensor, keras_internals, read
from reusekit.graph.reader import Variables
from reusekit.surgery import rates
from reusekit.surgery.engine import Rebuild, assemble
from reusekit.surgery.steps import surface

# Runs of a training that is over; a copy is not compiled.
_LEFT_BEHIND = (keras.callbacks.Callback, keras.optimizers.Optimizer)


class Copier:
    """Copies layers as they are now, with all state that they and their parts hold.

    A copy is made of the live object and not of its configuration: adapted statistics,
    vocabularies, states, LoRA, quantised weights and attributes that were set later come along.
    Every object that holds a layer or a weight is copied, once for all of its uses, so that ties
    hold among the copies. Anything else that has no value of its own to change, functions and
    classes above all, is the very object of the original.

    Args:
        dtype: The dtype policy of the copies; None keeps that of each layer.
    """

    def __init__(self, dtype: keras.DTypePolicy | None = None):
        self._dtype = dtype
        self._copies: dict[int, Any] = {}
        self._originals: list[Any] = []  # kept, so that no other object gets the id of one
        self._reach: dict[int, bool] = {}
        self._builder = Builder(self._copies)

    def copy(self, value: Any) -> Any:
        """Return the copy of a layer, operation, model or of anything that holds some.

        Raises:
            CopyError: An object that holds a layer or a weight cannot be copied.
        """
        if id(value) not in self._copies:
            self._originals.append(value)
            self._copies.setdefault(id(value), self._copied(value))
        return self._copies[id(value)]

    def _copied(self, value: Any) -> Any:
        if isinstance(value, keras.Variable):
            return keras_internals.copy_variable(value, self._dtype)
        if isinstance(value, keras.Operation):
            return self._operation(value)
        if isinstance(value, _LEFT_BEHIND):
            return None
        if isinstance(value, np.ndarray) or keras_internals.is_backend_variable(value):
            return copy.deepcopy(value)
        if isinstance(value, list | dict | set | tuple):
            return self._container(value)
        if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
            return self._function(value) if self._reaches(value) else value
        if _has_parts(value) and (self._reaches(value) or _is_kerass(value)):
            return self._instance(value)
        return value

    # --- kinds of objects -----------------------------------------------------------------------

    def _operation(self, operation: Any) -> Any:
        graph = {}
        if keras_internals.functional(operation) is not None:
            if is_rebuilt(operation):
                return self._built(operation)
            new = self._begin(operation)
            graph = keras_internals.graph_attributes(operation, self._built(operation))
        else:
            new = self._begin(operation)
        for name, value in keras_internals.attributes(operation).items():
            if name not in graph:
                vars(new)[name] = self.copy(value)
        vars(new).update(graph)
        keras_internals.settle_copy(new)
        rates.hand_on(operation, new)
        if self._dtype is not None and isinstance(new, keras.Layer):
            new.dtype_policy = self._dtype
        return new

    def _built(self, model: keras.Model) -> keras.Model:
        model = keras_internals.only_graph(model)
        self._originals.append(model)
        for leaf in leaves(model):
            self.copy(leaf)
        return self._builder.build(model)

    def _instance(self, value: Any) -> Any:
        try:
            new = self._begin(value)
        except TypeError as error:
            raise CopyError(
                f"Expected what layers hold to be objects that can be copied. Received: one of "
                f"class {type(value).__name__}, which holds a layer or a weight. Use "
                "weights='share'."
            ) from error
        for name, part in _attributes(value):
            object.__setattr__(new, name, self.copy(part))
        keras_internals.settle_copy(new)
        return new

    def _begin(self, value: Any) -> Any:
        """Return an empty copy, known before its parts are copied, which may lead back to it."""
        new = self._copies[id(value)] = object.__new__(type(value))
        return new

    def _container(self, value: Any) -> Any:
        kind: Any = type(value)
        if not issubclass(type(value), list | dict | set | tuple):
            return self.copy(value.__wrapped__)  # TensorFlow's proxies of a container
        if isinstance(value, tuple):
            parts = [self.copy(part) for part in value]
            if all(new is old for new, old in zip(parts, value, strict=True)):
                return value
            return kind(*parts) if hasattr(value, "_fields") else tuple.__new__(kind, parts)
        # Of the builtin kinds underneath: Keras's own would track what is put into them.
        new = self._copies[id(value)] = kind.__new__(kind)
        for name, part in _attributes(value):
            object.__setattr__(new, name, self.copy(part))
        if isinstance(value, dict):
            if hasattr(value, "default_factory"):
                new.default_factory = value.default_factory
            ordered = OrderedDict if isinstance(value, OrderedDict) else dict
            for key, part in value.items():
                ordered.__setitem__(new, self.copy(key), self.copy(part))
        elif isinstance(value, list):
            list.extend(new, map(self.copy, value))
        else:
            set.update(new, map(self.copy, value))
        return new

    def _function(self, value: Any) -> Any:
        """Return a copy of a function, such as a closure, that holds the layers' copies."""
        if isinstance(value, types.MethodType):
            return types.MethodType(self.copy(value.__func__), self.copy(value.__self__))
        if isinstance(value, functools.partial):
            arguments = [self.copy(argument) for argument in value.args]
            return functools.partial(
                self.copy(value.func), *arguments, **self.copy(dict(value.keywords))
            )
        cells = tuple(types.CellType() for _ in value.__closure__ or ())
        new = self._copies[id(value)] = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, None, cells
        )
        for cell, old in zip(cells, value.__closure__ or (), strict=True):
            if _is_filled(old):
                cell.cell_contents = self._if_reaching(old.cell_contents)
        new.__defaults__ = self._if_reaching(value.__defaults__)
        new.__kwdefaults__ = self._if_reaching(value.__kwdefaults__)
        new.__qualname__, new.__doc__ = value.__qualname__, value.__doc__
        vars(new).update({name: self._if_reaching(part) for name, part in vars(value).items()})
        return new

    def _if_reaching(self, value: Any) -> Any:
        return self.copy(value) if self._reaches(value) else value

    def _reaches(self, value: Any) -> bool:
        """Return whether an object has hold of a layer or a weight, however far off."""
        if id(value) not in self._reach:
            self._originals.append(value)
            self._reach[id(value)] = any(map(is_own, reachable(value)))
        return self._reach[id(value)]


def is_own(value: Any) -> bool:
    """Return whether an object is a weight, a layer or an operation."""
    return isinstance(value, keras.Variable | keras.Operation)


def reachable(value: Any) -> Iterator[Any]:
    """Yield an object and all it holds, without following layers and weights."""
    waiting, seen = [value], {}
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            yield value
            if not is_own(value):
                waiting.extend(_parts(value))


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.FunctionType):
        yield from (c.cell_contents for c in value.__closure__ or () if _is_filled(c))
        yield from (value.__defaults__, value.__kwdefaults__, vars(value))
    elif _has_parts(value):
        yield from (part for _, part in _attributes(value))


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _has_parts(value: Any) -> bool:
    if type(value) in (str, int, float, bool, types.NoneType):  # most of what layers hold
        return False
    return not isinstance(
        value, type | types.ModuleType | keras.KerasTensor
    ) and not keras.ops.is_tensor(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _is_kerass(value: Any) -> bool:
    """Return whether an object is of a class of Keras's own, such as a map of dtype policies."""
    return type(value).__module__.startswith("keras.src.") and hasattr(value, "__dict__")


# --- models of other layers ---------------------------------------------------------------------


class Builder:
    """Builds a model again out of copies of its layers, nested models first.

    Args:
        copies: From the id of each layer and operation to what takes its place. A nested model that
            is not in it is built again of what takes the place of its own layers.
        shared: Whether to make new calls of the same layers instead.
        shapes: Other shapes for inputs, batch included, by the id of the Keras tensor.
    """

    def __init__(
        self,
        copies: dict[int, Any],
        shared: bool = False,
        shapes: Mapping[int, tuple[int | None, ...]] | None = None,
    ):
        self._copies = copies
        self._shared = shared
        self._shapes = shapes or {}
        self._variables: Variables | None = None
        self._graphs: list[Graph] = []  # kept, as copies are known by the ids of their originals

    def build(self, model: keras.Model) -> keras.Model:
        """Return the model again, a Sequential for a Sequential."""
        self._variables = self._variables or Variables(model)
        if isinstance(model, keras.Sequential):
            return self._sequential(model)
        graph = read(model)
        steps = surface(graph)
        engine = Rebuild(copies=None if self._shared else self._copies, variables=self._variables)
        for step in steps:
            if not self._shared:
                self._of(step.operation)
            engine.names.claim(step.operation)
        engine.add_inputs(graph.inputs, self._shapes)
        engine.run(graph, steps)
        if not self._shared:
            # Other objects that hold a tensor of the model, or one of its inputs, are to find it.
            self._graphs.append(graph)
            for tensor, value in engine.values.items():
                self._copies.setdefault(id(tensor.keras_tensor), value)
            for tensor in graph.inputs:
                self._note_input(tensor, engine.values[tensor])
        return assembled(graph, engine)

    def _note_input(self, tensor: Tensor, value: keras.KerasTensor) -> None:
        old, new = (keras_internals.producer(each) for each in (tensor.keras_tensor, value))
        self._copies.setdefault(id(old.operation), new.operation)
        new.operation.trainable = old.operation.trainable

    def _sequential(self, model: keras.Sequential) -> keras.Sequential:
        inputs = keras_internals.functional(model).inputs[0]
        name = keras_internals.producer(inputs).operation.name
        tensor = Tensor(name, inputs)
        (start,) = Rebuild().add_inputs([tensor], self._shapes)
        if not self._shared:
            self._note_input(tensor, start)
        layers = [layer if self._shared else self._of(layer) for layer in model.layers]
        # Set at once, the flag is the model's own; set later, it would be handed to its layers.
        return keras.Sequential([start, *layers], trainable=model.trainable, name=model.name)

    def _of(self, operation: Any) -> Any:
        """Return the copy of an operation; that of a nested model is built when it is first met."""
        if id(operation) not in self._copies:
            self._copies[id(operation)] = self.build(operation)
        return self._copies[id(operation)]


def assembled(graph: Graph, engine: Rebuild) -> keras.Model:
    """Return an engine's calls as a model of the graph's structure and flags."""
    inputs = keras.tree.map_structure(engine.values.get, graph.input_structure)
    outputs = engine.outputs(graph)
    model = assemble(inputs, outputs, graph.model.name, len(graph.calls), graph.model.trainable)
    model.supports_masking = graph.model.supports_masking
    return model


def is_rebuilt(operation: Any) -> bool:
    """Return whether a model is built again from its parts, rather than copied as one layer."""
    return keras_internals.is_plain_functional(operation) or (
        type(operation) is keras.Sequential and keras_internals.functional(operation) is not None
    )


def leaves(model: keras.Model) -> list[Any]:
    """Return every layer and operation that is copied as it is: what nested models are made of."""
    found: dict[int, Any] = {}
    waiting = [model]
    seen = {id(model)}
    while waiting:
        whole = waiting.pop()
        parts = [step.operation for step in surface(read(whole))]
        if isinstance(whole, keras.Sequential):
            parts = whole.layers
        for part in parts:
            if not is_rebuilt(part):
                found[id(part)] = part
            elif id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)
    return list(found.values())


def substitute(model: keras.Model, exchanged: Mapping[keras.Layer, keras.Layer]) -> keras.Model:
    """Exchange layers at all of their calls and keep nested models nested.

    Everything else is shared with the model, which is not changed.

    Args:
        model: A model with a functional graph.
        exchanged: From a layer to one that takes the same arguments and gives the same shapes.

    Returns:
        The new model.

    Raises:
        ShapeError: A layer cannot take what it would be fed.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> relu = keras.layers.ReLU(name="relu")
        >>> model = keras.Model(x, relu(x), name="m")
        >>> [layer.name for layer in substitute(model, {relu: keras.layers.ELU(name="elu")}).layers]
        ['x', 'elu']
    """
    new = {id(old): layer for old, layer in exchanged.items()}
    kept = {id(layer): layer for layer in [*leaves(model), *_untouched(model, set(new))]}
    return Builder(kept | new).build(model)


def _untouched(model: keras.Model, exchanged: set[int]) -> list[keras.Model]:
    """Return the nested models in which nothing is exchanged."""
    found = []
    for layer in {id(step.operation): step.operation for step in surface(read(model))}.values():
        if is_rebuilt(layer):
            if exchanged.isdisjoint(map(id, leaves(layer))):
                found.append(layer)
            else:
                found.extend(_untouched(layer, exchanged))
    return found
