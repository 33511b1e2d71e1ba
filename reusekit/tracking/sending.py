"""Send one operation, with as much patience as what it carries asks for."""

from typing import Any

from reusekit.errors import ReusekitError, TrackingError
from reusekit.tracking.network import (
    SECONDS_TO_ANSWER,
    cause_of,
    check_health,
    explained,
    patience,
)
from reusekit.tracking.operations import Carrying, Operation
from reusekit.tracking.target import Target

_SECONDS_TO_STORE_A_FILE = 120


def send(operation: Operation, target: Target, again: bool = False) -> Any:
    """Send an operation.

    Args:
        operation: What to write.
        target: Where to.
        again: Whether it may have been written already, by a request whose answer was lost.

    Returns:
        What the operation gives.

    Raises:
        ServerAwayError: The server is away. Whether it has taken the operation is not known.
        TrackingError: The server refuses.
    """
    uri = target.address.uri
    seconds = SECONDS_TO_ANSWER
    if isinstance(operation, Carrying):
        # A server may take long to store a file. One that does not answer at all is told from it.
        check_health(uri)
        seconds = _SECONDS_TO_STORE_A_FILE
    try:
        with patience(seconds), explained(uri):
            return operation.send(target, again)
    except ReusekitError:
        raise
    except Exception as error:  # the client of an artifact store raises whatever it likes
        if not isinstance(operation, Carrying):
            raise
        raise TrackingError(f"The artifact store refuses: {cause_of(error, uri)}") from error
