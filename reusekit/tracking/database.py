"""A new SQLite database for MLflow, which is there with all of its tables or not at all."""

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from reusekit.tracking.network import patience


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite database; None for any other address."""
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        return None
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database)


def make_database(uri: str) -> None:
    """Make the SQLite database of an address, where there is no such file.

    MLflow takes seconds to make its tables. Killed meanwhile, it leaves a file that it refuses for
    ever; so they are made elsewhere, and the file is then put in its place at once.
    """
    file = sqlite_file(uri)
    if file is None or os.path.lexists(file) or not file.parent.is_dir():
        return
    with TemporaryDirectory() as scratch, patience():
        made = Path(scratch, "made.db")
        MlflowClient(f"sqlite:///{made}").search_experiments()
        beside = file.with_name(f"{file.name}.{uuid.uuid4().hex}.part")
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
