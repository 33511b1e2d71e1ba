"""Copies of live layers, and layers made again from their configurations."""

import copy
import functools
import tempfile
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from reusekit.errors import CopyError, reason
from reusekit.graph import keras_internals
from reusekit.surgery import rates
from reusekit.surgery.building import Builder, is_rebuilt, leaves

# Runs of a training that is over; a copy is not compiled.
_LEFT_BEHIND = (keras.callbacks.Callback, keras.optimizers.Optimizer)


class Copier:
    """Copies layers as they are now, with all state that they and their parts hold.

    A copy is made of the live object and not of its configuration: adapted statistics,
    vocabularies, states, LoRA, quantised weights and attributes that were set later come along.
    Whatever holds a layer or a weight is copied, once for all of its places, so that ties hold
    among the copies. Anything else that has no value of its own to change, functions and classes
    above all, is the very object of the source.

    Args:
        dtype: The dtype policy of the copies; None keeps that of each layer.
    """

    def __init__(self, dtype: keras.DTypePolicy | None = None):
        self._dtype = dtype
        self._copies: dict[int, Any] = {}
        self._sources: list[Any] = []  # kept, so that no other object gets the id of one
        self._reach: dict[int, bool] = {}
        self._builder = Builder(self._copies)

    def copy(self, value: Any) -> Any:
        """Return the copy of a layer, operation, model or of anything that holds some.

        Raises:
            CopyError: An object that holds a layer or a weight cannot be copied.
        """
        if id(value) not in self._copies:
            self._sources.append(value)
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
        self._sources.append(model)
        for leaf in leaves(model):
            self.copy(leaf)
        return self._builder.build(model)

    def _instance(self, value: Any) -> Any:
        try:
            new = self._begin(value)
        except TypeError as error:
            raise CopyError(
                f"Expected what layers hold to be objects that can be copied, received one of "
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
            self._sources.append(value)
            self._reach[id(value)] = any(map(_is_own, _reachable(value)))
        return self._reach[id(value)]


def _is_own(value: Any) -> bool:
    return isinstance(value, keras.Variable | keras.Operation)


def _reachable(value: Any) -> Iterator[Any]:
    """Yield an object and all it holds, without following layers and weights."""
    waiting, seen = [value], {}
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            yield value
            if not _is_own(value):
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


# --- made again from configurations -------------------------------------------------------------


def remake_operations(
    operations: Iterable[Any], policy: keras.DTypePolicy | None = None, unbuilt: bool = False
) -> dict[int, Any]:
    """Make layers and operations again from their configurations, with fresh weights.

    They are made together, as a saved model's layers are, so that a layer that holds another one
    holds the other's copy. Their own classes and functions need not be registered.

    Args:
        operations: Layers and operations, each once; no functional models.
        policy: Their dtype policy; None keeps that of each layer.
        unbuilt: Whether to leave them unbuilt, for other shapes than those they were built for.

    Returns:
        From the id of each, and of each of its variables, to the copy.

    Raises:
        CopyError: One does not come back from its own configuration.
    """
    operations = list(operations)
    with keras_internals.sharing_scope():
        configurations = [_serialised(operation) for operation in operations]
    if unbuilt or policy is not None:
        configurations = [_without_builds(configuration) for configuration in configurations]
    with keras_internals.sharing_scope():
        copies = [
            _revived(operation, configuration)
            for operation, configuration in zip(operations, configurations, strict=True)
        ]
    found: dict[int, Any] = {}
    for old, new in zip(operations, copies, strict=True):
        found[id(old)] = new
        for layer in _layers(new) if policy is not None and isinstance(new, keras.Layer) else ():
            layer.dtype_policy = policy
        held = [getattr(each, "variables", ()) for each in (old, new)]
        found.update((id(one), other) for one, other in zip(*held, strict=False))
    return found


def _serialised(operation: Any) -> dict:
    try:
        return keras.saving.serialize_keras_object(operation)
    except Exception as error:
        raise _refusal(operation, error) from error


def _without_builds(part: Any) -> Any:
    """Return a configuration without the shapes that layers were built for."""
    if isinstance(part, dict):
        return {key: _without_builds(one) for key, one in part.items() if key != "build_config"}
    return type(part)(map(_without_builds, part)) if type(part) in (list, tuple) else part


def _revived(operation: Any, configuration: dict) -> Any:
    known = {**keras_internals.scoped_objects(), **_own_objects(operation)}
    try:
        with keras.saving.custom_object_scope(known):
            # It was made a moment ago from a live object: there is nothing to distrust.
            made = keras.saving.deserialize_keras_object(configuration, safe_mode=False)
    except Exception as error:
        raise _refusal(operation, error) from error
    _keep_functions(operation, made)
    for old, new in zip(_layers(operation), _layers(made), strict=False):
        if hasattr(old, "save_assets"):  # A vocabulary decides the shape of what it looks up.
            hand_on_state(old, new)
    return made


def _refusal(operation: Any, error: Exception) -> CopyError:
    return CopyError(
        f"Expected the layer {operation.name!r} of class {type(operation).__name__} to come back "
        "from its configuration (get_config and from_config); or use weights='copy' or 'share'. "
        f"Keras says: {reason(error)}"
    )


def _own_objects(operation: Any) -> Mapping[str, Any]:
    """Return a layer's classes and functions that are not Keras's, by registered name."""
    found: dict[str, Any] = {}
    for part in _layers(operation):
        for value in (part, *_reachable(keras_internals.attributes(part))):
            each = value if isinstance(value, types.FunctionType | type) else type(value)
            module = getattr(each, "__module__", None) or ""
            if not module.startswith(("keras.", "builtins", "tensorflow.", "numpy.")):
                found[each.__name__] = each
                found[keras.saving.get_registered_name(each)] = each
    return found


def _keep_functions(old: Any, new: Any) -> None:
    """Give a layer made again the functions of its source, whose surroundings no text tells."""
    for one, other in zip(_layers(old), _layers(new), strict=False):
        for name, value in keras_internals.attributes(one).items():
            both = isinstance(value, types.FunctionType) and isinstance(
                vars(other).get(name), types.FunctionType
            )
            if both and not any(map(_is_own, _reachable(value))):
                vars(other)[name] = value


def _layers(operation: Any) -> list[Any]:
    if isinstance(operation, keras.Layer):
        return keras_internals.all_layers(operation)
    return [operation]


def hand_on_state(old: keras.Layer, new: keras.Layer) -> None:
    """Give a layer made again what its source was adapted to: statistics or a vocabulary."""
    store: dict[str, Any] = {}
    old.save_own_variables(store)
    new.load_own_variables(store)
    if hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            if any(Path(folder).iterdir()):
                new.load_assets(folder)
