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
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
from pydantic import PositiveInt, TypeAdapter

from reusekit.errors import CacheError
from reusekit.features.key import EXAMPLES, FeatureKey
from reusekit.features.layout import Layout, share
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

# Files that this process has read once, and that have not been touched since.
_sound: set[tuple] = set()


@dataclass(frozen=True)
class ArraySpec:
    """The name of an array, its dtype's name, and the shape of one example."""

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
        header, descr = io.BytesIO(), np.lib.format.dtype_to_descr(self.stored_dtype)
        told = {"descr": descr, "fortran_order": False, "shape": (size, *self.shape)}
        np.lib.format.write_array_header_1_0(header, told)
        return header.getvalue()


@dataclass(frozen=True)
class Manifest:
    """The content of an entry of `size` examples: for each block so far a checksum of each array.

    All blocks but the last have `rows_per_block` examples. See `FeatureKey` for `alike`.
    """

    digest: str
    size: PositiveInt
    arrays: tuple[ArraySpec, ...]
    rows_per_block: PositiveInt
    checksums: tuple[tuple[int, ...], ...]
    made: Mapping[str, str]
    about: Mapping[str, Any]
    alike: str | None = None  # of entries of before it is not known

    @property
    def done(self) -> int:
        """The number of examples that are there."""
        return min(len(self.checksums) * self.rows_per_block, self.size)

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
    def read(cls, folder: Path, key: FeatureKey | None = None) -> "Manifest | None":
        """Read the manifest of a folder; None where none belongs to its name, or to a key."""
        if folder.is_symlink():
            return None
        try:
            return cls.of(read_sealed(folder / MANIFEST_FILE), folder.name, key)
        except ValueError:
            return None

    @classmethod
    def of(
        cls, content: Mapping[str, Any], digest: str, key: FeatureKey | None = None
    ) -> "Manifest | None":
        """Return the manifest of an entry as it was written; None where it is another's."""
        try:
            told = _MANIFEST.validate_python(content)
            consistent = (
                told.digest == digest
                and told.bytes > 0
                and len(told.checksums) <= math.ceil(told.size / told.rows_per_block)
                and {len(found) for found in told.checksums} <= {len(told.arrays)}
            )
        except (ValueError, TypeError):
            return None
        if key is not None:
            names = key.arrays
            if EXAMPLES in names and told.alike is None:  # made when entries did not keep them
                names = names[:-1]
            consistent &= (told.digest, told.size) == (key.digest, key.size)
            consistent &= len(told.arrays) == len(names)
        return told if consistent else None

    def damaged(self, folder: Path) -> set[int]:
        """Return the blocks of which some array is not what was written."""
        found: set[int] = set()
        for number in range(len(self.arrays)):
            try:
                with array_file(folder, number).open("rb") as file:
                    found.update(self._damaged(file, number))
            except OSError as error:
                if not is_damage(error):
                    raise
                found.update(range(len(self.checksums)))
        return found

    def _damaged(self, file: io.BufferedReader, number: int) -> Iterator[int]:
        """Yield the blocks of a file that do not have their checksums."""
        array = self.arrays[number]
        header = array.header(self.size)
        begins = file.read(len(header)) == header
        for block, checksums in enumerate(self.checksums):
            left, checksum = len(self.rows(block)) * array.row_bytes, 0
            while left and (chunk := file.read(min(left, _CHUNK))):
                checksum = zlib.crc32(chunk, checksum)
                left -= len(chunk)
            if left or checksum != checksums[number] or not begins:
                yield block

    def mapped(self, folder: Path, number: int) -> np.ndarray | None:
        """Map the file of an array, after its checksums; None where it is not what was written."""
        array = self.arrays[number]
        header = array.header(self.size)
        try:
            with array_file(folder, number).open("rb") as file:
                stat = os.fstat(file.fileno())
                # The time of the last change cannot be set, as that of the last write can.
                times = (stat.st_mtime_ns, stat.st_ctime_ns)
                known = (stat.st_dev, stat.st_ino, stat.st_size, *times, header, self.checksums)
                if known not in _sound:
                    fits = stat.st_size == len(header) + self.size * array.row_bytes
                    if not fits or next(self._damaged(file, number), None) is not None:
                        return None
                    _sound.add(known)
                # Not `np.memmap`: taking rows of its objects costs several times more.
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            if not is_damage(error):
                raise
            return None
        return np.ndarray((self.size, *array.shape), array.stored_dtype, content, len(header))


