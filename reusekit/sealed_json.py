"""Small files that are written as a whole, and JSON that is read unaltered or not at all."""

import errno
import json
import os
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SEAL = "checksum"


class DamagedFileError(ValueError):
    """A file is missing, or is not what was written."""


def write_durably(path: Path, text: str, private: bool = False) -> None:
    """Write a small file so that it is there as a whole, after a power failure too, or not.

    A file that lies there is replaced; a link itself, never its target.

    Args:
        path: Where to.
        text: Its content.
        private: Let nobody but its owner read it.
    """
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with open(opened, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_sealed(path: Path, content: Mapping[str, Any], private: bool = False) -> None:
    """Write JSON with its checksum; see `write_durably`."""
    write_durably(path, sealed(content), private)


@dataclass(frozen=True)
class Encoded:
    """A value as JSON, kept where what holds it is written again and again.

    Attributes:
        text: As it is written.
        ordered: As its checksum is of, with keys in order.
    """

    text: str
    ordered: str


def encoded(value: Any) -> Encoded:
    """Return a value as JSON; it may hold some that are so already, two levels down at most.

    Example:
        >>> encoded({"b": 1, "a": [encoded(2)]})
        Encoded(text='{"b": 1, "a": [2]}', ordered='{"a": [2], "b": 1}')
    """
    if isinstance(value, Encoded):
        return value
    if isinstance(value, list) and any(map(_holds, value)):
        items = list(map(encoded, value))
        return Encoded(*(f"[{', '.join(told)}]" for told in _both(items)))
    if isinstance(value, dict) and any(map(_holds, value.values())):
        texts, ordered = _both(list(map(encoded, value.values())))
        keys = list(map(json.dumps, value))
        in_order = sorted(zip(value, keys, ordered, strict=True))
        parts = zip(keys, texts, strict=True), (one[1:] for one in in_order)
        return Encoded(*(f"{{{', '.join(map(': '.join, part))}}}" for part in parts))
    text = json.dumps(value)
    return Encoded(text, json.dumps(json.loads(text), sort_keys=True))  # as it will be read


def _holds(value: Any) -> bool:
    inside = value.values() if isinstance(value, dict) else value
    return isinstance(value, Encoded) or (
        isinstance(value, dict | list) and any(isinstance(one, Encoded) for one in inside)
    )


def _both(told: list[Encoded]) -> tuple[list[str], list[str]]:
    return [one.text for one in told], [one.ordered for one in told]


def sealed(content: Mapping[str, Any]) -> str:
    """Return JSON with its checksum, as `write_sealed` writes it."""
    told = encoded(content)
    seal = zlib.crc32(told.ordered.encode())
    return f'{told.text[:-1]}{", " if content else ""}"{_SEAL}": {seal}}}'


def read_sealed(path: Path) -> dict[str, Any]:
    """Read the JSON that `write_sealed` has written, without its checksum.

    Raises:
        DamagedFileError: There is no such file, or it has been altered in any way.
        PermissionError: It may not be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "sealed.json")
        >>> write_sealed(file, {"size": 3})
        >>> read_sealed(file)
        {'size': 3}
        >>> _ = file.write_text(file.read_text().replace("3", "4"))
        >>> read_sealed(file)
        Traceback (most recent call last):
        ...
        reusekit.sealed_json.DamagedFileError: .../sealed.json is damaged.
    """
    try:
        told = path.read_bytes()
    except OSError as error:
        if not is_damage(error):
            raise
        raise DamagedFileError(f"{path} is missing or damaged: {error.strerror}.") from error
    return unsealed(told, path)


def unsealed(told: bytes, name: Any) -> dict[str, Any]:
    """Return the JSON that `sealed` gave, without its checksum.

    Args:
        told: What was read.
        name: Where from, for the message.

    Raises:
        DamagedFileError: It has been altered in any way.
    """
    try:
        content = json.loads(told)
        sound = isinstance(content, dict) and content.pop(_SEAL, None) == checksum(content)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{name} is damaged ({type(error).__name__}).") from error
    if not sound:
        raise DamagedFileError(f"{name} is damaged.")
    return content


def is_damage(error: OSError) -> bool:
    """Tell a file that is missing, no file or broken from one that cannot be read just now."""
    return error.errno in _DAMAGE


_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)


def checksum(content: Mapping[str, Any]) -> int:
    """Compute the CRC-32 of JSON, in whatever order its keys are."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
