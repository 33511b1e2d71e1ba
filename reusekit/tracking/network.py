"""Short requests to a tracking server, and the meaning of their failures."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
)
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from reusekit.errors import ReusekitError, TrackingError
from reusekit.secrets import hide, hide_in, shown

SECONDS_TO_ANSWER = 10
"""How long a server may take over an ordinary request."""

_SECONDS_TO_SAY_IT_IS_WELL = 2
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_LONGEST = 600  # characters of what another library says that are repeated
_NOT_NOW = (408, 429)  # of the refusals, those that are no refusals: too slow, too many requests


class ServerAwayError(TrackingError):
    """The tracking server cannot be reached, does not answer in time, or fails."""


def cause_of(error: BaseException, *addresses: str) -> str:
    """Return another library's error in one line, without the secrets of addresses.

    The error itself loses them, too, since a traceback shows it.
    """
    known = (*addresses, mlflow.get_tracking_uri(), mlflow.get_registry_uri())
    said = getattr(error, "message", None) or str(error) or type(error).__name__
    hide_in(error, *known)
    return _short(hide(" ".join(str(said).split()), *known))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def is_remote(uri: str) -> bool:
    """Return whether an address is that of a server that is asked over HTTP."""
    return uri.startswith(("http://", "https://"))


def is_shared(uri: str) -> bool:
    """Return whether an address is that of a database on another machine.

    Example:
        >>> is_shared("postgresql://me@database/runs"), is_shared("postgresql://localhost/runs")
        (True, False)
    """
    parts = urlsplit(uri)
    is_database = parts.scheme.partition("+")[0] in _PORTS
    return is_database and parts.hostname not in (None, "localhost", "127.0.0.1", "::1")


def check_health(uri: str, seconds: int = _SECONDS_TO_SAY_IT_IS_WELL) -> None:
    """Ask a server whether it is well; of a database's, see whether it can be reached.

    A server is asked as MLflow asks it, with the credentials and certificates of the environment.
    One that does not know the question, or does not answer it to everyone, is there all the same.
    An address without a host is of a file, and taken to be well.

    Raises:
        ServerAwayError: It does not say so in time.
        TrackingError: That is no address.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    except ValueError as error:
        hide_in(error, uri)
        raise TrackingError(
            f"Expected the address of a tracking server or database. Received: {shown(uri)}: "
            f"{hide(str(error), uri)}."
        ) from error
    if is_remote(uri):
        with patience(seconds), explained(uri):
            answer = http_request(
                get_default_host_creds(uri), "/health", "GET", raise_on_status=False
            )
            if answer.status_code >= 500 or answer.status_code in _NOT_NOW:
                raise _away(uri, f"status {answer.status_code}")
        return
    if parts.hostname and port:
        # MLflow would try for minutes to open a database that is away.
        try:
            socket.create_connection((parts.hostname, port), timeout=seconds).close()
        except OSError as error:
            raise _away(uri, type(error).__name__) from error


@contextmanager
def patience(seconds: int = SECONDS_TO_ANSWER) -> Iterator[None]:
    """Have MLflow ask once, and wait some seconds unless the environment says otherwise.

    By itself it waits two minutes and asks eight times over, which not only takes long: a run whose
    making was answered, but whose answer was lost, would be made again.
    """
    wanted = {MLFLOW_HTTP_REQUEST_MAX_RETRIES: 0, MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT: True}
    if not MLFLOW_HTTP_REQUEST_TIMEOUT.is_set():
        wanted[MLFLOW_HTTP_REQUEST_TIMEOUT] = seconds
    before = {variable: variable.get_raw() for variable in wanted}
    for variable, value in wanted.items():
        variable.set(value)
    try:
        yield
    finally:
        for variable, value in before.items():
            variable.unset() if value is None else variable.set(value)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what fails while a server is asked into one sentence.

    Raises:
        ServerAwayError: It is away: the same may go well at another time.
        TrackingError: It refuses, and will go on refusing.
    """
    traces = logging.getLogger("mlflow.store.db.utils")  # of a database that is away, to be told
    before, traces.disabled = traces.disabled, True
    try:
        yield
    except ReusekitError:
        raise
    except (MlflowException, requests.RequestException) as error:
        if is_away(error):
            hide_in(error, uri)
            raise _away(uri, type(_cause(error)).__name__) from error
        raise TrackingError(
            "Expected a tracking server that takes what it is asked. Received: a refusal of "
            f"{shown(uri)}: {cause_of(error, uri).rstrip('.')}. See its log, and what you may do "
            "there."
        ) from error
    finally:
        traces.disabled = before


def is_away(error: Exception) -> bool:
    """Return whether an error means that the server is away, not that it refuses.

    Example:
        >>> is_away(requests.ConnectionError()), is_away(MlflowException("No such run"))
        (True, False)
    """
    cause = _cause(error)
    if isinstance(error, RestException):
        status = error.get_http_status_code()
    elif isinstance(cause, requests.HTTPError) and cause.response is not None:
        status = cause.response.status_code
    elif isinstance(cause, requests.RequestException):
        return not isinstance(cause, ValueError)  # such as an address that is none
    else:  # a database says so by itself
        return getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE"
    return status >= 500 or status in _NOT_NOW


def _away(uri: str, cause: str) -> ServerAwayError:
    start = "Start it with 'mlflow server'" if is_remote(uri) else "Start it"
    return ServerAwayError(
        f"Expected a tracking server that answers. Received: {shown(uri)}, which does not answer "
        f"({cause}). {start}, or check its address."
    )


def _cause(error: Exception) -> BaseException:
    """Return the error behind MLflow's own, which does not say what failed."""
    if isinstance(error, requests.RequestException) or error.__context__ is None:
        return error
    return error.__context__
