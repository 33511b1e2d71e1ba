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
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, ReadWriteLock, Timeout

from reusekit.errors import CacheError
from reusekit.progress import console
from reusekit.sealed_json import is_damage, write_durably

T = TypeVar("T")

_MARK = "feature_store.json"
_FORMAT = json.dumps({"format": 2})
_NO_DATABASE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


@dataclass(frozen=True)
class Layout:
    """The folders of a store.

    `entries/KEY` holds whole entries, `drafts/KEY` what is being made or was left unfinished,
    `locks/` the locks of both; `removed/` is on its way out.
    """

    root: Path

    def entry(self, digest: str) -> Path:
        """Return the folder of a whole entry."""
        return self.root / "entries" / digest

    def draft(self, digest: str) -> Path:
        """Return the folder of an entry that is not whole yet."""
        return self.root / "drafts" / digest

    def exists(self) -> bool:
        """Look for a store; nothing is made."""
        return (self.root / _MARK).is_file()

    def folders(self, kind: str) -> list[Path]:
        """List the folders in "entries" or "drafts", without stray files, links and others."""
        return [
            path
            for path in (self.root / kind).iterdir()
            if path.name.isalnum() and path.is_dir() and not path.is_symlink()
        ]

    def create(self) -> None:
        """Make the folders where there is no store; raise CacheError where there is another."""
        mark = self.root / _MARK
        with store_errors_explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            # Looked for before the mark: another process that makes this store begins with it.
            others = [path for path in self.root.iterdir() if not path.name.startswith(_MARK)]
            if not os.path.lexists(mark):
                if others:
                    raise CacheError(
                        "Expected a feature store, or a folder to make one in. Received: "
                        f"{self.root}, which holds something else. Choose another folder, or write "
                        f"{_FORMAT} into its {_MARK} if it is a store that has lost it."
                    )
                write_durably(mark, _FORMAT)
            told = b"a folder" if mark.is_dir() else mark.read_bytes()
            try:
                known = json.loads(told)
            except (ValueError, RecursionError):
                known = None
            if known != json.loads(_FORMAT):
                received = told[:80].decode(errors="replace")
                raise CacheError(
                    f"Expected {_FORMAT} in {mark}. Received: {received!r}. Write that into the "
                    "file if it was damaged. Remove its folder, or choose another one, if an "
                    "earlier version of reusekit made it: its files are not read, and its "
                    "features are computed again."
                )
            for name in ("entries", "drafts", "locks", "removed"):
                folder = self.root / name
                if folder.is_symlink():
                    raise CacheError(
                        f"Expected the folders of a feature store. Received: a link: {folder}. "
                        "Remove it, or choose another folder."
                    )
                if not folder.is_dir():
                    folder.mkdir(exist_ok=True)
                    share(folder)

    def remove(self, path: Path) -> None:
        """Remove what lies there: at once for whoever looks, and then from the disk.

        Of a link the link is removed, and what it points at stays as it is.
        """
        target = self.root / "removed" / uuid.uuid4().hex
        with suppress(FileNotFoundError):
            path.rename(target)
            _delete(target)

    def sweep(self) -> None:
        """Remove what a killed process was removing."""
        for path in (self.root / "removed").iterdir():
            _delete(path)

    # --- locks ----------------------------------------------------------------------------------

    def alone(self, name: str, what: str = "") -> AbstractContextManager:
        """Return a lock, taken: a key for who makes its entry, or any other name.

        Where another process has it, it is said to compute `what`, and waited for.
        """

        def take(file: Path) -> AbstractContextManager:
            lock = _lock(file)
            try:
                return lock.acquire(blocking=not what)
            except Timeout:
                console.print(f"Another process computes {what}; waiting for it ...")
                return lock.acquire()

        return self._taken(f"{name}.lock", take)

    def lease(self, digest: str) -> ExitStack:
        """Return a reader's share in an entry, which keeps it from being removed.

        It ends with `close`, with the last reference to it, or with the process. A store that one
        may only read has none: an entry that is removed meanwhile stays mapped.
        """
        held = ExitStack()

        def take(file: Path) -> None:
            readers = _readers(file)
            readers.acquire_read()
            held.callback(readers.close)

        with suppress(PermissionError):
            self._taken(f"{digest}.lease", take)
        return held

    @contextmanager
    def if_unused(self, digest: str) -> Iterator[bool]:
        """Keep all others off an entry, if nobody makes or reads it; yields whether that is so.

        An entry that another user keeps to himself counts as used.
        """
        with ExitStack() as held:

            def make(file: Path) -> None:
                held.enter_context(_lock(file).acquire(blocking=False))

            def read(file: Path) -> None:
                readers = _readers(file)
                held.callback(readers.close)
                held.enter_context(readers.write_lock(blocking=False))

            unused = False
            with suppress(Timeout, PermissionError):
                self._taken(f"{digest}.lock", make)
                self._taken(f"{digest}.lease", read)
                unused = True
            yield unused

    def _taken(self, name: str, take: Callable[[Path], T]) -> T:
        """Take a lock; what lies in the place of its file and is none is removed."""
        file = self.root / "locks" / name
        try:
            return take(file)
        except (OSError, sqlite3.Error) as error:
            broken = getattr(error, "sqlite_errorcode", None) in _NO_DATABASE
            if not broken and not (isinstance(error, OSError) and is_damage(error)):
                raise
            self.remove(file)
            return take(file)


def _lock(file: Path) -> FileLock:
    # Its mode is that of its folder, whatever the umask of who makes it: it is for all users.
    return FileLock(file, mode=file.parent.stat().st_mode & 0o666)


def _readers(file: Path) -> ReadWriteLock:
    """Return the lock that all readers of an entry share."""
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        share(file)
    # A lock of its own: one that were shared by threads could be released by its taker alone.
    return ReadWriteLock(file, is_singleton=False)


def share(path: Path) -> None:
    """Let those use a file or folder who may use the folder that it lies in, whatever the umask."""
    allowed = path.parent.stat().st_mode & (0o666 if path.is_file() else 0o777)
    with suppress(PermissionError):  # its owner has seen to it
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o777 | allowed)


def _delete(path: Path) -> None:
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def store_errors_explained(root: Path) -> Iterator[None]:
    """Turn what the operating system refuses into one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:  # readers share a lock that SQLite keeps
        reason = getattr(error, "strerror", None) or error
        file = getattr(error, "filename", None)
        where = f" ({file})" if file else ""
        raise CacheError(
            f"Expected a feature store that can be used. Received: {root}: {reason}{where}. Choose "
            "another folder, or see that this one can be written and its disk is not full."
        ) from error
