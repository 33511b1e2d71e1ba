"""Find the tracking server, and find out whether it answers before any work is done."""

import os
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow.exceptions import MlflowException

from reusekit.errors import TrackingError

_SECONDS_TO_ANSWER = 5


def connect(uri: str | None, experiment: str, model: str | None = None) -> str:
    """Point MLflow at a server or database that answers, and choose the experiment.

    Args:
        uri: Where runs are kept, such as `http://host:5000` or `sqlite:///mlflow.db`; None for
            MLflow's own default (the environment's, else a SQLite file in the current folder).
        experiment: The experiment's name; it is created where it does not exist.
        model: A name that will be registered, to be refused now and not at the end.

    Returns:
        The address in use.

    Raises:
        TrackingError: It does not answer, refuses, or cannot be written.
    """
    if uri is not None:
        mlflow.set_tracking_uri(uri)
    uri = mlflow.get_tracking_uri()
    _check_answers(uri)
    try:
        if model is not None:
            _check_name(model)
        mlflow.set_experiment(experiment)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"The tracking server {uri} cannot be used for experiment {experiment!r}: {error}"
        ) from error
    return uri


def ui_command(uri: str) -> str:
    """The command that opens the MLflow UI on what is kept there.

    Example:
        >>> ui_command("sqlite:///mlflow.db")
        'mlflow ui --backend-store-uri sqlite:///mlflow.db'
    """
    if urlsplit(uri).scheme in ("http", "https"):
        return f"open {uri} in a browser"
    return f"mlflow ui --backend-store-uri {uri}"


def _check_name(model: str) -> None:
    try:
        mlflow.MlflowClient().get_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise TrackingError(f"The registry refuses the name {model!r}: {error}") from error


def _check_answers(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        try:
            answer = requests.get(f"{uri.rstrip('/')}/health", timeout=_SECONDS_TO_ANSWER)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise TrackingError(
                f"The tracking server {uri} does not answer ({type(error).__name__}). Start it "
                "with 'mlflow server', or keep runs in a file: --tracking.uri sqlite:///mlflow.db"
            ) from error
    elif parts.scheme == "sqlite":
        folder = Path(uri.removeprefix("sqlite:///") or ".").absolute().parent
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise TrackingError(
                f"The tracking database {uri} cannot be written: {folder} is no writable folder."
            )
