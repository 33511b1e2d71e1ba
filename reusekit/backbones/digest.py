"""A name for what a model computes: its configuration without layer names, and its weight bytes."""

import hashlib
import json
from typing import Any

import keras
import numpy as np


def model_digest(model: keras.Model) -> str:
    """Return a digest of a model's configuration and weights.

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
