"""TERM ends a block as Ctrl-C does, neither comes in the middle of a write, and none is lost."""

import signal
import threading
from contextlib import suppress

import pytest

from reusekit.signals import Terminated, deferred, interruptible


@pytest.fixture(autouse=True)
def _interruptible():
    """Ctrl-C as a person has it; what a shell has put in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_term_ends_the_block_and_is_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_write_is_finished_first(number, raised):
    done = []
    with pytest.raises(raised), interruptible():
        with deferred():
            signal.raise_signal(number)
            done.append("written")
        done.append("never")
    assert done == ["written"]


@pytest.mark.parametrize("error", [None, ValueError("Unbatching a tensor"), OSError("disk")])
def test_whatever_a_library_makes_of_it_the_block_ends_by_the_interruption(error):
    done = []
    with pytest.raises(Terminated) as caught, interruptible(), interruptible():
        with suppress(KeyboardInterrupt):  # as TensorFlow's C does
            signal.raise_signal(signal.SIGTERM)
        done.append("more")
        if error is not None:
            raise error
    assert caught.value.__cause__ is error
    with interruptible():  # it is over
        done.append("anew")
    assert done == ["more", "anew"]


def test_a_signal_in_a_finalizer_is_neither_lost_nor_printed(capfd):
    class Held:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated), interruptible():
        Held()
    assert capfd.readouterr().err == ""


def test_an_error_while_it_unwinds_does_not_hide_it():
    with pytest.raises(Terminated), interruptible():
        try:
            with interruptible():
                signal.raise_signal(signal.SIGTERM)
        finally:
            raise OSError("disk")


def test_what_was_lost_comes_before_the_next_block():
    with pytest.raises(Terminated), interruptible():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        with interruptible():
            raise AssertionError("it went on")


def test_a_signal_during_a_write_that_fails_is_not_lost():
    with pytest.raises(Terminated), interruptible(), deferred():
        signal.raise_signal(signal.SIGTERM)
        raise OSError("disk")


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_other_handlers_are_left_alone(handler):
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_error_of_the_write_is_not_hidden():
    with pytest.raises(OSError, match="disk"), deferred():
        signal.raise_signal(signal.SIGINT)
        raise OSError("disk")


def test_other_threads_may_use_it():
    done = []

    def work() -> None:
        with interruptible(), deferred():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
