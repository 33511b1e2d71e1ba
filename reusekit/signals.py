"""Ctrl-C and TERM, which end what runs in one orderly way, and not in the middle of a write."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """The process was asked to end, as by `kill` or a batch system."""


@contextmanager
def term_as_interrupt() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does, so that runs are ended and files are whole.

    Raises:
        Terminated: It came.
    """
    with _handled(_terminate, signal.SIGTERM):
        yield


@contextmanager
def deferred() -> Iterator[None]:
    """Have SIGINT and SIGTERM wait until the end of the block, which should take seconds at most.

    Raises:
        KeyboardInterrupt: One of them came.
    """
    came: list[int] = []
    with _handled(lambda number, frame: came.append(number), *_SIGNALS) as before:
        yield
    if came:
        handler = before[came[0]]
        if callable(handler):
            handler(came[0], None)
        else:
            signal.raise_signal(came[0])


@contextmanager
def _handled(handler: Any, *signals: int) -> Iterator[dict[int, Any]]:
    """Handle signals otherwise in the block; where no handler can be set, nothing is changed."""
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                before[number] = signal.signal(number, handler)
        yield before
    finally:
        for number, former in before.items():
            signal.signal(number, signal.SIG_DFL if former is None else former)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
