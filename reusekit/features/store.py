"""Features on disk, computed once and found again by what they were made of."""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import AnyPath, checked, expanded
from reusekit.errors import CacheError, DataError
from reusekit.features.batches import changed_since
from reusekit.features.entry import BLOCK_BYTES, Draft, Entry, Manifest
from reusekit.features.key import FeatureKey
from reusekit.features.layout import Layout, store_errors_explained
from reusekit.features.remote import Remote, StorageError, is_left
from reusekit.objects import is_url
from reusekit.signals import interruptible, raise_if_interrupted
from reusekit.workers import HERE, Workers

Batch = Mapping[str, np.ndarray]
"""Some examples of each array of an entry, by name; examples come first."""


@dataclass(frozen=True)
class EntryInfo:
    """A store's record of one of its entries.

    Attributes:
        digest: The key it is stored under.
        whole: Whether it is finished; else its making goes on where it was interrupted.
        size: The number of examples.
        bytes: Bytes of its arrays; of one that is not whole, what it will need.
        arrays: The names of its arrays.
        used: When it was last used, UTC.
        about: What its maker said of it: model, cut, data set and split.
        folder: The folder of its files; of one in object storage where they are fetched to.
    """

    digest: str
    whole: bool
    size: int
    bytes: int
    arrays: tuple[str, ...]
    used: datetime
    about: Mapping[str, Any]
    folder: Path


