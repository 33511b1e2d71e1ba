"""Who may make, read and remove an entry.

All locks are the operating system's, so the locks of a process that is killed are gone with it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, ReadWriteLock, Timeout

from reusekit.features.layout import Layout
from reusekit.progress import console


@contextmanager
def sole_maker(lock_file: Path, what: str) -> Iterator[None]:
    """Hold the lock of who makes an entry; waits, and says so, while another process does."""
    lock = FileLock(lock_file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        console.print(f"Another process computes {what}; waiting for it ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Lease:
    """A reader's share in an entry, which keeps it from being removed.

    It ends with `close`, with the last reference to it, or with the process.

    Args:
        lease_file: The lock that all readers of the entry share.
    """

    def __init__(self, lease_file: Path) -> None:
        # A lock of its own: one that were shared by threads could be released by its taker alone.
        self._lock = ReadWriteLock(lease_file, is_singleton=False)
        self._lock.acquire_read()

    def close(self) -> None:
        """Let the entry be removed."""
        self._lock.close()


@contextmanager
def if_unused(layout: Layout, digest: str) -> Iterator[bool]:
    """Keep all others off an entry, if nobody makes or reads it; yields whether that is so."""
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(layout.lock(digest), blocking=False))
            readers = ReadWriteLock(layout.lease(digest), is_singleton=False)
            held.callback(readers.close)
            held.enter_context(readers.write_lock(blocking=False))
        except Timeout:
            unused = False
        else:
            unused = True
        yield unused
