"""An entry while it is being made."""

import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np

from reusekit.errors import CacheError
from reusekit.features.key import FeatureKey
from reusekit.features.layout import Layout, share
from reusekit.features.manifest import MANIFEST_FILE, ArraySpec, Manifest
from reusekit.features.shards import DamagedShard, ShardWriter, read_shard, shard_file

SHARD_BYTES = 64 << 20
"""About how large a shard is: what a kill costs, and small beside a disk."""

SHARD_ROWS = 4096
"""At most so many examples are in a shard, since each has cost a pass through the bottom."""


class Draft:
    """Whole shards in a folder of their own, and the rest as it comes.

    What was made before it was interrupted is taken over, and so are the sound shards of an entry
    that was damaged. Whoever has a draft holds the lock of its maker.

    Args:
        layout: The store's folders.
        key: The key of the entry.
        shard_bytes: About how large a shard shall be.
    """

    def __init__(self, layout: Layout, key: FeatureKey, shard_bytes: int) -> None:
        self.key, self._layout, self._shard_bytes = key, layout, shard_bytes
        self.folder = layout.draft(key.digest)
        entry = layout.entry(key.digest)
        if os.path.lexists(entry):
            layout.remove(self.folder)
            entry.rename(self.folder)
        self.manifest: Any = _sound_part(self.folder, key)  # None until the first batch
        if self.manifest is None:
            layout.remove(self.folder)
        else:
            self._tidy()
        self._writers: list[ShardWriter] = []
        self._shard = 0

    def _tidy(self) -> None:
        """Remove what is no sound shard: of a killed process, or in the place of a file."""
        shards = {
            shard_file(self.folder, array, shard).name
            for shard, checksums in enumerate(self.manifest.checksums)
            for array in range(len(self.manifest.arrays))
            if checksums is not None
        }
        for path in self.folder.iterdir():
            if path.name != MANIFEST_FILE and path.name not in shards:
                self._layout.remove(path)

    @property
    def gaps(self) -> list[range]:
        """The runs of examples that are to be computed."""
        return [range(self.key.size)] if self.manifest is None else self.manifest.gaps()

    @property
    def bytes_to_come(self) -> int:
        """Bytes that are not written yet; known from the first batch on."""
        rows = sum(map(len, self.manifest.gaps()))
        return rows * self.manifest.bytes // self.manifest.size

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
                raise CacheError(
                    f"The features at {array.name!r} are not finite (examples {start} to "
                    f"{start + len(values) - 1}). Check the input's range and the weights"
                    + (
                        ", or store more than float16 can hold."
                        if array.dtype == "float16"
                        else "."
                    )
                )

    def _planned(self, arrays: tuple[ArraySpec, ...], batch_size: int) -> Manifest:
        row_bytes = sum(array.row_bytes for array in arrays)
        if not all(array.row_bytes for array in arrays):
            raise CacheError("Expected arrays with at least one number for each example.")
        rows = min(SHARD_ROWS, self._shard_bytes // row_bytes)
        # Whole batches: what is computed again after a kill is then computed in the same batches.
        rows = max(1, rows // batch_size) * batch_size
        return Manifest(
            digest=self.key.digest,
            size=self.key.size,
            arrays=arrays,
            rows_per_shard=rows,
            checksums=(None,) * math.ceil(self.key.size / rows),
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

    def write(self, batch: Mapping[str, np.ndarray], start: int) -> None:
        """Write those of a batch's examples whose shards are not there.

        Batches come in order, from the beginning of a gap on.

        Args:
            batch: Some examples, by array.
            start: The number of the first.
        """
        stop = start + len(batch[self.key.arrays[0]])
        position = start
        while position < stop:
            shard = position // self.manifest.rows_per_shard
            rows = self.manifest.rows(shard)
            end = min(stop, rows.stop)
            if self.manifest.checksums[shard] is None:
                if position == rows.start:
                    self._open(shard)
                for writer, name in zip(self._writers, self.key.arrays, strict=True):
                    writer.append(batch[name][position - start : end - start])
                if end == rows.stop:
                    self._close()
            position = end

    def _open(self, shard: int) -> None:
        self.abandon()
        self._shard = shard
        for number, array in enumerate(self.manifest.arrays):
            path = shard_file(self.folder, number, shard)
            self._writers.append(ShardWriter(path, array, len(self.manifest.rows(shard))))

    def _close(self) -> None:
        checksums = tuple(writer.finish() for writer in self._writers)
        self._writers = []
        self.manifest = self.manifest.with_shard(self._shard, checksums)
        self.manifest.write(self.folder)

    def finish(self) -> None:
        """Show the whole entry."""
        self.folder.rename(self._layout.entry(self.key.digest))

    def abandon(self) -> None:
        """Give up the shard that is not whole; whole ones stay for who goes on."""
        for writer in self._writers:
            writer.abandon()
        self._writers = []

    def discard(self) -> None:
        """Remove all of it: it can never become whole."""
        self.abandon()
        self._layout.remove(self.folder)


def _sound_part(folder: Path, key: FeatureKey) -> Manifest | None:
    """Return a folder's manifest without its damaged shards."""
    manifest = Manifest.read(folder)
    if manifest is None or not manifest.answers(key):
        return None
    for shard, checksums in enumerate(manifest.checksums):
        if checksums is not None and not sound(folder, manifest, shard):
            manifest = manifest.with_shard(shard, None)
    return manifest


def sound(folder: Path, manifest: Manifest, shard: int) -> bool:
    """Return whether the files of a shard are what they were when they were written."""
    try:
        for number, array in enumerate(manifest.arrays):
            path = shard_file(folder, number, shard)
            checksum = manifest.checksums[shard][number]  # type: ignore[index]
            read_shard(path, array, len(manifest.rows(shard)), checksum, again=True)
    except DamagedShard:
        return False
    return True
