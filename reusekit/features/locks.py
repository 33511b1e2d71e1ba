"""Locks on making, reading and removing an entry.

All locks are the operating system's, so the locks of a process that is killed are gone with it.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, ReadWriteLock, Timeout

from reusekit.features.layout import Layout, share
from reusekit.progress import console
from reusekit.sealed_json import is_damage

T = TypeVar("T")


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


_NO_DATABASE = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
