"""The budget of a store, and the order of eviction above it."""

import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reusekit.errors import CacheError
from reusekit.features.layout import Layout
from reusekit.features.locks import if_unused
from reusekit.features.manifest import Manifest


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
        folder: Where it lies.
    """

    digest: str
    whole: bool
    size: int
    bytes: int
    arrays: tuple[str, ...]
    used: datetime
    about: Mapping[str, Any]
    folder: Path


def list_entries(layout: Layout) -> list[EntryInfo]:
    """Return all entries, unfinished ones among them, the one that was used last at the end."""
    found = []
    for kind in ("entries", "drafts"):
        for folder in layout.folders(kind):
            # Another process may remove or finish it meanwhile.
            with suppress(FileNotFoundError):
                found.append(_info(folder, whole=kind == "entries"))
    return sorted(found, key=lambda entry: entry.used)


def remove(layout: Layout, entry: EntryInfo) -> bool:
    """Remove an entry that nobody makes or reads; says whether it is gone."""
    with if_unused(layout, entry.digest) as unused:
        if unused:
            try:
                layout.remove(entry.folder)
            except PermissionError:  # another user's
                return False
    return unused


def shrink(layout: Layout, budget: int, keep: Collection[str] = ()) -> tuple[list[EntryInfo], int]:
    """Remove what was used longest ago until the rest fits.

    Args:
        layout: The store's folders.
        budget: How many bytes may stay, those of `keep` not counted.
        keep: Keys that stay and do not count.

    Returns:
        What was removed, and how many bytes are left; more than the budget where all of them are in
        use.
    """
    others = [entry for entry in list_entries(layout) if entry.digest not in keep]
    left, removed = sum(entry.bytes for entry in others), []
    for entry in others:
        if left <= budget:
            break
        if remove(layout, entry):
            removed.append(entry)
            left -= entry.bytes
    return removed, left


def make_room(layout: Layout, budget: int | None, needed: Mapping[str, int], to_come: int) -> None:
    """See that new entries fit into the budget and onto the disk; older ones may have to go.

    Args:
        layout: The store's folders.
        budget: How many bytes the store may hold; None for as many as the disk.
        needed: Bytes of each new entry, by key.
        to_come: How many of these are not written yet.

    Raises:
        CacheError: They do not fit.
    """
    total = sum(needed.values())
    if budget is not None:
        if total > budget:
            raise CacheError(
                f"Expected a budget of at least {total:,} bytes, which these features need. "
                f"Received: {budget:,}. Raise it, pool the features, or store them as float16."
            )
        _, left = shrink(layout, budget - total, keep=needed)
        if left + total > budget:
            raise CacheError(
                f"These features need {total:,} bytes of a budget of {budget:,}, of which {left:,} "
                f"are in use. Raise the budget, or wait until they are read no more."
            )
    free = shutil.disk_usage(layout.root).free
    if to_come > free:
        raise CacheError(
            f"These features need {to_come:,} bytes, and the disk of {layout.root} has {free:,}. "
            "Choose another folder, pool the features, or store them as float16."
        )


def _info(folder: Path, whole: bool) -> EntryInfo:
    manifest = Manifest.read(folder)
    used = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    if manifest is None:
        files = (file.stat(follow_symlinks=False) for file in os.scandir(folder))
        on_disk = sum(file.st_size for file in files)
        return EntryInfo(folder.name, whole, 0, on_disk, (), used, {}, folder)
    names = tuple(array.name for array in manifest.arrays)
    return EntryInfo(
        folder.name, whole, manifest.size, manifest.bytes, names, used, manifest.about, folder
    )
