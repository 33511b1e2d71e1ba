"""Layers made again from their configurations, ties between them kept."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from reusekit.graph import keras_internals
from reusekit.surgery.errors import CopyError


def copy_operations(operations: Iterable[Any]) -> dict[int, Any]:
    """Makes layers and operations again, with fresh weights.

    They are made together, as a saved model's layers are, so that a layer that holds another one
    holds the other's copy. Layers of classes that are not registered are found all the same.

    Args:
        operations: Layers and operations, each once; no functional models.

    Returns:
        From the id of each, and of each of its variables, to the copy.

    Raises:
        CopyError: One does not come back from its own configuration.
    """
    operations = list(operations)
    with keras_internals.sharing_scope():
        configurations = [_serialised(operation) for operation in operations]
    classes = _custom_classes(operations)
    with keras_internals.sharing_scope(), keras.saving.custom_object_scope(classes):
        copies = [
            _revived(operation, configuration)
            for operation, configuration in zip(operations, configurations, strict=True)
        ]
    found = {}
    for operation, copy in zip(operations, copies, strict=True):
        found[id(operation)] = copy
        held = [getattr(each, "variables", ()) for each in (operation, copy)]
        pairs = zip(*held, strict=False)
        found.update((id(old), new) for old, new in pairs)
    return found


def _serialised(operation: Any) -> dict:
    try:
        return keras.saving.serialize_keras_object(operation)
    except Exception as error:
        raise CopyError(_refusal(operation, error)) from error


def _revived(operation: Any, configuration: dict) -> Any:
    try:
        # The configuration was made a moment ago from a live object: there is nothing to distrust.
        return keras.saving.deserialize_keras_object(configuration, safe_mode=False)
    except Exception as error:
        raise CopyError(_refusal(operation, error)) from error


def _refusal(operation: Any, error: Exception) -> str:
    reason = str(error).strip().splitlines()
    return (
        f"Expected the layer {operation.name!r} of class {type(operation).__name__} to come back "
        "from its configuration (get_config and from_config), or use weights='share'. "
        f"Keras says: {reason[0] if reason else error!r}"
    )


def _custom_classes(operations: Iterable[Any]) -> Mapping[str, type]:
    """The classes of layers that are not Keras's own, under every name Keras may look for."""
    classes: dict[str, type] = {}
    for operation in operations:
        inner = keras_internals.all_layers(operation) if _is_layer(operation) else [operation]
        for part in inner:
            kind = type(part)
            if not kind.__module__.startswith("keras.src."):
                classes[kind.__name__] = kind
                classes[keras.saving.get_registered_name(kind)] = kind
    return classes


def _is_layer(operation: Any) -> bool:
    return isinstance(operation, keras.Layer)
