"""TERM ends a block as Ctrl-C does, and neither comes in the middle of a write."""

import signal
import threading

import pytest

from reusekit.signals import Terminated, deferred, term_as_interrupt


@pytest.fixture(autouse=True)
def _interruptible():
    """Ctrl-C as a person has it; what a shell has put in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_term_ends_the_block_and_is_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), term_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_write_is_finished_first(number, raised):
    done = []
    with pytest.raises(raised), term_as_interrupt():
        with deferred():
            signal.raise_signal(number)
            done.append("written")
        done.append("never")
    assert done == ["written"]


def test_an_error_of_the_write_is_not_hidden():
    with pytest.raises(OSError, match="disk"), deferred():
        signal.raise_signal(signal.SIGINT)
        raise OSError("disk")


def test_other_threads_may_use_it():
    done = []

    def work() -> None:
        with term_as_interrupt(), deferred():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
