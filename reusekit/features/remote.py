"""Entries of a feature store in object storage.

`entries/KEY.json` are manifests of whole entries, `drafts/KEY.json` of what is being made, and
`blocks/KEY/` holds the blocks of both. An entry is there once its manifest is, which is written
last. There are no locks: keys tell all that features follow from, so that two makers of one entry
make the same. A block is named by its checksums as well, so that a manifest finds its own blocks
even where two machines round differently.
"""

import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from reusekit.errors import CacheError
from reusekit.features.entry import Manifest, array_file
from reusekit.features.key import FeatureKey
from reusekit.objects import Listed, Objects
from reusekit.progress import tracked
from reusekit.sealed_json import DamagedFileError, sealed, unsealed
from reusekit.secrets import shown

_MARK, _FORMAT = "feature_store.json", {"format": 2}
_AT_A_TIME = 4  # blocks that are fetched together, and in memory

UNFINISHED = timedelta(days=1)
"""What nobody has added to for so long counts as left unfinished."""


class StorageError(CacheError):
    """Object storage does not give or take what a store asks; what is on the disk stays."""


class Remote:
    """The entries of a feature store under an address of object storage.

    Raises:
        CacheError: It cannot be used, or holds something else.
    """

    def __init__(self, url: str) -> None:
        self._objects = Objects(url, StorageError)
        self.url = self._objects.url
        self._there: dict[str, set[str]] = {}  # blocks by key, as far as they were asked for
        self._whole: set[str] = set()

    def open(self) -> None:
        """Look for the store, and make it where there is nothing.

        Raises:
            CacheError: There is something else, or the storage refuses.
        """
        found = self._objects.get(_MARK)
        if found is None:
            there = self._objects.under()
            if there and _MARK not in there:  # which another process may just have written
                raise CacheError(
                    "Expected a feature store, or an address to make one at. Received: "
                    f"{shown(self.url)}, which holds something else. Choose another address."
                )
            self.claim()
        elif found != json.dumps(_FORMAT).encode():
            received = found[:80].decode(errors="replace")
            raise CacheError(
                f"Expected {json.dumps(_FORMAT)} in {shown(self.url)}/{_MARK}. Received: "
                f"{received!r}. Choose another address."
            )

    def exists(self) -> bool:
        """Look for a store; nothing is made."""
        return self._objects.exists(_MARK)

    def claim(self) -> None:
        """See that one may write, before anything is computed."""
        self._objects.put(_MARK, json.dumps(_FORMAT).encode())

    # --- one entry ------------------------------------------------------------------------------

    def manifest(self, key: FeatureKey, begun: bool = False) -> Manifest | None:
        """Return the manifest of a whole entry, or else of one that was begun; None without."""
        for kind in ("entries", "drafts") if begun else ("entries",):
            content = self._objects.get(f"{kind}/{key.digest}.json")
            found = _read(content, key.digest, key)
            if found is not None and (found.done == found.size or kind == "drafts"):
                return found
        return None

    def blocks(self, told: Manifest, first: int) -> Iterator[tuple[int, dict[int, np.ndarray]]]:
        """Yield the blocks of an entry from one on, each with its first example's number.

        It ends before a block that is missing or damaged. The entry is then taken out of the
        storage, and that block with it.
        """
        said = f"Fetching {told.about.get('cut', told.digest[:12])}"
        blocks = self._unpacked(told, first)
        for number, arrays in tracked(blocks, said, total=len(told.checksums) - first):
            name = _block_name(told, number)
            if arrays is None:
                self.forget(told.digest, [name])
                return
            self._there.setdefault(told.digest, set()).add(name)
            yield told.rows(number).start, arrays

    def _unpacked(
        self, told: Manifest, first: int
    ) -> Iterator[tuple[int, dict[int, np.ndarray] | None]]:
        """Yield the blocks from one on, by number; None for one that is missing or damaged."""
        numbers = range(first, len(told.checksums))
        for low in range(0, len(numbers), _AT_A_TIME):
            some = numbers[low : low + _AT_A_TIME]
            contents = self._objects.get_all([_block_name(told, number) for number in some])
            for number, content in zip(some, contents, strict=True):
                yield number, None if content is None else _unpacked(told, number, content)

    def used(self, told: Manifest) -> None:
        """Write the manifest of an entry anew, by whose time `gc` knows when it was used."""
        self._objects.put(f"entries/{told.digest}.json", _written(told))

    def holds(self, digest: str) -> bool:
        """Return whether there is a whole entry; asked once."""
        if digest not in self._whole and self._objects.exists(f"entries/{digest}.json"):
            self._whole.add(digest)
        return digest in self._whole

    def put(self, folder: Path, manifest: Manifest, whole: bool) -> None:
        """Write the blocks of an entry that are not there, and then its manifest.

        What is whole is shown; else others may go on with it.
        """
        digest = manifest.digest
        if whole or digest not in self._there:  # another may have removed some
            self._there[digest] = set(self._objects.under(f"blocks/{digest}"))
        there = self._there[digest]
        for number in range(len(manifest.checksums)):
            name = _block_name(manifest, number)
            if name not in there:
                self._objects.put(name, _packed(folder, manifest, number))
                there.add(name)
        kind = "entries" if whole else "drafts"
        self._objects.put(f"{kind}/{digest}.json", _written(manifest))
        if whole:
            self._objects.delete([f"drafts/{digest}.json"])
            self._whole.add(digest)

    def forget(self, digest: str, blocks: list[str] | None = None) -> None:
        """Take the manifests of an entry out of the storage, and some of its blocks."""
        names = [f"{kind}/{digest}.json" for kind in ("entries", "drafts")]
        self._objects.delete([*names, *(blocks or [])])
        self._there.pop(digest, None)
        self._whole.discard(digest)

    # --- all of them ----------------------------------------------------------------------------

    def manifests(self) -> list[tuple[str, bool, datetime, Manifest | None]]:
        """Return of each entry its key, whether it is whole, when it was used, and its manifest."""
        found = []
        for kind in ("entries", "drafts"):
            listed = self._objects.under(kind)
            names = [name for name in listed if name.endswith(".json")]
            for name, content in zip(names, self._objects.get_all(names), strict=True):
                digest = name[len(kind) + 1 : -len(".json")]
                found.append(
                    (digest, kind == "entries", listed[name].modified, _read(content, digest))
                )
        return found

    def damaged(self, told: Manifest) -> int:
        """Return how many blocks of an entry are missing or damaged; all of it is read."""
        return sum(arrays is None for _, arrays in self._unpacked(told, 0))

    def remove(self, digest: str) -> None:
        """Remove an entry: its manifests first, then its blocks."""
        self.forget(digest)
        self._objects.delete(self._objects.under(f"blocks/{digest}"))

    def clear(self) -> None:
        """Remove all entries and all blocks."""
        for kind in ("entries", "drafts", "blocks"):
            self._objects.delete(self._objects.under(kind))
        self._there.clear()
        self._whole.clear()

    def sweep(self) -> None:
        """Remove blocks that no manifest names, if nobody has added to their entry for a day."""
        named = {
            _block_name(told, number)
            for *_, told in self.manifests()
            if told is not None
            for number in range(len(told.checksums))
        }
        by_entry: dict[str, dict[str, Listed]] = {}
        for name, one in self._objects.under("blocks").items():
            by_entry.setdefault(name.split("/")[1], {})[name] = one
        for blocks in by_entry.values():
            if is_left(max(one.modified for one in blocks.values())):
                self._objects.delete([name for name in blocks if name not in named])