def default_path() -> Path:
    """Return the default path of the feature store: `~/.cache/reusekit/features`, after XDG.

    Raises:
        CacheError: There is no home folder, and XDG_CACHE_HOME is not set either.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache", CacheError)
    return Path(caches) / "reusekit" / "features"


class FeatureStore:
    """A folder of features that any number of processes read and fill, on one machine or many.

    An entry holds several arrays: the tensors that cross a cut. One process makes an entry; others
    that want it wait and read. A killed one leaves its whole blocks to the next. Each block has a
    checksum, which is compared when the entry is opened: what is damaged is computed again. An open
    entry is mapped into memory: a file that something else *truncates* meanwhile ends the process
    (SIGBUS), so see that nothing else writes into the folder.

    Several users may share a store: what is made in it can be used by whoever may use its folder.
    One that may only be read serves what it holds.

    Machines without a folder in common share a store in object storage, with a folder on each as
    its cache. What the cache lacks is fetched, with the same checks; each whole block that is
    computed is written to the storage, too, so that any machine goes on with what another has
    begun. Nothing there is locked: where two machines make one entry at a time, both compute it,
    and the features are the same.

    Args:
        path: The folder; it is made where there is none. None for `default_path()`. Or the address
            of object storage, such as `s3://BUCKET/PREFIX`, or any other that fsspec knows.
        budget: How many bytes of features the folder may hold. Where more are wanted, what was used
            longest ago is removed, but nothing that is in use. None for as many as the disk has. Of
            object storage it bounds the cache; `gc(budget)` bounds the storage.
        block_bytes: About how large each block of an entry shall be.
        cache: The folder that features in object storage are fetched to; None for
            `default_path()`. It is a store of its own, and may be the cache of several.

    Attributes:
        path: The folder.
        url: The address of object storage; None without.

    Raises:
        CacheError: The folder or the address holds something else, or cannot be used.

    Example:
        >>> import tempfile
        >>> store = FeatureStore(tempfile.mkdtemp())
        >>> key = FeatureKey("a1", arrays=("x",), size=3)
        >>> def compute(start, stop):
        ...     print("computing")
        ...     yield {"x": np.arange(start, stop, dtype="float32")}
        >>> store.get_or_compute(key, compute)["x"][[2, 0]].tolist()
        computing
        [2.0, 0.0]
        >>> store.get_or_compute(key, compute)["x"].shape
        (3,)
    """

    @checked(CacheError)
    def __init__(
        self,
        path: AnyPath | None = None,
        budget: PositiveInt | None = None,
        block_bytes: PositiveInt = BLOCK_BYTES,
        cache: AnyPath | None = None,
    ) -> None:
        self._remote = Remote(str(path)) if is_url(path) else None
        self.url = None if self._remote is None else self._remote.url
        folder = path if self._remote is None else cache
        if self._remote is None and cache is not None:
            raise CacheError(
                f"Expected a cache with the address of object storage. Received: {path!r} with "
                f"cache={str(cache)!r}."
            )
        self.path = default_path() if folder is None else expanded(folder, CacheError)
        self.budget, self.block_bytes = budget, block_bytes
        self.workers: Workers = HERE
        if self._remote is not None:
            self._remote.open()
        self._layout = Layout(self.path)
        self._layout.create()

    @staticmethod
    @checked(CacheError)
    def exists(path: AnyPath) -> bool:
        """Return whether a folder or an address is a feature store; nothing is made."""
        if is_url(path):
            return Remote(str(path)).exists()
        return Layout(expanded(path, CacheError)).exists()

    @checked(CacheError)
    def computed_by(self, workers: Workers) -> "FeatureStore":
        """Return this store with workers that compute what is missing; this process writes it.

        Args:
            workers: Such as a `reusekit.cluster.Cluster`.
        """
        store = FeatureStore.__new__(FeatureStore)
        vars(store).update(vars(self) | {"workers": workers})
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process as what opens it there."""
        cache = None if self.url is None else self.path
        return FeatureStore, (self.url or self.path, self.budget, self.block_bytes, cache)

    @checked(CacheError)
    def get(self, key: FeatureKey) -> Entry | None:
        """Return the entry of a key; None where there is none, or where it is damaged.

        Raises:
            CacheError: The folder cannot be used, or what is in object storage cannot be fetched.
        """
        entry = self._in_folder(key)
        if entry is None and self._remote is not None and self._remote.holds(key.digest):
            with self._making([key]):
                entry = self._in_folder(key) or self._fetched(key, self._remote)
        return entry

    def _in_folder(self, key: FeatureKey) -> Entry | None:
        """Return the entry of a key as the folder has it."""
        with store_errors_explained(self.path):
            lease, folder = self._layout.lease(key.digest), self._layout.entry(key.digest)
            manifest, values = Manifest.read(folder, key), []
            if manifest is not None and manifest.done == manifest.size:
                mapped = (manifest.mapped(folder, n) for n in range(len(manifest.arrays)))
                values = [array for array in mapped if array is not None]
            if manifest is None or len(values) < len(manifest.arrays):
                lease.close()
                return None
            with suppress(PermissionError):  # of another user's entry
                os.utime(folder)  # this is what `used` tells
            return Entry(key, manifest, values, lease, self)

    @checked(CacheError)
    def get_or_compute(
        self, key: FeatureKey, compute: Callable[[int, int], Iterable[Batch]]
    ) -> Entry:
        """Return the entry of a key, computed where it is not there.

        Args:
            key: What is wanted.
            compute: Called with the number of the first example that is not there, and how many
                there are; returns batches from it on, in order, of all there are, so that a data
                set that has grown is noticed.

        Raises:
            CacheError: The features cannot be stored: they are not finite, differ in shape, do not
                fit into the budget or onto the disk, or the folder cannot be written.
            DataError: There are more or fewer examples than the key says.
        """
        (entry,) = self.get_or_compute_all([key], lambda _, *run: ([b] for b in compute(*run)))
        return entry

    @checked(CacheError)
    def get_or_compute_all(
        self,
        keys: Sequence[FeatureKey],
        compute: Callable[[Sequence[FeatureKey], int, int], Iterable[Sequence[Batch]]],
    ) -> list[Entry]:
        """Return the entries of several keys; those that are not there are computed in one pass.

        Args:
            keys: What is wanted, of equal sizes.
            compute: As for `get_or_compute`; called with the keys that are to be computed, too, and
                returns for each batch one mapping for each of them.
        """
        if len({key.size for key in keys}) > 1:
            raise CacheError(
                "Expected keys of one size, since they are computed in one pass. Received: sizes "
                f"{', '.join(str(key.size) for key in keys)}."
            )
        found = [self._in_folder(key) for key in keys]
        missing = {k.digest: k for k, entry in zip(keys, found, strict=True) if entry is None}
        with self._making(missing.values()):
            # Another process may have made some of them while this one waited.
            to_make = [key for key in missing.values() if self._in_folder(key) is None]
            if self._remote is not None:
                to_make = [k for k in to_make if self._fetched(k, self._remote, True) is None]
            if to_make:
                self._make(to_make, compute)
            found = [entry or self._in_folder(key) for key, entry in zip(keys, found, strict=True)]
        entries = [entry for entry in found if entry is not None]
        if len(entries) < len(found):
            raise CacheError(
                "Expected features that read back as they were written. Received: others from "
                f"{self.path}. Check its disk, and store them again."
            )
        for key in keys:
            if key in to_make or (self._remote and not self._remote.holds(key.digest)):
                self._put(self._layout.entry(key.digest), whole=True)
        return entries

    @contextmanager
    def _making(self, keys: Iterable[FeatureKey]) -> Iterator[None]:
        """Keep other processes of this machine from making some entries."""
        with ExitStack() as held:
            # In one order, so that two processes that want the same never wait for each other.
            for key in sorted(keys, key=lambda one: one.digest):
                with store_errors_explained(self.path):
                    cut = str(key.about.get("cut", key.digest[:12]))
                    held.enter_context(self._layout.alone(key.digest, cut))
            yield

    @interruptible()
    def _fetched(self, key: FeatureKey, remote: Remote, begun: bool = False) -> Entry | None:
        """Fetch an entry into the folder, and return it; its whole blocks where it was begun.

        The caller holds its lock.
        """
        told = remote.manifest(key, begun)
        if told is None:
            return None
        with store_errors_explained(self.path):
            draft = Draft(self._layout, key, self.block_bytes)
            if draft.done >= told.done:
                return None
            draft.take_over(told)
            self._begin([draft])
            try:
                for start, arrays in remote.blocks(told, len(draft.manifest.checksums)):
                    raise_if_interrupted()
                    draft.write({key.arrays[n]: values for n, values in arrays.items()}, start)
                if draft.done == told.size:
                    draft.finish()
            finally:
                draft.abandon()
        entry = self._in_folder(key)
        if entry is not None:
            with suppress(StorageError):  # which one may only read
                remote.used(told)
        return entry

    def _put(self, folder: Path, whole: bool) -> None:
        """Write what object storage lacks of an entry there."""
        if self._remote is not None:
            with store_errors_explained(self.path):
                manifest = Manifest.read(folder)
                if manifest is not None:
                    self._remote.put(folder, manifest, whole)

    @interruptible()
    def _make(self, keys: Sequence[FeatureKey], compute: Callable) -> None:
        """Compute what these entries lack, in one pass. The caller holds their locks."""
        if self._remote is not None:
            self._remote.claim()
        with store_errors_explained(self.path):
            drafts = [Draft(self._layout, key, self.block_bytes) for key in keys]
        begun = False
        try:
            size, position = keys[0].size, min(draft.done for draft in drafts)
            for batches in compute(keys, position, size) if position < size else ():
                with store_errors_explained(self.path):
                    stop = position + len(next(iter(batches[0].values())))
                    if stop > size:
                        raise changed_since(size, f"{stop} or more")
                    for draft, batch in zip(drafts, batches, strict=True):
                        draft.check(batch, position)
                    if not begun:
                        self._begin(drafts)
                        begun = True
                    raise_if_interrupted()
                    for draft, batch in zip(drafts, batches, strict=True):
                        if draft.write(batch, position):
                            self._put(draft.folder, whole=False)
                    position = stop
            if position != size:
                raise changed_since(size, f"{position}, and no more")
            with store_errors_explained(self.path):
                for draft in drafts:
                    draft.finish()
        except StorageError:  # as a kill: the draft stays
            raise
        except (CacheError, DataError):
            raise_if_interrupted()  # which is no fault of the data: the draft stays
            for draft in drafts if begun else ():  # they can never become whole
                draft.abandon()
                self._layout.remove(draft.folder)
                if self._remote is not None:
                    self._remote.forget(draft.key.digest)
            raise
        finally:
            for draft in drafts:
                draft.abandon()

    def _begin(self, drafts: Sequence[Draft]) -> None:
        """Make room for new entries in the budget and on the disk, and claim it."""
        with self._layout.alone("budget"):
            self._layout.sweep()
            total = sum(draft.manifest.bytes for draft in drafts)
            if self.budget is not None:
                if total > self.budget:
                    raise CacheError(
                        f"Expected a budget of at least {total:,} bytes, which these features "
                        f"need. Received: {self.budget:,}. Raise it, pool the features, or store "
                        "them as float16."
                    )
                _, left = self._shrink(self.budget - total, [draft.key.digest for draft in drafts])
                if left + total > self.budget:
                    raise CacheError(
                        f"Expected room for {total:,} bytes in a budget of {self.budget:,}. "
                        f"Received: {left:,} in use. Raise the budget, or wait until they are read "
                        "no more."
                    )
            there = sum(draft.done * draft.manifest.bytes // draft.key.size for draft in drafts)
            free = shutil.disk_usage(self.path).free
            if total - there > free:
                raise CacheError(
                    f"Expected {total - there:,} bytes on the disk of {self.path}, which these "
                    f"features need. Received: {free:,}. Choose another folder, pool the features, "
                    "or store them as float16."
                )
            for draft in drafts:
                draft.begin()

    def entries(self) -> list[EntryInfo]:
        """Return all entries, unfinished ones among them, the one that was used last at the end.

        With object storage, this and what follows is about the storage; for its cache open
        `FeatureStore(store.path)`. An entry counts as used there when it was made or fetched.
        """
        if self._remote is None:
            return self._entries()
        found = [
            _told(self._layout.entry(digest), whole, used, manifest)
            for digest, whole, used, manifest in self._remote.manifests()
        ]
        return sorted(found, key=lambda entry: entry.used)

    def _entries(self) -> list[EntryInfo]:
        found = []
        with store_errors_explained(self.path):
            for kind in ("entries", "drafts"):
                for folder in self._layout.folders(kind):
                    # Another process may remove or finish it meanwhile.
                    with suppress(FileNotFoundError):
                        found.append(_info(folder, whole=kind == "entries"))
        return sorted(found, key=lambda entry: entry.used)

    def verify(self) -> dict[str, int]:
        """Return how many blocks of each whole entry are damaged; 1 where its manifest is."""
        if (remote := self._remote) is not None:
            found = ((digest, told) for digest, whole, _, told in remote.manifests() if whole)
            return {one: 1 if told is None else remote.damaged(told) for one, told in found}
        damaged: dict[str, int] = {}
        with store_errors_explained(self.path):
            for entry in self._entries():
                if entry.whole:
                    lease, manifest = self._layout.lease(entry.digest), Manifest.read(entry.folder)
                    if manifest is not None:
                        damaged[entry.digest] = len(manifest.damaged(entry.folder))
                    elif entry.folder.exists():
                        damaged[entry.digest] = 1
                    lease.close()
        return damaged

    @checked(CacheError)
    def gc(self, budget: NonNegativeInt | None = None) -> list[EntryInfo]:
        """Remove what was left unfinished, and what was used longest ago until the rest fits.

        Nothing that is in use is removed. Returns what was. In object storage nobody knows what is
        in use: there that counts as left unfinished which nobody has added to for a day.

        Args:
            budget: How many bytes may stay; the store's own where None, and in object storage all
                that are whole.
        """
        if self._remote is not None:
            return self._gc_remote(self._remote, budget)
        with store_errors_explained(self.path):
            self._layout.sweep()
            entries = self._entries()
            removed = [entry for entry in entries if not entry.whole and self._remove(entry)]
            budget = self.budget if budget is None else budget
            return removed if budget is None else removed + self._shrink(budget)[0]

    def _gc_remote(self, remote: Remote, budget: int | None) -> list[EntryInfo]:
        entries = self.entries()
        removed = [one for one in entries if not one.whole and is_left(one.used)]
        if budget is not None:
            removed += _removed([one for one in entries if one.whole], budget, lambda _: True)[0]
        for one in removed:
            remote.remove(one.digest)
        remote.sweep()
        return removed

    def clear(self) -> list[EntryInfo]:
        """Remove everything that is not in use; returns what was removed.

        Of object storage all is removed; who has fetched some of it keeps that.
        """
        if self._remote is not None:
            removed = self.entries()
            self._remote.clear()
            return removed
        with store_errors_explained(self.path):
            self._layout.sweep()
            return [entry for entry in self._entries() if self._remove(entry)]

    def _remove(self, entry: EntryInfo) -> bool:
        """Remove an entry that nobody makes or reads, and return whether it is gone."""
        with self._layout.if_unused(entry.digest) as unused:
            try:
                if unused:
                    self._layout.remove(entry.folder)
            except PermissionError:  # another user's
                return False
        return unused

    def _shrink(self, budget: int, keep: Collection[str] = ()) -> tuple[list[EntryInfo], int]:
        """Remove what was used longest ago until the rest, without what is kept, fits.

        Returns what was removed and the bytes that are left, which are in use if they are too many.
        """
        others = [entry for entry in self._entries() if entry.digest not in keep]
        return _removed(others, budget, self._remove)


def _removed(
    entries: Sequence[EntryInfo], budget: int, remove: Callable[[EntryInfo], bool]
) -> tuple[list[EntryInfo], int]:
    left, removed = sum(entry.bytes for entry in entries), []
    for entry in entries:
        if left > budget and remove(entry):
            removed.append(entry)
            left -= entry.bytes
    return removed, left


def _info(folder: Path, whole: bool) -> EntryInfo:
    used = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    told = Manifest.read(folder)
    info = _told(folder, whole, used, told)
    if told is not None:
        return info
    on_disk = sum(file.stat(follow_symlinks=False).st_size for file in os.scandir(folder))
    return replace(info, bytes=on_disk)


def _told(folder: Path, whole: bool, used: datetime, told: Manifest | None) -> EntryInfo:
    """Return what a manifest tells of an entry; nothing where it is damaged."""
    if told is None:
        return EntryInfo(folder.name, whole, 0, 0, (), used, {}, folder)
    names = tuple(array.name for array in told.arrays)
    return EntryInfo(folder.name, whole, told.size, told.bytes, names, used, told.about, folder)
