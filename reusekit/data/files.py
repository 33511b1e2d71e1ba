"""Files of examples: pictures, sounds and texts, told apart by their content."""

import functools
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image

from reusekit.data.pictures import FORMATS, GREY, ORIENTATION, plain_jpeg
from reusekit.errors import DataError

_FAST = ("JPEG", "MPO")
"""Formats that simplejpeg decodes as Pillow does, and faster."""
_TOGETHER = 64
"""Files that a thread takes at a time."""
_READ = 2**20
"""Bytes that are read at a time."""


class Stamp(NamedTuple):
    """A file as it lies on the disk: another size or time means another content."""

    path: str
    size: int
    modified: int


def stamp(path: str | os.PathLike) -> Stamp:
    """Return the stamp of a file.

    Raises:
        DataError: It is not there, may not be read, or is a folder, a pipe or a device.
    """
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(
            f"Expected a file that can be read. Received: {os.fspath(path)!r}: {error.strerror}. "
            "Check its path."
        ) from error
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for who writes into it
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise DataError(f"Expected a file that can be read. Received: {os.fspath(path)!r}: {kind}.")
    return Stamp(os.fspath(path), found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class ExampleFile:
    """A file, known by its content.

    Attributes:
        path: Where it lies.
        digest: Of its content, 16 bytes.
        kind: `picture`, `sound` or `text`; empty for none of them.
        trouble: Why it is none of them.
        fast: Whether simplejpeg decodes it as it should be.
        grey: Whether it is a picture without colours.
        shape: Height and width of a picture as it is seen, samples and channels of a sound.
        rate: Samples a second of a sound.
    """

    path: str
    digest: bytes
    kind: str = ""
    trouble: str = ""
    fast: bool = True
    grey: bool = False
    shape: tuple[int, ...] = ()
    rate: int = 0

    @property
    def key(self) -> int:
        """A number of 64 bits that follows from the content."""
        return int.from_bytes(self.digest[:8])


@functools.lru_cache(maxsize=8)
def look_at(stamps: tuple[Stamp, ...]) -> tuple[ExampleFile, ...]:
    """Read files once, and tell what they are; nothing is decoded.

    Args:
        stamps: The files. While they stay as they are, the answer is remembered.
    """
    found = in_threads(lambda part: [_look(stamp) for stamp in part], stamps)
    return tuple(file for part in found for file in part)


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return what a function gives for each part of some items, called in threads.

    One more than there are processors, since some of them wait for the lock of Python.

    Args:
        function: Takes a slice of the items.
        items: Whatever can be sliced.
    """
    parts = (items[at : at + _TOGETHER] for at in range(0, len(items), _TOGETHER))
    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        return list(pool.map(function, parts))


def _look(stamp: Stamp) -> ExampleFile:
    try:
        data = read_file(stamp.path)
    except OSError as error:
        return ExampleFile(stamp.path, b"", trouble=str(error.strerror))
    found = ExampleFile(stamp.path, hashlib.blake2b(data, digest_size=16).digest())
    return _text(found, data) or _picture(found, data) or _sound(found, data)


def read_file(path: str) -> bytes:
    """Return the content of a file."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # half the calls, and time, of `open`
    try:
        parts = []
        while part := os.read(file, _READ):  # which may give less than there is
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(file)


def _text(found: ExampleFile, data: bytes) -> ExampleFile | None:
    if not data:
        return replace(found, trouble="empty")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if b"\0" in data else replace(found, kind="text")


def _picture(found: ExampleFile, data: bytes) -> ExampleFile | None:
    plain = plain_jpeg(data)
    if plain is not None:
        shape, grey = plain
        return replace(found, kind="picture", shape=shape, grey=grey)
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            # Pillow decodes a whole PNG to find that it has none.
            exif = {} if image.format == "PNG" and b"eXIf" not in data else image.getexif()
            # Pillow turns a TIFF by itself, and says the size of what it turned.
            turned = 1 if image.format == "TIFF" else exif.get(ORIENTATION, 1)
            width, height = image.size
            return replace(
                found,
                kind="picture",
                fast=image.format in _FAST and image.mode in ("L", "RGB") and turned == 1,
                grey=image.mode in GREY,
                shape=(width, height) if turned in (5, 6, 7, 8) else (height, width),
            )
    except Image.UnidentifiedImageError:
        return None
    except Exception as error:  # Pillow raises whatever a broken file leads it to
        return replace(found, trouble=said(error))


def _sound(found: ExampleFile, data: bytes) -> ExampleFile:
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return replace(found, trouble="no picture, no sound (WAV), no text in UTF-8")
    chunks = {}
    at = 12
    while at + 8 <= len(data) and b"data" not in chunks:
        name, size = struct.unpack_from("<4sI", data, at)
        chunks[name] = at + 8, size
        at += 8 + size + size % 2
    try:
        _, channels, rate, _, width, bits = struct.unpack_from("<HHIIHH", data, chunks[b"fmt "][0])
    except (KeyError, struct.error):
        return replace(found, trouble="a WAV file that does not say what it holds")
    if not (rate and width and chunks.get(b"data", (0, 0))[1] >= width):
        return replace(found, trouble="a WAV file without a sound")
    start, size = chunks[b"data"]
    if bits != 16:
        return replace(found, trouble=f"a WAV file of {bits} bits; 16 are read")
    if start + size > len(data):
        return replace(found, trouble="a WAV file that ends too early")
    return replace(found, kind="sound", shape=(size // width, channels), rate=rate)


def said(error: Exception) -> str:
    """Return an error about a file as part of a sentence."""
    text = str(error).replace("cannot identify image file", "no known picture")
    return " ".join(text.split())[:150].rstrip(".") or type(error).__name__
