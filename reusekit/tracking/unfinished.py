"""Runs that a dead process has left open: found by a file in its job's folder, and ended.

JOB/job.lock         held as long as the job's process lives
JOB/KEY.run.json     the run with that key is open; it goes when the run has ended
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from reusekit.errors import TrackingError
from reusekit.sealed_json import DamagedFileError, read_sealed, write_sealed
from reusekit.secrets import shown
from reusekit.tracking.names import KEY
from reusekit.tracking.network import explained, patience
from reusekit.tracking.target import Address

LOCK = "job.lock"
_RUN = ".run.json"


@contextmanager
def living(folder: Path) -> Iterator[None]:
    """Show by a lock that the job of a folder lives; it goes with the process.

    Raises:
        Timeout: Another process has it.
    """
    # One lock for all who ask in this process.
    lock = FileLock(folder / LOCK, blocking=False, is_singleton=True)
    with lock:
        try:
            yield
        finally:
            if lock.lock_counter == 1:
                lock_file = folder / LOCK
                lock_file.unlink(missing_ok=True)


@contextmanager
def mark(folder: Path, key: str, address: Address) -> Iterator[Path]:
    """Keep in a job's folder that a run is open, while its process lives.

    Args:
        folder: The job's.
        key: The run's.
        address: Where it is written to.

    Yields:
        The file that says so, to be removed when the run has ended.

    Raises:
        TrackingError: The folder cannot be written, or another job runs in it.
    """
    file = folder / f"{key}{_RUN}"
    with ExitStack() as alive:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            alive.enter_context(living(folder))
            told = asdict(replace(address, uri=_known_as(address.uri)))
            write_sealed(file, told, private=True)
        except Timeout as error:
            raise TrackingError(f"A job runs in {folder}. Choose another folder.") from error
        except OSError as error:
            reason = error.strerror
            raise TrackingError(f"The folder {folder} cannot be used: {reason}.") from error
        yield file


def is_marked(folder: Path) -> bool:
    """Look for what a job shows while it lives, and leaves when it is killed."""
    return (folder / LOCK).is_file() or has_open_runs(folder)


def has_open_runs(folder: Path) -> bool:
    """Look for runs that are open, in whatever tracking server."""
    return any(folder.glob(f"*{_RUN}"))


def end_killed(folder: Path, uri: str, known_as: str | None = None) -> bool:
    """End the runs that a dead process has left open, as KILLED, with what was open in them.

    Args:
        folder: Of its job.
        uri: Where the runs are; those that were written elsewhere are left alone.
        known_as: The address that the job knew, where it is another.

    Returns:
        Whether there were any. The caller holds the lock of the job, which is therefore dead.

    Raises:
        TrackingError: The server is away, or refuses.
    """
    ended = False
    for file in sorted(folder.glob(f"*{_RUN}")):
        try:
            told = read_sealed(file)
        except DamagedFileError:
            continue
        if told["uri"] == _known_as(uri if known_as is None else known_as):
            key = file.name.removesuffix(_RUN)
            with patience(), explained(uri):
                try:
                    ended |= _end(MlflowClient(uri), key, Address(**told))
                except MlflowException as error:  # it may have been deleted for good
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
            file.unlink()
    return ended


def _end(client: MlflowClient, key: str, address: Address) -> bool:
    if address.run_id is not None:
        experiment_id = client.get_run(address.run_id).info.experiment_id
    else:
        experiment = client.get_experiment_by_name(address.experiment)  # type: ignore[arg-type]
        if experiment is None:
            return False
        experiment_id = experiment.experiment_id

    def found(tag: str, value: str) -> list[Run]:
        return client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", ViewType.ALL)

    ended = False
    to_end = found(KEY, key)
    while to_end:
        run = to_end.pop()
        is_open = run.info.status == "RUNNING"
        if is_open or run.data.tags.get(KEY) == key:  # what has ended has ended what was in it
            to_end += found(MLFLOW_PARENT_RUN_ID, run.info.run_id)
        if is_open:
            client.set_terminated(run.info.run_id, "KILLED")
            ended = True
    return ended


def _known_as(uri: str) -> str:
    """Return an address without its password, the same in every working folder."""
    scheme, _, path = uri.partition(":///")
    if scheme == "sqlite" and path and not path.startswith("/"):
        return f"sqlite:///{os.path.abspath(path)}"
    return shown(uri)
