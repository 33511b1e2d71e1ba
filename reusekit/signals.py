"""Ctrl-C and TERM, which end what runs in one orderly way, and not in the middle of a write.

Python raises at once, wherever it is. Where a library has called back from C, its C may make an
error of its own of that, or go on as if nothing had come. `interruptible` sees to both.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_came: list[int] = []
"""Signals that came in the `interruptible` blocks that are open."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end, as by `kill` or a batch system."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGINT and SIGTERM end the block by an exception, so that runs end and files are whole.

    After a signal, every other error is reported as the interruption, and so is the block's end
    where the exception was lost on its way. Signals that are ignored, or that the caller handles
    otherwise, are left alone.

    Raises:
        KeyboardInterrupt: SIGINT came.
        Terminated: SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raise_if_interrupted()
    usual = (signal.SIG_DFL, signal.default_int_handler, _interrupt)
    numbers = [number for number in _SIGNALS if signal.getsignal(number) in usual]
    before, hook = tuple(_came), sys.unraisablehook
    # Raised in a finalizer, it would be printed, and is not lost.
    sys.unraisablehook = lambda told: None if _came else hook(told)
    try:
        with _handled(_interrupt, *numbers):
            yield
        raise_if_interrupted()
    except Exception as error:
        interruption = _behind(error)
        if interruption is None:
            raise
        raise interruption from error
    finally:
        _came[:] = before
        sys.unraisablehook = hook


def raise_if_interrupted() -> None:
    """Raise the exception of a signal that was lost: before what is made now is kept.

    Raises:
        KeyboardInterrupt: One came in an `interruptible` block that is open.
    """
    if _came:
        raise _exception(_came[-1])


@contextmanager
def deferred() -> Iterator[None]:
    """Have SIGINT and SIGTERM wait until the end of the block, which should take seconds at most.

    Raises:
        KeyboardInterrupt: One of them came.
    """
    came: list[int] = []
    with _handled(lambda number, frame: came.append(number), *_SIGNALS) as before:
        try:
            yield
        except BaseException:
            _came.extend(number for number in came if before[number] is _interrupt)
            raise
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


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _came.append(number)
    raise _exception(number)


def _behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the interruption that an error comes of, or came up while it unwound."""
    if _came:
        return _exception(_came[-1])
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return None if error is None else type(error)()


def _exception(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
