"""The tracking server, asked whether it answers before any work is done."""

import os
import shlex
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote
from uuid import uuid4

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from reusekit.errors import TrackingError
from reusekit.progress import say
from reusekit.secrets import shown
from reusekit.tracking.network import (
    cause_of,
    check_health,
    explained,
    is_away,
    is_remote,
    is_shared,
    patience,
)
from reusekit.tracking.operations import Target
from reusekit.tracking.registry import check_name

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
        The URI in use.

    Raises:
        TrackingError: It does not answer, cannot be used, or refuses the name.
    """
    if uri is not None:
        mlflow.set_tracking_uri(uri)
    uri = mlflow.get_tracking_uri()
    _check_answers(uri)
    for attempt in range(_ATTEMPTS):
        try:
            make_database(uri)
            with patience():
                _check_name(model)
        except TrackingError:
            raise
        except Exception as error:  # a store's driver raises whatever it likes
            if attempt + 1 == _ATTEMPTS:
                raise TrackingError(
                    f"Expected a tracking store that can be used. Received: {shown(uri)}: "
                    f"{cause_of(error, uri)}.{_way_out(uri)}"
                ) from error
            time.sleep(1)  # another process may be making the tables of a new database
        else:
            break
    return uri


def check_artifacts(target: Target) -> None:
    """See whether an experiment's artifact store takes files, by one that is removed again.

    A model is stored when all work is done, and that would be too late to find out.

    Raises:
        TrackingError: It takes none: a package or credentials are missing, or a folder cannot be
            written. A server that is away at this moment is no reason.
    """
    with explained(target.destination.uri), patience():
        location = target.client.get_experiment(target.experiment_id).artifact_location
        try:
            folder = get_artifact_repository(location, target.destination.uri)
            if isinstance(folder, LocalArtifactRepository) and is_shared(target.destination.uri):
                say(
                    f"warning: the experiment keeps files in {shown(location)}, a folder of this "
                    f"machine, and others that use {shown(target.destination.uri)} cannot read "
                    "them. Make one whose files are for all: mlflow experiments create "
                    "--experiment-name NAME --artifact-location s3://BUCKET/PREFIX"
                )
            with TemporaryDirectory() as scratch:
                probe = Path(scratch, f"reusekit-{uuid4().hex}.txt")
                probe.write_text("Written to see whether files can be stored here.\n")
                folder.log_artifact(str(probe))
            with suppress(Exception):  # some may write and not delete
                folder.delete_artifacts(probe.name)
        except Exception as error:  # the client of an artifact store raises whatever it likes
            if is_away(error):
                raise
            raise TrackingError(
                "Expected an artifact store that takes files, so that models can be kept. "
                f"Received: {shown(location)}: {cause_of(error, location).rstrip('.')}. See that "
                "it can be written, or choose another experiment."
            ) from error


def _way_out(uri: str) -> str:
    file = _sqlite_file(uri)
    if file is None or not file.exists():
        return " Name another with --tracking.uri."
    return (
        f" Delete {shlex.quote(str(file))} if a process was killed while it made that, else name "
        "another with --tracking.uri."
    )


def ui_command(uri: str) -> str:
    """Return the command that opens the MLflow UI on what is kept there.

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
    check_name(model)
    try:
        MlflowClient().get_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise TrackingError(
                f"Expected {shown(mlflow.get_tracking_uri())} to register {model!r}. Received: a "
                f"refusal: {cause_of(error).rstrip('.')}. Choose another name with "
                "--tracking.model."
            ) from error


def _check_answers(uri: str) -> None:
    try:
        check_health(uri, _SECONDS_TO_ANSWER)
    except TrackingError as error:
        raise TrackingError(
            f"{error} Keep runs in a file instead: --tracking.uri sqlite:///mlflow.db"
        ) from error
    if uri.startswith("sqlite:///"):
        # As SQLAlchemy reads it: MLflow's own default has its spaces encoded.
        file = unquote(uri.removeprefix("sqlite:///").partition("?")[0])
        folder = Path(file or ".").absolute().parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise TrackingError(
                f"Expected a tracking database that can be written. Received: {shown(uri)}, with "
                f"no writable folder {folder}. Choose another, such as --tracking.uri "
                "sqlite:///mlflow.db"
            )


def _sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite database; None for any other URI."""
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        return None
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database)


def make_database(uri: str) -> None:
    """Make the SQLite database of a URI, where there is no such file.

    MLflow takes seconds to make its tables. Killed meanwhile, it leaves a file that it refuses for
    ever; so they are made elsewhere, and the file is then put in its place at once.
    """
    file = _sqlite_file(uri)
    if file is None or os.path.lexists(file) or not file.parent.is_dir():
        return
    with TemporaryDirectory() as scratch, patience():
        made = Path(scratch, "made.db")
        MlflowClient(f"sqlite:///{made}").search_experiments()
        beside = file.with_name(f"{file.name}.{uuid4().hex}.part")
        try:
            shutil.copyfile(made, beside)
            with beside.open("rb") as copied:
                os.fsync(copied.fileno())
            with suppress(FileExistsError):  # another process was quicker
                try:
                    os.link(beside, file)
                except FileExistsError:
                    raise
                except OSError:  # a file system without such links
                    beside.rename(file)
        finally:
            beside.unlink(missing_ok=True)
