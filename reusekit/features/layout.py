"""Where a feature store keeps what, on disk."""

import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from reusekit.errors import CacheError

_MARK = "feature_store.json"
_FORMAT = '{"format": 1}'


@dataclass(frozen=True)
class Layout:
    """The folders of a store.

    Attributes:
        root: The store's folder. `entries/KEY` holds whole entries, `drafts/KEY` what is being made
            or was left unfinished, `locks/` the locks of both; `removed/` is on its way out.
    """

    root: Path

    def entry(self, digest: str) -> Path:
        """The folder of a whole entry."""
        return self.root / "entries" / digest

    def draft(self, digest: str) -> Path:
        """The folder of an entry that is not whole yet."""
        return self.root / "drafts" / digest

    def lock(self, digest: str) -> Path:
        """The lock of who makes or removes an entry."""
        return self.root / "locks" / f"{digest}.lock"

    def lease(self, digest: str) -> Path:
        """The lock that all who read an entry share."""
        return self.root / "locks" / f"{digest}.lease"

    @property
    def budget_lock(self) -> Path:
        """The lock of who counts the store's bytes."""
        return self.root / "locks" / "budget.lock"

    def exists(self) -> bool:
        """Whether there is a store."""
        return (self.root / _MARK).is_file()

    def create(self) -> None:
        """Make the folders where there is no store yet.

        Raises:
            CacheError: The folder holds something else, a store of another format, or cannot be
                written.
        """
        mark = self.root / _MARK
        with os_errors_explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            # Looked for before the mark: another process that makes this store begins with it.
            others = [path for path in self.root.iterdir() if not path.name.startswith(_MARK)]
            if not mark.exists():
                if others:
                    raise CacheError(
                        f"Expected a feature store, or a folder to make one in. {self.root} holds "
                        "something else."
                    )
                write_durably(mark, _FORMAT)
            told = mark.read_text()
            if told != _FORMAT:
                raise CacheError(f"Expected {_FORMAT!r} in {mark}. Received: {told[:80]!r}.")
            for folder in ("entries", "drafts", "locks", "removed"):
                (self.root / folder).mkdir(exist_ok=True)

    def remove(self, folder: Path) -> None:
        """Remove an entry or a draft: at once for whoever looks, and then from the disk."""
        target = self.root / "removed" / uuid.uuid4().hex
        try:
            folder.rename(target)
        except FileNotFoundError:
            return
        shutil.rmtree(target, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what a killed process was removing."""
        for folder in (self.root / "removed").iterdir():
            shutil.rmtree(folder, ignore_errors=True)


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that it is there as a whole, after a power failure too, or not."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def os_errors_explained(root: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:  # readers share a lock that SQLite keeps
        reason = getattr(error, "strerror", None) or error
        where = f" ({error.filename})" if getattr(error, "filename", None) else ""
        raise CacheError(
            f"The feature store {root} cannot be used: {reason}{where}. Choose another "
            "folder, or see that this one can be written and its disk is not full."
        ) from error
