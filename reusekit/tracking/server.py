"""Find the tracking server, and find out whether it answers before any work is done."""

import os
import shlex
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException

from reusekit.errors import TrackingError
from reusekit.tracking.network import check_health, is_remote, patience, shown

_SECONDS_TO_ANSWER = 5
_ATTEMPTS = 4


def connect(uri: str | None, model: str) -> str:
    """Point MLflow at a server or database that answers.

    Args:
        uri: Where runs are kept, such as `http://host:5000` or `sqlite:///mlflow.db`; None for
            MLflow's own default (the environment's, else a SQLite file in the current folder).
        model: The name that a model will be registered under, to be refused now and not at the
            end.

    Returns:
        The address in use.

    Raises:
        TrackingError: It does not answer, cannot be used, or refuses the name.
    """
    if uri is not None:
        mlflow.set_tracking_uri(uri)
    uri = mlflow.get_tracking_uri()
    _check_answers(uri)
    for attempt in range(_ATTEMPTS):
        try:
            with patience():
                _check_name(model)
        except TrackingError:
            raise
        except Exception as error:  # a store's driver raises whatever it likes
            if attempt + 1 == _ATTEMPTS:
                raise TrackingError(
                    f"The tracking store {shown(uri)} cannot be used: {error}"
                ) from error
            time.sleep(1)  # another process may be making the tables of a new database
        else:
            break
    return uri


def ui_command(uri: str) -> str:
    """The command that opens the MLflow UI on what is kept there.

    Example:
        >>> ui_command("http://tracking:5000")
        'open http://tracking:5000 in a browser'
    """
    if is_remote(uri):
        return f"open {shown(uri)} in a browser"
    beside = Path(sys.executable).with_name("mlflow")
    program = str(beside) if beside.is_file() else "mlflow"
    if beside.is_relative_to(Path.cwd()):
        program = str(beside.relative_to(Path.cwd()))
    return shlex.join([program, "ui", "--backend-store-uri", shown(uri)])


def _check_name(model: str) -> None:
    try:
        mlflow.MlflowClient().get_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise TrackingError(
                f"{shown(mlflow.get_tracking_uri())} cannot register {model!r}: {error}"
            ) from error


def _check_answers(uri: str) -> None:
    try:
        check_health(uri, _SECONDS_TO_ANSWER)
    except TrackingError as error:
        start = "Start it with 'mlflow server', or" if is_remote(uri) else "Start it, or"
        raise TrackingError(
            f"{error} {start} keep runs in a file: --tracking.uri sqlite:///mlflow.db"
        ) from error
    if urlsplit(uri).scheme == "sqlite":
        folder = Path(uri.removeprefix("sqlite:///") or ".").absolute().parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise TrackingError(
                f"The tracking database {shown(uri)} cannot be written: there is no writable "
                f"folder {folder}. Choose another, such as --tracking.uri sqlite:///mlflow.db"
            )
