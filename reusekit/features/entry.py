"""Entries of the store: arrays in one mapped file each, and a manifest of their blocks.

A CRC-32 of each block tells a torn, truncated or altered file from a sound one as fast as a disk
reads.
"""

import io
import math
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import keras
import numpy as np

from reusekit.errors import CacheError
from reusekit.features.key import FeatureKey
from reusekit.features.layout import Layout, Lease, share
from reusekit.sealed_json import is_damage, read_sealed, write_sealed

MANIFEST_FILE = "manifest.json"

BLOCK_BYTES = 64 << 20
"""About how large a block is: what a kill costs, and small beside a disk."""

BLOCK_ROWS = 4096
"""At most so many examples are in a block, since each has cost a pass through the bottom."""

RESIDENT_BYTES = 32 << 20
"""About so much memory the file of an array may take up, however large it is."""

# The system maps the surroundings of what is read, too: on Linux about eight times as much.
_SURROUNDINGS = 8

_CHUNK = 1 << 20

# What was read once and has not been touched since need not be read again by this process.
_sound: set[tuple] = set()


class DamagedFile(Exception):
    """The file of an array is missing, torn or altered."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of an entry.

    Attributes:
        name: What its maker called it.
        dtype: Its dtype's name, such as `float32` or `bfloat16`.
        shape: The shape of one example.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one example."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def stored_dtype(self) -> np.dtype:
        """The dtype of its file: integers for bfloat16 and its kind, which `.npy` does not know."""
        dtype = np.dtype(self.dtype)
        return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")

    def header(self, size: int) -> bytes:
        """Return the header of its `.npy` file for so many examples."""
        header = io.BytesIO()
        told = {
            "descr": np.lib.format.dtype_to_descr(self.stored_dtype),
            "fortran_order": False,
            "shape": (size, *self.shape),
        }
        np.lib.format.write_array_header_1_0(header, told)
        return header.getvalue()


@dataclass(frozen=True)
class Manifest:
    """The content of an entry or a draft.

    Attributes:
        digest: The key it is stored under.
        size: The number of examples when it is whole.
        arrays: Its arrays, in the key's order.
        rows_per_block: Examples in each block but the last.
        checksums: For each block that is there a checksum of each array's bytes.
        made: When and with what it was made.
        about: What its maker said of it.
    """

    digest: str
    size: int
    arrays: tuple[ArraySpec, ...]
    rows_per_block: int
    checksums: tuple[tuple[int, ...], ...]
    made: Mapping[str, str]
    about: Mapping[str, Any]

    @property
    def done(self) -> int:
        """The number of examples that are there."""
        return min(len(self.checksums) * self.rows_per_block, self.size)

    @property
    def whole(self) -> bool:
        """True where every example is there."""
        return self.done == self.size

    def answers(self, key: FeatureKey) -> bool:
        """Compare its key, and the numbers of its arrays and examples, with those of a key."""
        told = (self.digest, len(self.arrays), self.size)
        return told == (key.digest, len(key.arrays), key.size)

    @property
    def bytes(self) -> int:
        """Bytes of the arrays of the whole entry."""
        return self.size * sum(array.row_bytes for array in self.arrays)

    def rows(self, block: int) -> range:
        """Return the examples in a block."""
        start = block * self.rows_per_block
        return range(start, min(start + self.rows_per_block, self.size))

    def write(self, folder: Path) -> None:
        """Write it into the entry's folder, whole or not at all."""
        write_sealed(folder / MANIFEST_FILE, asdict(self))
        share(folder / MANIFEST_FILE)

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Read the manifest of a folder; None where there is none that belongs to it.

        A folder bears the name of its key. One that was copied or renamed does not answer to its
        new name, and a link answers to none.
        """
        try:
            told = read_sealed(folder / MANIFEST_FILE)
            arrays = (ArraySpec(a["name"], a["dtype"], tuple(a["shape"])) for a in told["arrays"])
            checksums = (tuple(found) for found in told["checksums"])
            manifest = cls(**{**told, "arrays": tuple(arrays), "checksums": tuple(checksums)})
            belongs = manifest.digest == folder.name and not folder.is_symlink()
            return manifest if belongs and manifest._is_consistent() else None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
            return None

    def _is_consistent(self) -> bool:
        blocks = math.ceil(self.size / self.rows_per_block)
        return (
            self.bytes > 0
            and len(self.checksums) <= blocks
            and {len(found) for found in self.checksums} <= {len(self.arrays)}
            and isinstance(self.about, Mapping)
        )


# --- files --------------------------------------------------------------------------------------


def array_file(folder: Path, array: int) -> Path:
    """Return the path of the file of an array."""
    return folder / f"{array}.npy"


def damaged_blocks(folder: Path, manifest: Manifest) -> set[int]:
    """Return the blocks of which some array is not what was written."""
    damaged: set[int] = set()
    for number in range(len(manifest.arrays)):
        try:
            with array_file(folder, number).open("rb") as file:
                damaged.update(_damaged(file, manifest, number))
        except OSError as error:
            if not is_damage(error):
                raise
            damaged.update(range(len(manifest.checksums)))
    return damaged


def _damaged(file: io.BufferedReader, manifest: Manifest, number: int) -> Iterator[int]:
    """Yield the blocks of a file that do not have their checksums."""
    array = manifest.arrays[number]
    header = array.header(manifest.size)
    begins = file.read(len(header)) == header
    for block, checksums in enumerate(manifest.checksums):
        left, checksum = len(manifest.rows(block)) * array.row_bytes, 0
        while left and (chunk := file.read(min(left, _CHUNK))):
            checksum = zlib.crc32(chunk, checksum)
            left -= len(chunk)
        if left or checksum != checksums[number] or not begins:
            yield block


def mapped(folder: Path, manifest: Manifest, number: int) -> np.ndarray:
    """Map the file of an array into memory, after its checksums.

    Raises:
        DamagedFile: It is not what it should be.
    """
    array, path = manifest.arrays[number], array_file(folder, number)
    header = array.header(manifest.size)
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_size != len(header) + manifest.size * array.row_bytes:
                raise DamagedFile(f"{path} has {found.st_size} bytes.")
            # The time of the last change cannot be set, as that of the last write can.
            times = (found.st_mtime_ns, found.st_ctime_ns)
            told = (found.st_dev, found.st_ino, *times, header, manifest.checksums)
            if told not in _sound:
                if any(True for _ in _damaged(file, manifest, number)):
                    raise DamagedFile(f"{path} does not have its checksums.")
                _sound.add(told)
            # Not `np.memmap`: taking rows of its objects costs several times more.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        if not is_damage(error):
            raise
        raise DamagedFile(f"{path} is missing or cannot be read.") from error
    shape = (manifest.size, *array.shape)
    return np.ndarray(shape, array.stored_dtype, content, len(header))


class MappedArray:
    """An array in a file that is mapped into memory.

    Takes rows by number, slice, list or mask, as an array of NumPy's does, and returns copies in
    memory. `np.asarray` reads all of it, which is the faster way to use a small one.

    Args:
        values: What the file holds.
        dtype: The dtype that its bytes mean.
        lease: Kept for as long as the array is.

    Attributes:
        shape: Its shape; examples come first.
        dtype: Its dtype.

    Example:
        >>> array = MappedArray(np.arange(7), np.dtype(int))
        >>> array.shape, array[[6, 0, -3]].tolist(), array[2:5].tolist(), int(array[5])
        ((7,), [6, 0, 4], [2, 3, 4], 5)
    """

    def __init__(self, values: np.ndarray, dtype: np.dtype, lease: Any = None) -> None:
        self._values, self._lease, self._taken = values, lease, 0
        self.dtype, self.shape = dtype, values.shape

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return self._values.nbytes

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, int | np.integer):
            return self[[rows]][0]
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            (rows,) = rows.nonzero()
        if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
            raise IndexError(f"Expected the numbers of rows. Received: {rows!r}.")
        if len(rows) and not (-len(self) <= rows.min() and rows.max() < len(self)):
            raise IndexError(
                f"Expected rows from 0 to {len(self) - 1}. Received rows from {rows.min()} to "
                f"{rows.max()}."
            )
        taken = self._values[rows.astype(np.intp)]
        self._taken += taken.nbytes
        if self._taken * _SURROUNDINGS > RESIDENT_BYTES and self.nbytes > RESIDENT_BYTES:
            self._taken = 0
            content = self._values.base
            if isinstance(content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                content.madvise(mmap.MADV_DONTNEED)  # read again, it comes from the system's cache
        return taken.view(self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("An array in a mapped file cannot be read without copying it.")
        return np.array(self._values).view(self.dtype).astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"MappedArray(shape={self.shape}, dtype={self.dtype})"


class Entry(Mapping[str, MappedArray]):
    """The arrays of an entry by the names in its key, mapped into memory.

    The store keeps the entry for as long as it, or one of its arrays, is referred to, and at most
    until the process ends; `close`, or the end of a `with` statement, lets it go before.

    Attributes:
        key: The key it was asked for by.
        manifest: What it says of itself.
    """

    def __init__(
        self, key: FeatureKey, manifest: Manifest, values: list[np.ndarray], lease: Lease
    ) -> None:
        self.key, self.manifest, self._lease = key, manifest, lease
        self._arrays = {
            name: MappedArray(held, np.dtype(array.dtype), lease)
            for name, held, array in zip(key.arrays, values, manifest.arrays, strict=True)
        }

    def __getitem__(self, name: str) -> MappedArray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.manifest.bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one example."""
        return self.manifest.bytes // self.manifest.size

    def close(self) -> None:
        """Let the store remove the entry when it needs room."""
        self._lease.close()

    def __enter__(self) -> "Entry":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Entry({', '.join(f'{name!r}: {array}' for name, array in self.items())})"


