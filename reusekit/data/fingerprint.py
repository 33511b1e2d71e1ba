"""The fingerprint of a data set: its bytes, and its treatment on the way in."""

import hashlib
import json
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


def fingerprint(builder: tfds.core.DatasetBuilder, split: str, treatment: dict[str, Any]) -> str:
    """Return a digest of the content of a split and of what is done to each example.

    The prepared files are read once, at the disk's speed; decoding their images always costs more.
    Where a builder has no files, as under `tfds.testing.mock_data`, its examples are read instead.

    Args:
        builder: A prepared builder.
        split: A TFDS split, such as `train[:80%]`.
        treatment: Selection, resizing and whatever else decides the numbers that come out; must
            serialise to JSON.

    Returns:
        32 hexadecimal digits (128 bits of BLAKE2b).
    """
    digest = hashlib.blake2b(digest_size=16)
    told = [builder.info.full_name, split, repr(builder.info.features), treatment]
    digest.update(json.dumps(told, sort_keys=True).encode())
    files = [] if not builder.info.splits else builder.info.splits[split].filepaths
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    if not files:
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            for name, value in sorted(_flat(example).items()):
                digest.update(name.encode() + getattr(value, "tobytes", lambda v=value: bytes(v))())
    return digest.hexdigest()


def _flat(example: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Return the features of an example by path; those of other shape than an array as text."""
    flat: dict[str, Any] = {}
    for name, value in example.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{name}/")
        elif isinstance(value, bytes | np.ndarray | np.generic):
            flat[before + name] = value
        else:
            flat[before + name] = str(value).encode()
    return flat
