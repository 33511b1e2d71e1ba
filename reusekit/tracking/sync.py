"""Send what jobs have kept while their tracking server was away."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow

from reusekit.errors import TrackingError
from reusekit.tracking.network import check_health, shown
from reusekit.tracking.outbox import Outbox
from reusekit.tracking.target import Address, Target


def find_outboxes(folder: Path) -> list[Outbox]:
    """The outboxes in a folder and below it in which something waits, oldest job first."""
    folders = {file.parent for file in folder.rglob("address.json") if file.parent.name == "outbox"}
    return [outbox for outbox in map(Outbox, sorted(folders)) if outbox.records()]


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
        address = _address(outbox, uri)
        check_health(address.uri)
        # Where a version is registered, MLflow asks the server in use for its model.
        mlflow.set_tracking_uri(address.uri)
        yield from outbox.send(Target(address))
    finally:
        mlflow.set_tracking_uri(before)
        outbox.release()


def _address(outbox: Outbox, uri: str | None) -> Address:
    kept = outbox.address()
    if uri is None:
        uri = kept.uri
        current = mlflow.get_tracking_uri()
        if shown(current) == uri:
            uri = current  # with the password, which is not kept
        elif "***" in uri:
            raise TrackingError(
                f"{outbox.folder} is meant for {uri}, and the password is not kept. Give the whole "
                "address with --uri, or in the environment's MLFLOW_TRACKING_URI."
            )
    return replace(kept, uri=uri)