class Draft:
    """An entry while it is being made, block by block.

    The whole blocks of one that was interrupted are taken over; an entry that was damaged is made
    anew. Whoever has a draft holds the lock of its maker.

    Args:
        layout: The store's folders.
        key: The key of the entry.
        block_bytes: About how large a block shall be.
    """

    def __init__(self, layout: Layout, key: FeatureKey, block_bytes: int) -> None:
        self.key, self._layout, self._block_bytes = key, layout, block_bytes
        self.folder = layout.draft(key.digest)
        layout.remove(layout.entry(key.digest))  # it is damaged, or this draft would not be
        self._files: list[io.BufferedRandom] = []
        self._checksums: list[int] = []
        self.manifest: Any = Manifest.read(self.folder)  # None until the first batch
        if self.manifest is None or not self.manifest.answers(key):
            self.manifest = None
            layout.remove(self.folder)
            return
        names = {array_file(self.folder, n).name for n in range(len(self.manifest.arrays))}
        for path in self.folder.iterdir():  # of a killed process, or in the place of a file
            fits = path.is_file() and not path.is_symlink()
            if path.name != MANIFEST_FILE and not (fits and path.name in names):
                layout.remove(path)
        sound = min(damaged_blocks(self.folder, self.manifest), default=None)
        self.manifest = replace(self.manifest, checksums=self.manifest.checksums[:sound])

    @property
    def done(self) -> int:
        """The number of examples that are there."""
        return 0 if self.manifest is None else self.manifest.done

    @property
    def bytes_to_come(self) -> int:
        """Bytes that are not written yet; known from the first batch on."""
        return (self.key.size - self.done) * self.manifest.bytes // self.manifest.size

    def check(self, batch: Mapping[str, np.ndarray], start: int) -> None:
        """Compare a batch with what the entry holds; the first one of all says what it will hold.

        Args:
            batch: Some examples, by array.
            start: The number of the first.

        Raises:
            CacheError: An array is missing or too many, has another shape or dtype than before, or
                holds a number that is not finite.
        """
        if batch.keys() != set(self.key.arrays):
            raise CacheError(
                f"Expected the arrays {', '.join(self.key.arrays)}. Received: {', '.join(batch)}."
            )
        if len({len(values) for values in batch.values()}) != 1:
            lengths = ", ".join(f"{len(values)} of {name}" for name, values in batch.items())
            raise CacheError(f"Expected as many examples of each array. Received: {lengths}.")
        arrays = tuple(
            ArraySpec(name, batch[name].dtype.name, batch[name].shape[1:])
            for name in self.key.arrays
        )
        if self.manifest is None:
            self.manifest = self._planned(arrays, len(batch[self.key.arrays[0]]))
        for array, before in zip(arrays, self.manifest.arrays, strict=True):
            if (array.shape, array.dtype) != (before.shape, before.dtype):
                raise CacheError(
                    f"Expected {array.name!r} of shape {before.shape} and dtype {before.dtype} for "
                    f"each example, as before. Received shape {array.shape}, {array.dtype} (from "
                    f"example {start} on). Give a Padding where examples differ in length."
                )
            values = batch[array.name]
            if keras.backend.is_float_dtype(array.dtype) and not np.isfinite(values).all():
                more = ", or store more than float16 can hold." * (array.dtype == "float16")
                raise CacheError(
                    f"The features at {array.name!r} are not finite (examples {start} to "
                    f"{start + len(values) - 1}). Check the input's range and the weights"
                    + (more or ".")
                )

    def _planned(self, arrays: tuple[ArraySpec, ...], batch_size: int) -> Manifest:
        row_bytes = sum(array.row_bytes for array in arrays)
        if not all(array.row_bytes for array in arrays):
            raise CacheError("Expected arrays with at least one number for each example.")
        rows = min(BLOCK_ROWS, self._block_bytes // row_bytes)
        # Whole batches: what is computed again after a kill is then computed in the same batches.
        rows = max(1, rows // batch_size) * batch_size
        return Manifest(
            digest=self.key.digest,
            size=self.key.size,
            arrays=arrays,
            rows_per_block=rows,
            checksums=(),
            made={
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "keras": keras.__version__,
                "backend": keras.backend.backend(),
            },
            about=self.key.about,
        )

    def begin(self) -> None:
        """Claim the disk: the manifest says from now on how much will be written."""
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            share(self.folder)
        self.manifest.write(self.folder)
        self._checksums = [0] * len(self.manifest.arrays)
        for number, array in enumerate(self.manifest.arrays):
            path = array_file(self.folder, number)
            path.touch()
            share(path)
            header = array.header(self.manifest.size)
            file = path.open("r+b")
            self._files.append(file)
            file.write(header)
            file.truncate(len(header) + self.done * array.row_bytes)
            file.seek(0, os.SEEK_END)

    def write(self, batch: Mapping[str, np.ndarray], start: int) -> None:
        """Append those of a batch's examples that are not there. Batches come in order.

        Args:
            batch: Some examples, by array.
            start: The number of the first.
        """
        stop = start + len(batch[self.key.arrays[0]])
        position = max(start, self.done)
        while position < stop:
            rows = self.manifest.rows(len(self.manifest.checksums))
            end = min(stop, rows.stop)
            part = slice(position - start, end - start)
            for number, array in enumerate(self.manifest.arrays):
                values = np.ascontiguousarray(batch[self.key.arrays[number]][part])
                content = values.view(array.stored_dtype).data
                self._files[number].write(content)
                self._checksums[number] = zlib.crc32(content, self._checksums[number])
            if end == rows.stop:
                self._close()
            position = end

    def _close(self) -> None:
        """Make a whole block safe from a power failure."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        checksums = (*self.manifest.checksums, tuple(self._checksums))
        self.manifest = replace(self.manifest, checksums=checksums)
        self.manifest.write(self.folder)
        self._checksums = [0] * len(self._files)

    def finish(self) -> None:
        """Show the whole entry."""
        self.abandon()
        self.folder.rename(self._layout.entry(self.key.digest))

    def abandon(self) -> None:
        """Give up the block that is not whole; whole ones stay for who goes on."""
        for file in self._files:
            with suppress(OSError):  # closing tries once more to write what a full disk refused
                file.close()
        self._files = []

    def discard(self) -> None:
        """Remove all of it: it can never become whole."""
        self.abandon()
        self._layout.remove(self.folder)
