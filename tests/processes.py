"""Processes of their own, forked from one that has imported Keras already, which takes seconds."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
# Nothing of reusekit, so that a process may do without it.
_CONTEXT.set_forkserver_preload(["keras"])


class Said(list):
    """The words of a process until it ended, as they come."""

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


def run_python(
    code: str,
    *words: object,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """Run code as `python -c` does; of reusekit it has imported nothing.

    Args:
        code: The code.
        *words: What follows it on the command line.
        folder: The current folder of the process; this one's by default.
        environment: What is set beside this process's environment, where it is read after
            Keras was imported.
    """
    with tempfile.TemporaryDirectory() as said:
        outputs = [Path(said) / name for name in ("stdout", "stderr")]
        process = start_python(
            code, *words, outputs=outputs, folder=folder, environment=environment
        )
        process.join()
        texts = (output.read_text() for output in outputs)
        return subprocess.CompletedProcess(code, process.exitcode, *texts)


def start_python(
    code: str,
    *words: object,
    outputs: Sequence[Path] = (Path(os.devnull),) * 2,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ForkServerProcess:
    """Start what `run_python` runs, and do not wait for its end; the outputs are its two files."""
    variables = os.environ | (environment or {})
    where = folder or Path.cwd()
    process = _CONTEXT.Process(
        target=_run, args=(code, list(map(str, words)), where, variables, list(outputs))
    )
    process.start()
    return process


def _run(
    code: str, words: list[str], folder: Path, variables: dict[str, str], outputs: list[Path]
) -> None:
    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = ["-c", *words]
    sys.path.insert(0, str(folder))
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