def is_left(modified: datetime) -> bool:
    """Return whether what was last added to then counts as left unfinished."""
    return datetime.now(UTC) - modified > UNFINISHED


def _read(content: bytes | None, digest: str, key: FeatureKey | None = None) -> Manifest | None:
    if content is None:
        return None
    try:
        return Manifest.of(unsealed(content, digest), digest, key)
    except DamagedFileError:
        return None


def _written(manifest: Manifest) -> bytes:
    return sealed(asdict(manifest)).encode()


def _block_name(told: Manifest, number: int) -> str:
    rows, checksums = told.rows(number), "-".join(f"{one:08x}" for one in told.checksums[number])
    return f"blocks/{told.digest}/{rows.start:012d}-{rows.stop:012d}-{checksums}"


def _packed(folder: Path, told: Manifest, number: int) -> bytes:
    """Return a block of each array, one after the other."""
    rows, parts = told.rows(number), []
    for position, array in enumerate(told.arrays):
        with array_file(folder, position).open("rb") as file:
            file.seek(len(array.header(told.size)) + rows.start * array.row_bytes)
            parts.append(file.read(len(rows) * array.row_bytes))
    return b"".join(parts)


def _unpacked(told: Manifest, number: int, content: bytes) -> dict[int, np.ndarray] | None:
    """Return the arrays of a block by their numbers; None where they have other checksums."""
    count, start, found = len(told.rows(number)), 0, {}
    if len(content) != count * sum(array.row_bytes for array in told.arrays):
        return None
    view = memoryview(content)
    for position, array in enumerate(told.arrays):
        part = view[start : start + count * array.row_bytes]
        if zlib.crc32(part) != told.checksums[number][position]:
            return None
        found[position] = np.frombuffer(part, array.stored_dtype).reshape(count, *array.shape)
        start += len(part)
    return found
