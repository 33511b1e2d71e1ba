"""Faults of a file: other bytes, other lengths, other files, folders and links."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_CONTENTS = (b"", b"[]", b"null", b"{}", b"7", b"\xff\xfe", b"[" * 100_000)
_WAYS = ("flip", "flip", "digit", "cut", "add", "content", "delete", "exchange", "copy")
_IN_ITS_PLACE = ("folder", "full folder", "link", "loop")


class Outside:
    """A folder that nothing may touch, at which links point.

    Args:
        folder: Where; it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for name in ("file", "0-000000.npy", "manifest.json", "state.json"):
            (folder / name).write_text(name)

    def untouched(self) -> bool:
        """Compare it with what it was."""
        return all(path.read_text() == path.name for path in self.folder.iterdir()) and (
            len([*self.folder.iterdir()]) == 4
        )


def damage(
    generator: np.random.Generator, file: Path, others: Sequence[Path], outside: Outside
) -> str:
    """Damage a file in a way that is drawn.

    Args:
        generator: Draws.
        file: What is damaged.
        others: Files of its kind, whose content may come in its place.
        outside: What links point at.

    Returns:
        What was done.
    """
    ways = (*_WAYS, *_IN_ITS_PLACE)
    way = ways[generator.integers(len(ways))]
    content = file.read_bytes() if file.is_file() else b""
    if way in ("exchange", "copy") and len(others) > 0:
        other = others[generator.integers(len(others))]
        if way == "exchange":
            file.write_bytes(other.read_bytes())
            other.write_bytes(content)
        else:
            shutil.copy(other, file)
        return f"{way} {file.name} and {other.parent.name}/{other.name}"
    if way in _IN_ITS_PLACE:
        file.unlink(missing_ok=True)
        if way == "link":
            file.symlink_to(outside.folder / "file")
        elif way == "loop":
            file.symlink_to(file)
        else:
            file.mkdir()
            if way == "full folder":
                (file / "inner").write_text("here")
        return f"{way} as {file.name}"
    if way == "delete":
        file.unlink(missing_ok=True)
        return f"{file.name} deleted"
    if way == "content":
        number = int(generator.integers(len(_CONTENTS)))
        file.write_bytes(_CONTENTS[number])
        return f"{file.name} holds {_CONTENTS[number][:9]!r}"
    if way == "cut":
        file.write_bytes(content[: generator.integers(len(content) + 1)])
        return f"{file.name} cut to {file.stat().st_size} of {len(content)}"
    if way == "add":
        file.write_bytes(content + generator.bytes(5))
        return f"{file.name} longer"
    return f"{file.name} {_flipped(generator, file, content, digits=way == 'digit')}"


def _flipped(generator: np.random.Generator, file: Path, content: bytes, digits: bool) -> str:
    """Alter one byte, or one digit, and set the file's time back."""
    places = [at for at, byte in enumerate(content) if not digits or 48 <= byte < 58]
    if not places:
        return "left"
    at = places[generator.integers(len(places))]
    altered = bytearray(content)
    altered[at] = (
        48 + (altered[at] - 47) % 10 if digits else altered[at] ^ (1 << int(generator.integers(8)))
    )
    before = file.stat()
    with file.open("r+b") as opened:
        opened.write(altered)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return f"byte {at} {content[at]} to {altered[at]}"