_MANIFEST = TypeAdapter(Manifest)


def array_file(folder: Path, array: int) -> Path:
    """Return the path of the file of an array."""
    return folder / f"{array}.npy"


class MappedArray:
    """An array in a file that is mapped into memory.

    Takes rows by number, slice, list or mask, as an array of NumPy's does, and returns copies in
    memory. `np.asarray` reads all of it, which is the faster way to use a small one.

    Example:
        >>> array = MappedArray(np.arange(7), np.dtype(int))
        >>> array.shape, array[[6, 0, -3]].tolist(), array[2:5].tolist(), int(array[5])
        ((7,), [6, 0, 4], [2, 3, 4], 5)
    """

    def __init__(self, values: np.ndarray, dtype: np.dtype, lease: Any = None) -> None:
        self._values, self._lease, self._taken = values, lease, 0
        self.dtype, self.shape = dtype, values.shape
        self.ndim, self.nbytes = values.ndim, values.nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if getattr(rows, "dtype", None) != np.int64:
            rows = np.arange(len(self))[rows]
        taken = self._values.take(rows, axis=0)
        self._taken += taken.nbytes
        if self._taken * _SURROUNDINGS > RESIDENT_BYTES and self.nbytes > RESIDENT_BYTES:
            self._taken = 0
            content = self._values.base
            if isinstance(content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                content.madvise(mmap.MADV_DONTNEED)  # read again, it comes from the system's cache
        return np.asarray(taken).view(self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("An array in a mapped file cannot be read without copying it.")
        return np.array(self._values).view(self.dtype).astype(dtype or self.dtype, copy=False)


class Entry(dict[str, MappedArray]):
    """The arrays of an entry by the names in its key, mapped into memory.

    The store keeps the entry for as long as it, or one of its arrays, is referred to, and at most
    until the process ends; `close`, or the end of a `with` statement, lets it go before.
    """

    def __init__(
        self,
        key: FeatureKey,
        manifest: Manifest,
        values: list[np.ndarray],
        lease: ExitStack,
        store: Any = None,
    ) -> None:
        arrays = zip(key.arrays[: len(values)], values, manifest.arrays, strict=True)
        super().__init__({n: MappedArray(v, np.dtype(a.dtype), lease) for n, v, a in arrays})
        self.nbytes, self.close = manifest.bytes, lease.close
        self._key, self._store = key, store

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process as a key of the store, which is opened there again."""
        return _opened_again, (self._store, self._key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened_again(store: Any, key: FeatureKey) -> Entry:
    found = store.get(key)
    if found is None:
        raise CacheError(
            f"Expected the features of {key.about.get('cut', key.digest)!r} in {store.path}, as "
            "another process has them there. Received: none."
        )
    return found


class Draft:
    """An entry while it is being made, block by block.

    The whole blocks of one that was interrupted are taken over; an entry that was damaged is made
    anew. The owner of a draft holds the lock of its maker.
    """

    def __init__(self, layout: Layout, key: FeatureKey, block_bytes: int) -> None:
        self.key, self._layout, self._block_bytes = key, layout, block_bytes
        self.folder = layout.draft(key.digest)
        layout.remove(layout.entry(key.digest))  # it is damaged, or this draft would not be
        self._files: list[io.BufferedRandom] = []
        self._checksums: list[int] = []
        self.manifest: Any = Manifest.read(self.folder, key)  # None until the first batch
        if self.manifest is None or self.manifest.alike != key.alike:
            self.manifest = None
            layout.remove(self.folder)
            return
        own = {array_file(self.folder, n) for n in range(len(self.manifest.arrays))}
        own.add(self.folder / MANIFEST_FILE)
        for path in self.folder.iterdir():  # of a killed process, or in the place of a file
            if path not in own or path.is_symlink() or not path.is_file():
                layout.remove(path)
        sound = min(self.manifest.damaged(self.folder), default=None)
        self.manifest = replace(self.manifest, checksums=self.manifest.checksums[:sound])

    @property
    def done(self) -> int:
        """The number of examples that are there."""
        return 0 if self.manifest is None else self.manifest.done

    def check(self, batch: Mapping[str, np.ndarray], start: int) -> None:
        """Refuse a batch that is not finite, or not like the first one, which says what comes."""
        if batch.keys() != set(self.key.arrays):
            raise CacheError(
                f"Expected the arrays {', '.join(self.key.arrays)}. Received: {', '.join(batch)}."
            )
        if len({len(values) for values in batch.values()}) != 1:
            lengths = ", ".join(f"{len(values)} of {name}" for name, values in batch.items())
            raise CacheError(f"Expected as many examples of each array. Received: {lengths}.")
        if self.manifest is None:
            self.manifest = self._first(batch)
        for name, before in zip(self.key.arrays, self.manifest.arrays, strict=True):
            values = batch[name]
            dtype, shape = values.dtype.name, values.shape[1:]
            if (shape, dtype) != (before.shape, before.dtype):
                raise CacheError(
                    f"Expected {name!r} of shape {before.shape} and dtype {before.dtype} for each "
                    f"example, as before. Received: shape {shape}, {dtype} (from example {start} "
                    "on). Give a Padding where examples differ in length."
                )
            if keras.backend.is_float_dtype(dtype) and not np.isfinite(values).all():
                more = ", or store more than float16 can hold" * (dtype == "float16")
                raise CacheError(
                    f"Expected finite features at {name!r}. Received: some that are not finite "
                    f"(examples {start} to {start + len(values) - 1}). Check the input's range and "
                    f"the weights{more}."
                )

    def _first(self, batch: Mapping[str, np.ndarray]) -> Manifest:
        """Return the manifest of an entry that begins with a batch, and has no block yet."""
        arrays = tuple(
            ArraySpec(name, batch[name].dtype.name, batch[name].shape[1:])
            for name in self.key.arrays
        )
        row_bytes, batch_size = sum(array.row_bytes for array in arrays), len(batch[arrays[0].name])
        if not all(array.row_bytes for array in arrays):
            raise CacheError(
                "Expected arrays with at least one number for each example. Received: shapes "
                f"{', '.join(str(array.shape) for array in arrays)} of an example."
            )
        # Whole batches: what is computed again after a kill is then computed in the same batches.
        batches = max(1, min(BLOCK_ROWS, self._block_bytes // row_bytes) // batch_size)
        made = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
        }
        key, rows = self.key, batches * batch_size
        return Manifest(key.digest, key.size, arrays, rows, (), made, key.about, key.alike)

    def take_over(self, told: Manifest) -> None:
        """Go on as the same entry was begun elsewhere, after own blocks that are its first."""
        own = () if self.manifest is None else self.manifest.checksums
        begun = self.manifest and (self.manifest.rows_per_block, self.manifest.arrays)
        if begun != (told.rows_per_block, told.arrays) or told.checksums[: len(own)] != own:
            self._layout.remove(self.folder)
            own = ()
        self.manifest = replace(told, checksums=own)

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
            self._files.append(path.open("r+b"))
            written = self._files[-1].write(array.header(self.manifest.size))
            self._files[-1].truncate(written + self.done * array.row_bytes)
            self._files[-1].seek(0, os.SEEK_END)

    def write(self, batch: Mapping[str, np.ndarray], start: int) -> bool:
        """Append those of a batch's examples that are not there. Batches come in order.

        Returns whether a block has become whole.
        """
        blocks = len(self.manifest.checksums)
        stop = start + len(batch[self.key.arrays[0]])
        position = max(start, self.done)
        while position < stop:
            rows = self.manifest.rows(len(self.manifest.checksums))
            end = min(stop, rows.stop)
            for number, array in enumerate(self.manifest.arrays):
                part = batch[self.key.arrays[number]][position - start : end - start]
                content = np.ascontiguousarray(part).view(array.stored_dtype).data
                self._files[number].write(content)
                self._checksums[number] = zlib.crc32(content, self._checksums[number])
            if end == rows.stop:
                self._close()
            position = end
        return len(self.manifest.checksums) > blocks

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
