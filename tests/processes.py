"""Processes of their own, forked from one that has imported Keras already, which takes seconds."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["reusekit.search"])


class Said(list):
    """What a process said until it ended, as it comes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def until(self, word: Any) -> None:
        """Wait for what begins with a word."""
        while not self or self[-1][0] != word:
            self.append(self._connection.recv())

    def all(self) -> "Said":
        """Wait for the end."""
        try:
            self.until(None)
        except EOFError:
            return self

    def answer(self) -> None:
        """Have a process that waits go on."""
        self._connection.send(None)


@contextmanager
def forked(target: Callable[..., None], *args: Any) -> Iterator[tuple[ForkServerProcess, Said]]:
    """A process, and what it says; killed at the end if it is still there.

    Args:
        target: What it does, by a name that it can import. Called with the arguments and a
            connection, to which it sends tuples.
        *args: The arguments.
    """
    connection, its_own = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=target, args=(*args, its_own))
    process.start()
    its_own.close()
    try:
        yield process, Said(connection)
    finally:
        process.kill()
        process.join()
