"""Paths inside a feature store, and the locks on making, reading and removing an entry.

All locks are the operating system's, so the locks of a process that is killed are gone with it.
"""

import json
import os
import shutil
import sqlite3
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, ReadWriteLock, Timeout

from reusekit.errors import CacheError
from reusekit.progress import console
from reusekit.sealed_json import is_damage, write_durably

T = TypeVar("T")

_MARK = "feature_store.json"
_FORMAT = {"format": 2}
_BEFORE = {"format": 1}  # several files an array
_FOLDERS = ("entries", "drafts", "locks", "removed")
_NO_DATABASE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


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
            known = json.loads(told or b"")
        except (ValueError, TypeError, RecursionError):
            known = None
        if known == _BEFORE:
            raise CacheError(
                f"Expected a feature store of format {_FORMAT['format']}. Received: {self.root}, "
                "made by an earlier version of reusekit, whose files are not read. Remove that "
                "folder, and its features are computed again, or choose another one."
            )
        if known != _FORMAT:
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


# --- locks --------------------------------------------------------------------------------------


@contextmanager
def sole_maker(layout: Layout, digest: str, what: str) -> Iterator[None]:
    """Hold the lock of who makes an entry; waits, and says so, while another process does."""
    lock = _lock(layout.lock(digest))

    def take() -> None:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            console.print(f"Another process computes {what}; waiting for it ...")
            lock.acquire()

    _with_lock_file(layout, layout.lock(digest), take)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def counting(layout: Layout) -> Iterator[None]:
    """Hold the lock of who counts the store's bytes."""
    lock = _lock(layout.budget_lock)
    _with_lock_file(layout, layout.budget_lock, lock.acquire)
    try:
        yield
    finally:
        lock.release()


class Lease:
    """A reader's share in an entry, which keeps it from being removed.

    It ends with `close`, with the last reference to it, or with the process. Who may only read a
    store takes none: an entry that is removed meanwhile stays mapped.

    Args:
        layout: The store's folders.
        digest: The key of the entry.
    """

    def __init__(self, layout: Layout, digest: str) -> None:
        self._lock: ReadWriteLock | None = None
        with suppress(PermissionError):
            self._lock = _with_lock_file(
                layout, layout.lease(digest), lambda: _shared(layout.lease(digest))
            )

    def close(self) -> None:
        """Let the entry be removed."""
        if self._lock is not None:
            self._lock.close()


@contextmanager
def if_unused(layout: Layout, digest: str) -> Iterator[bool]:
    """Keep all others off an entry, if nobody makes or reads it; yields whether that is so.

    What another user made and keeps to himself counts as used.
    """
    with ExitStack() as held:

        def take() -> None:
            readers = _readers(layout.lease(digest))
            held.callback(readers.close)
            held.enter_context(readers.write_lock(blocking=False))

        try:
            making = _lock(layout.lock(digest))
            _with_lock_file(layout, layout.lock(digest), lambda: making.acquire(blocking=False))
            held.callback(making.release)
            _with_lock_file(layout, layout.lease(digest), take)
        except (Timeout, PermissionError):
            unused = False
        else:
            unused = True
        yield unused


def _lock(file: Path) -> FileLock:
    # Its mode is that of its folder, whatever the umask of who makes it: it is for all users.
    return FileLock(file, mode=file.parent.stat().st_mode & 0o666)


def _readers(file: Path) -> ReadWriteLock:
    """Return the lock that all readers of an entry share, as its file is."""
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        share(file)
    # A lock of its own: one that were shared by threads could be released by its taker alone.
    return ReadWriteLock(file, is_singleton=False)


def _shared(file: Path) -> ReadWriteLock:
    lock = _readers(file)
    lock.acquire_read()
    return lock


def _with_lock_file(layout: Layout, file: Path, take: Callable[[], T]) -> T:
    """Take a lock; what lies in the place of its file and is none is removed."""
    try:
        return take()
    except (OSError, sqlite3.Error) as error:
        broken = getattr(error, "sqlite_errorcode", None) in _NO_DATABASE
        if not broken and not (isinstance(error, OSError) and is_damage(error)):
            raise
        layout.remove(file)
        return take()
