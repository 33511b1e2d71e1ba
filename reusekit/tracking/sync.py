"""Send what jobs have kept while their tracking server was away."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlflow
from filelock import Timeout

from reusekit.errors import TrackingError
from reusekit.progress import console
from reusekit.secrets import shown
from reusekit.tracking.network import check_health
from reusekit.tracking.outbox import Outbox
from reusekit.tracking.target import Address, Target
from reusekit.tracking.unfinished import end_killed, end_orphans, living


def find_outboxes(folder: Path) -> list[Outbox]:
    """Return the outboxes in a folder and below it in which something waits, oldest job first."""
    found = {folder, *folder.rglob("outbox")}
    folders = sorted(one for one in found if one.name == "outbox" and not one.is_symlink())
    return [outbox for outbox in map(Outbox, folders) if outbox.waits()]


def send_outbox(outbox: Outbox, uri: str | None = None) -> Iterator[bool]:
    """Send what waits in an outbox, in order. Killed at any moment, it can be called again.

    Args:
        outbox: What to send.
        uri: Where to; None for where it is meant for.

    Yields:
        After each record, whether the server has taken it. One that it refuses is set aside.

    Raises:
        InUseError: Its job still runs, or another process sends it.
        ServerAwayError: The server does not answer; what is left waits on.
        TrackingError: Where to send it is not known.
    """
    outbox.hold()
    before = mlflow.get_tracking_uri()
    try:
        address, known_as = _address(outbox, uri)
        check_health(address.uri)
        # Where a version is registered, MLflow asks the server in use for its model.
        mlflow.set_tracking_uri(address.uri)
        target = Target(address)
        yield from outbox.send(target)
        if not outbox.waits():
            _end_killed(outbox.folder.parent, address.uri, known_as)
            end_orphans(target)
    finally:
        mlflow.set_tracking_uri(before)
        outbox.release()


def _end_killed(job: Path, uri: str, known_as: str) -> None:
    with suppress(Timeout), living(job):  # else it lives, and sends by itself
        if end_killed(job, uri, known_as):
            line = f"{job}: its job was killed. What it has left open is ended as KILLED."
            console.print(line, soft_wrap=True, markup=False)


def _address(outbox: Outbox, uri: str | None) -> tuple[Address, str]:
    """Return the target of an outbox, and the address that its job knew."""
    if uri is not None:
        address = outbox.address(uri)
        with suppress(TrackingError):
            return address, outbox.address().uri
        return address, uri
    kept = outbox.address()
    current = mlflow.get_tracking_uri()
    if shown(current) == kept.uri:
        return replace(kept, uri=current), kept.uri  # with the password, which is not kept
    if "***" in kept.uri:
        raise TrackingError(
            f"{outbox.folder} is meant for {kept.uri}, and the password is not kept. Give the "
            "whole address with --uri, or in the environment's MLFLOW_TRACKING_URI."
        )
    return kept, kept.uri
