"""A shard: a `.npy` file that is written as examples come and read with a checksum.

A CRC-32 tells a torn, truncated or altered file from a sound one as fast as a disk reads.
"""

import io
import mmap
import os
import uuid
import zlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from reusekit.features.layout import share
from reusekit.features.manifest import ArraySpec
from reusekit.sealed_json import is_damage

_BLOCK = 1 << 20

# What was read once and has not been touched since need not be read again by this process.
_sound: set[tuple[int, ...]] = set()


class DamagedShard(Exception):
    """A shard is missing, torn or altered."""


def shard_file(folder: Path, array: int, shard: int) -> Path:
    """Return the path of a shard of an array."""
    return folder / f"{array}-{shard:06d}.npy"


def stored_dtype(name: str) -> np.dtype:
    """Return the dtype a file has for an array of this dtype.

    `.npy` does not know bfloat16 and its kind, so their bits are kept as unsigned integers.
    """
    dtype = np.dtype(name)
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")


class ShardWriter:
    """Writes a shard as batches come; memory holds no more of it than one batch.

    The file appears under its name when it is whole, and a reader of what lay there before keeps
    what it has.

    Args:
        path: Where to.
        array: What it holds.
        rows: How many examples there will be.
    """

    def __init__(self, path: Path, array: ArraySpec, rows: int) -> None:
        # A name that no other writer has, so that nothing can lie there but what this one makes.
        self._path, self._part = path, path.with_suffix(f".{uuid.uuid4().hex}.part")
        self._dtype = stored_dtype(array.dtype)
        self._checksum = 0
        self._file = self._part.open("xb")
        header = io.BytesIO()
        told = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (rows, *array.shape),
        }
        np.lib.format.write_array_header_1_0(header, told)
        self._write(header.getbuffer())

    def append(self, values: np.ndarray) -> None:
        """Add examples."""
        self._write(np.ascontiguousarray(values).view(self._dtype).data)

    def _write(self, content: memoryview) -> None:
        self._checksum = zlib.crc32(content, self._checksum)
        self._file.write(content)

    def finish(self) -> int:
        """Put the file in its place, safe from a power failure, and return its checksum."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        share(self._part)
        self._part.replace(self._path)
        return self._checksum

    def abandon(self) -> None:
        """Remove what was written so far."""
        with suppress(OSError):  # closing tries once more to write what a full disk refused
            self._file.close()
        self._part.unlink(missing_ok=True)


def read_shard(
    path: Path, array: ArraySpec, rows: int, checksum: int, again: bool = False
) -> np.ndarray:
    """Map a shard into memory, after its checksum.

    Args:
        path: Where it lies.
        array: What it should hold.
        rows: How many examples.
        checksum: Of the whole file.
        again: Whether to compute the checksum even where this process did already.

    Raises:
        DamagedShard: It is not what it should be.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            # The time of the last change cannot be set, as that of the last write can.
            times = (found.st_mtime_ns, found.st_ctime_ns)
            told = (found.st_dev, found.st_ino, found.st_size, *times, checksum)
            if again or told not in _sound:
                if _file_checksum(file) != checksum:
                    raise DamagedShard(f"{path} does not have its checksum.")
                _sound.add(told)
            file.seek(0)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if shape != (rows, *array.shape) or dtype != stored_dtype(array.dtype):
                raise DamagedShard(f"{path} holds {dtype} of shape {shape}.")
            # Not `np.memmap`: taking rows of its objects costs several times more.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return np.ndarray(shape, dtype, mapped, file.tell())
    except ValueError as error:
        raise DamagedShard(f"{path} is no .npy file.") from error
    except OSError as error:
        if not is_damage(error):
            raise
        raise DamagedShard(f"{path} is missing or cannot be read.") from error


def let_go(shard: np.ndarray) -> None:
    """Give a mapped shard's memory back; what is read again comes from the system's cache."""
    if isinstance(shard.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        shard.base.madvise(mmap.MADV_DONTNEED)


def _file_checksum(file: BinaryIO) -> int:
    checksum = 0
    while block := file.read(_BLOCK):
        checksum = zlib.crc32(block, checksum)
    return checksum
