"""Paths inside a feature store."""

import json
import os
import shutil
import sqlite3
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from reusekit.errors import CacheError
from reusekit.sealed_json import write_durably

_MARK = "feature_store.json"
_FORMAT = {"format": 1}
_FOLDERS = ("entries", "drafts", "locks", "removed")


@dataclass(frozen=True)
class Layout:
    """The folders of a store.

    Attributes:
        root: The store's folder. `entries/KEY` holds whole entries, `drafts/KEY` what is being made
            or was left unfinished, `locks/` the locks of both; `removed/` is on its way out.
    """

    root: Path

    def entry(self, digest: str) -> Path:
        """Return the folder of a whole entry."""
        return self.root / "entries" / digest

    def draft(self, digest: str) -> Path:
        """Return the folder of an entry that is not whole yet."""
        return self.root / "drafts" / digest

    def lock(self, digest: str) -> Path:
        """Return the lock of who makes or removes an entry."""
        return self.root / "locks" / f"{digest}.lock"

    def lease(self, digest: str) -> Path:
        """Return the lock that all who read an entry share."""
        return self.root / "locks" / f"{digest}.lease"

    @property
    def budget_lock(self) -> Path:
        """The lock of who counts the store's bytes."""
        return self.root / "locks" / "budget.lock"

    def exists(self) -> bool:
        """Look for a store; nothing is made."""
        return (self.root / _MARK).is_file()

    def folders(self, kind: str) -> list[Path]:
        """List what may be entries or drafts; stray files, links and other folders are passed over.

        Args:
            kind: "entries" or "drafts".
        """
        return [
            path
            for path in (self.root / kind).iterdir()
            if path.name.isalnum() and path.is_dir() and not path.is_symlink()
        ]

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
            if not os.path.lexists(mark):
                if others:
                    raise CacheError(
                        f"Expected a feature store, or a folder to make one in. {self.root} holds "
                        f"something else. If it is a store that has lost {_MARK}, write "
                        f"{json.dumps(_FORMAT)} into that file."
                    )
                write_durably(mark, json.dumps(_FORMAT))
            self._check(mark)
            for name in _FOLDERS:
                folder = self.root / name
                if folder.is_symlink():
                    raise CacheError(
                        f"Expected the folders of a feature store. Received a link: {folder}. "
                        "Remove it, or choose another folder."
                    )
                if not folder.is_dir():
                    folder.mkdir(exist_ok=True)
                    share(folder)

    def _check(self, mark: Path) -> None:
        told = None
        if not mark.is_dir():
            told = mark.read_bytes()
        try:
            known = json.loads(told or b"") == _FORMAT
        except (ValueError, TypeError, RecursionError):
            known = False
        if not known:
            received = "a folder" if told is None else repr(told[:80].decode(errors="replace"))
            raise CacheError(
                f"Expected {json.dumps(_FORMAT)} in {mark}. Received: {received}. If the file was "
                f"damaged, write that into it; if another version of reusekit made the store, "
                "choose another folder."
            )

    def remove(self, path: Path) -> None:
        """Remove what lies there: at once for whoever looks, and then from the disk.

        Of a link the link is removed, and what it points at stays as it is.
        """
        target = self.root / "removed" / uuid.uuid4().hex
        try:
            path.rename(target)
        except FileNotFoundError:
            return
        _delete(target)

    def sweep(self) -> None:
        """Remove what a killed process was removing."""
        for path in (self.root / "removed").iterdir():
            _delete(path)


def share(path: Path) -> None:
    """Let those use a file or folder who may use the folder that it lies in, whatever the umask."""
    allowed = path.parent.stat().st_mode & 0o777
    now = path.stat().st_mode
    if path.is_file():
        allowed &= 0o666
    with suppress(PermissionError):  # its owner has seen to it
        path.chmod(stat.S_IMODE(now) & ~0o777 | allowed)


def _delete(path: Path) -> None:
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def os_errors_explained(root: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:  # readers share a lock that SQLite keeps
        reason = getattr(error, "strerror", None) or error
        file = getattr(error, "filename", None)
        where = f" ({file})" if file else ""
        raise CacheError(
            f"The feature store {root} cannot be used: {reason}{where}. Choose another "
            "folder, or see that this one can be written and its disk is not full."
        ) from error
