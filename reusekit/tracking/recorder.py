"""The way of every write to MLflow: sent at once, or kept in an outbox until the server is back."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import Any

import mlflow

from reusekit.errors import TrackingError
from reusekit.progress import say
from reusekit.tracking.network import ServerAwayError, check_health
from reusekit.tracking.operations import Destination, EndRun, Operation, StartRun, Target
from reusekit.tracking.outbox import Outbox


def pause_after(seconds: float) -> float:
    """Return the pause after some seconds of asking in vain: nine times as many, at least ten."""
    return max(10.0, 9 * seconds)


class Recorder:
    """Sends operations while the server answers, and keeps them while it does not.

    Args:
        destination: Where they are meant for.
        outbox: Where they are kept; without one, a server that is away is an error.

    Attributes:
        open: The keys of the runs that have begun, and whose end is neither sent nor kept.

    Raises:
        TrackingError: The outbox holds what an earlier job left.
    """

    def __init__(self, destination: Destination, outbox: Outbox | None = None) -> None:
        self.target = Target(destination)
        self._outbox = outbox
        self.open: set[str] = set()
        self._waiting = False
        self._next_attempt = 0.0
        if outbox is not None and outbox.waits():
            raise TrackingError(
                f"Expected a folder from which all was sent. Received: {outbox.folder}, which "
                "holds what an earlier job could not send. Send it first: reusekit sync "
                f"{shlex.quote(str(outbox.folder.parent))}"
            )

    def submit(self, operation: Operation) -> Any:
        """Write an operation, and return what it gives; None where it is kept.

        Raises:
            TrackingError: The server refuses it.
        """
        given = self._send_or_keep(operation)
        if isinstance(operation, StartRun):
            self.open.add(operation.run)
        elif isinstance(operation, EndRun):
            self.open.discard(operation.run)
        return given

    def _send_or_keep(self, operation: Operation) -> Any:
        if self._outbox is None:
            return self._send(operation)
        if not self._waiting or self._send_what_waits():
            began = monotonic()
            try:
                return self._send(operation)
            except ServerAwayError as away:
                reason = str(away)
            self._wait(began)
        self._outbox.put(operation, self.target.destination)
        if not self._waiting:
            self._waiting = True
            say(f"warning: {reason} The work goes on; its records wait in {self._outbox.folder}.")
        return None

    def keep(self, operation: Operation) -> str:
        """Keep an operation that was refused, and return how it is sent once that is put right."""
        if self._outbox is None:
            return ""
        self._outbox.put(operation, self.target.destination)
        command = shlex.join(["reusekit", "sync", str(self._outbox.folder.parent)])
        return f"It is kept in {self._outbox.folder}. Send it once that is put right: {command}"

    def close(self) -> None:
        """Send what waits, or say how that is done later."""
        if self._outbox is None:
            return
        self._next_attempt = 0.0
        if self._waiting and not self._send_what_waits():
            left, folder = len(self._outbox.records()), self._outbox.folder
            say(
                f"{left} records wait in {folder}, since the tracking server does not answer. Once "
                f"it does, send them: reusekit sync {shlex.quote(str(folder.parent))}"
            )
        self._outbox.release()

    def _send(self, operation: Operation) -> Any:
        """Send an operation, and once more where the server says that it is well after all.

        A connection that the server closed while it idled looks like a server that is away.
        """
        try:
            return operation.send(self.target)
        except ServerAwayError as error:
            away = error
        try:
            check_health(self.target.destination.uri)
        except ServerAwayError:
            raise away from None
        return operation.send(self.target, again=True)

    def _send_what_waits(self) -> bool:
        """Return whether all has been sent; does not try too often."""
        assert self._outbox is not None  # else nothing waits
        began = monotonic()
        if began < self._next_attempt:
            return False
        try:
            check_health(self.target.destination.uri)
            for _ in self._outbox.send(self.target):
                pass
        except ServerAwayError:
            self._wait(began)
            return False
        self._waiting = False
        self._outbox.release()
        say("The tracking server answers again, and has what was kept for it.")
        return True

    def _wait(self, began: float) -> None:
        self._next_attempt = monotonic() + pause_after(monotonic() - began)


@dataclass(frozen=True)
class Recording:
    """A run that is written to, by its key, and the recorder through which."""

    recorder: Recorder
    run: str

    def write(self, kind: Callable[..., Operation], **values: Any) -> Any:
        """Write an operation of a kind; see `Recorder.submit`."""
        return self.recorder.submit(kind(self.run, **values))


_current: ContextVar[Recording | None] = ContextVar("recording", default=None)


def current() -> Recording:
    """Return the run that is written to: that of the innermost step, else MLflow's active run.

    As with MLflow's own functions, a run is started where none is active.
    """
    recording = _current.get()
    if recording is None:
        run_id = (mlflow.active_run() or mlflow.start_run()).info.run_id
        recorder = Recorder(Destination(mlflow.get_tracking_uri(), run_id=run_id))
        recorder.target.run_ids[run_id] = run_id
        recording = Recording(recorder, run_id)
    return recording


@contextmanager
def recording_to(recorder: Recorder, run: str) -> Iterator[None]:
    """Have everything in the block written to the run of a key."""
    before = _current.set(Recording(recorder, run))
    try:
        yield
    finally:
        _current.reset(before)
