"""A name for what a model computes: configuration without layer names, weights, vocabularies."""

import hashlib
import inspect
import json
from typing import Any

import keras
import numpy as np

from reusekit.errors import CacheError
from reusekit.graph.keras_internals import all_layers

# Their code changes with their version only, so configurations say enough about their classes.
_LIBRARIES = {"abc", "builtins", "keras", "keras_hub", "tensorflow", "torch"}


def model_digest(model: keras.Model) -> str:
    """Return a digest of a model's configuration, weights and vocabularies.

    Automatic layer names count up within a process (`conv2d_7`), so they are replaced by their
    order of appearance: the same model built twice, in two processes, has one digest. So have a
    model and its frozen or compiled self.

    Args:
        model: A functional or Sequential model.

    Returns:
        32 hexadecimal digits (128 bits of BLAKE2b).

    Example:
        >>> def build(seed):
        ...     keras.utils.set_random_seed(seed)
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> model_digest(build(1)) == model_digest(build(1))
        True
        >>> model_digest(build(1)) == model_digest(build(2))
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    config = without_names(json.loads(model.to_json()))
    digest.update(json.dumps(config, sort_keys=True).encode())
    for variable in model.weights:
        value = np.ascontiguousarray(keras.ops.convert_to_numpy(variable))
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(value.view(np.uint8).data if value.size else b"")
    for layer in all_layers(model):
        # One that `adapt` has found is neither among the weights nor in the configuration.
        if hasattr(layer, "get_vocabulary") and layer.get_config().get("vocabulary") is None:
            words = [str(word) for word in layer.get_vocabulary()]
            digest.update(json.dumps(words).encode())
    return digest.hexdigest()


# Compilation, build settings and flags are no part of what a model computes.
_PASSED_OVER = {"keras_version", "compile_config", "build_config", "trainable"}


def without_names(config: Any) -> Any:
    """Return a model's configuration with each layer name replaced by its order of appearance."""
    numbers: dict[str, str] = {}

    def numbered(name: str) -> str:
        return numbers.setdefault(name, str(len(numbers)))

    def walk(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            policy = node.get("class_name") == "DTypePolicy"
            return {
                k: v if policy else walk(v, k) for k, v in node.items() if k not in _PASSED_OVER
            }
        if key == "name" and isinstance(node, str):
            return numbered(node)
        if key in ("keras_history", "input_layers", "output_layers"):
            return references(node)
        if isinstance(node, list):
            return [walk(child) for child in node]
        return node

    def references(node: Any) -> Any:
        # [name, call, tensor], or any nesting of such triples.
        if isinstance(node, dict):
            return {k: references(v) for k, v in node.items()}
        if isinstance(node, list):
            return [numbered(c) if isinstance(c, str) else references(c) for c in node]
        return node

    return walk(config)


def described_operation(operation: Any, address: str) -> list:
    """Return the class and the configuration of an operation, without names.

    Args:
        operation: A layer or an operation of Keras.
        address: What it is called in a message.

    Raises:
        CacheError: It does not say what it is.
    """
    kind = type(operation)
    try:
        config = keras.saving.serialize_keras_object(operation)
        config = without_names(json.loads(json.dumps(config)))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise CacheError(
            f"Expected layers whose configuration can be saved. Received: {address!r} of class "
            f"{kind.__name__}. Give it a `get_config`, as saving the model needs too."
        ) from error
    described = [f"{kind.__module__}.{kind.__qualname__}", config, _own_code(kind)]
    # The results of `adapt` are neither among the weights of a layer nor in its configuration.
    if hasattr(operation, "get_vocabulary"):
        described.append([str(word) for word in operation.get_vocabulary()])
    return described


def _own_code(kind: type) -> list[str]:
    """Return the source of a user's own layer, whose configuration does not tell its `call`."""
    classes = [c for c in kind.__mro__ if c.__module__.partition(".")[0] not in _LIBRARIES]
    try:
        return [inspect.getsource(c) for c in classes]
    except (OSError, TypeError):  # typed into an interpreter that keeps no source
        return []
