"""Digests by SHA-256, alike in every process: of values, of arrays, of files.

Two names are older and stay, since registries hold them: `model_digest` of a model and the
fingerprint of a data set are 128 bits of BLAKE2b.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np


def digest(value: Any) -> str:
    """Return the digest of what serialises to JSON; the order of keys does not count.

    Raises:
        TypeError: It does not serialise.

    Example:
        >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def array_digest(value: Any) -> str:
    """Return the digest of an array's dtype, shape and bytes."""
    array = np.ascontiguousarray(keras.ops.convert_to_numpy(value))
    found = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    found.update(array.view(np.uint8).data if array.size else b"")
    return found.hexdigest()


def file_digest(file: Path) -> str:
    """Return the digest of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
