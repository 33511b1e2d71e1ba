"""The manifest of an entry: its arrays, their shards, and a checksum of each."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reusekit.features.key import FeatureKey
from reusekit.features.layout import share
from reusekit.sealed_json import read_sealed, write_sealed

MANIFEST_FILE = "manifest.json"


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


@dataclass(frozen=True)
class Manifest:
    """The content of an entry or a draft.

    Attributes:
        digest: The key it is stored under.
        size: The number of examples when it is whole.
        arrays: Its arrays, in the key's order.
        rows_per_shard: Examples in each shard but the last.
        checksums: For each shard a checksum of each array's file; None for a shard that is not
            there yet.
        made: When and with what it was made.
        about: What its maker said of it.
    """

    digest: str
    size: int
    arrays: tuple[ArraySpec, ...]
    rows_per_shard: int
    checksums: tuple[tuple[int, ...] | None, ...]
    made: Mapping[str, str]
    about: Mapping[str, Any]

    @property
    def whole(self) -> bool:
        """Return whether every shard is there."""
        return None not in self.checksums

    def answers(self, key: FeatureKey) -> bool:
        """Compare its key, and the numbers of its arrays and examples, with those of a key."""
        told = (self.digest, len(self.arrays), self.size)
        return told == (key.digest, len(key.arrays), key.size)

    @property
    def bytes(self) -> int:
        """Bytes of the arrays of the whole entry."""
        return self.size * sum(array.row_bytes for array in self.arrays)

    def rows(self, shard: int) -> range:
        """Return the examples in a shard."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.size))

    def gaps(self) -> list[range]:
        """Return the runs of examples whose shards are not there."""
        return joined(self.rows(n) for n, found in enumerate(self.checksums) if found is None)

    def with_shard(self, shard: int, checksums: tuple[int, ...] | None) -> "Manifest":
        """Return the same with one shard added, or taken out where None."""
        found = list(self.checksums)
        found[shard] = checksums
        return replace(self, checksums=tuple(found))

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
            manifest = cls(
                digest=told["digest"],
                size=told["size"],
                arrays=tuple(
                    ArraySpec(array["name"], array["dtype"], tuple(array["shape"]))
                    for array in told["arrays"]
                ),
                rows_per_shard=told["rows_per_shard"],
                checksums=tuple(found and tuple(found) for found in told["checksums"]),
                made=told["made"],
                about=told["about"],
            )
            belongs = manifest.digest == folder.name and not folder.is_symlink()
            return manifest if belongs and manifest._is_consistent() else None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
            return None

    def _is_consistent(self) -> bool:
        shards = math.ceil(self.size / self.rows_per_shard)
        found = {len(checksums) for checksums in self.checksums if checksums is not None}
        return (
            self.bytes > 0
            and len(self.checksums) == shards
            and found <= {len(self.arrays)}
            and isinstance(self.about, Mapping)
        )


def joined(runs: Iterable[range]) -> list[range]:
    """Return the union of runs of numbers, in order, as runs that do not touch.

    Example:
        >>> joined([range(5, 8), range(0, 2), range(2, 3), range(6, 7)])
        [range(0, 3), range(5, 8)]
    """
    union: list[range] = []
    for run in sorted(runs, key=lambda run: run.start):
        if union and run.start <= union[-1].stop:
            union[-1] = range(union[-1].start, max(union[-1].stop, run.stop))
        else:
            union.append(run)
    return union
