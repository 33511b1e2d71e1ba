"""Runs that a dead process has left open: found by a file in its job's folder, and ended.

JOB/job.lock         held as long as the job's process lives
JOB/KEY.run.json     the run with that key is open; it goes when the run has ended

Without the folder they are found by a tag that names the process, if that ran here.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from reusekit.digests import digest
from reusekit.errors import TrackingError
from reusekit.progress import say
from reusekit.sealed_json import DamagedFileError, read_sealed, write_sealed
from reusekit.secrets import shown
from reusekit.tracking.names import KEY, PROCESS
from reusekit.tracking.network import explained, patience
from reusekit.tracking.operations import Destination, Target

LOCK = "job.lock"
_RUN = ".run.json"
_JITTER = 5.0  # seconds by which Linux may tell the time of the boot differently


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
def mark(folder: Path, key: str, destination: Destination) -> Iterator[Path]:
    """Keep in a job's folder that a run is open, while its process lives.

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
            told = asdict(replace(destination, uri=_known_as(destination.uri)))
            write_sealed(file, told, private=True)
        except Timeout as error:
            raise TrackingError(
                f"Expected a folder in which no job runs. Received: {folder}. Choose another "
                "folder."
            ) from error
        except OSError as error:
            reason = error.strerror
            raise TrackingError(
                f"Expected a folder that can be used. Received: {folder}: {reason}. Choose another "
                "folder."
            ) from error
        yield file


def is_marked(folder: Path) -> bool:
    """Look for the marks that a job shows while it lives, and leaves when it is killed."""
    return (folder / LOCK).is_file() or has_open_runs(folder)


def has_open_runs(folder: Path) -> bool:
    """Look for runs that are open, of any tracking server."""
    return any(folder.glob(f"*{_RUN}"))


def end_killed(folder: Path, uri: str, known_as: str | None = None) -> bool:
    """End the runs that a dead job has left open, as KILLED, with what was open in them.

    The caller holds the lock of the job, which is therefore dead. Runs that were written elsewhere
    are left alone.

    Args:
        folder: Of the job.
        uri: Where the runs are.
        known_as: The URI that the job knew, where it is another.

    Returns:
        Whether there were any.

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
                    ended |= _end(MlflowClient(uri), key, Destination(**told))
                except MlflowException as error:  # it may have been deleted for good
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
            file.unlink()
    return ended


def _end(client: MlflowClient, key: str, destination: Destination) -> bool:
    if destination.run_id is not None:
        experiment_id = client.get_run(destination.run_id).info.experiment_id
    else:
        experiment = client.get_experiment_by_name(destination.experiment or "")
        if experiment is None:
            return False
        experiment_id = experiment.experiment_id

    return _end_with_children(client, _found(client, experiment_id, KEY, key))


def _found(client: MlflowClient, experiment_id: str, tag: str, value: str) -> list[Run]:
    return client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", ViewType.ALL)


def _end_with_children(client: MlflowClient, runs: list[Run]) -> bool:
    ended, to_end, first = False, list(runs), {run.info.run_id for run in runs}
    while to_end:
        info = to_end.pop().info
        is_open = info.status == "RUNNING"
        if is_open or info.run_id in first:  # what has ended has ended what was in it
            to_end += _found(client, info.experiment_id, MLFLOW_PARENT_RUN_ID, info.run_id)
        if is_open:
            client.set_terminated(info.run_id, "KILLED")
            ended = True
    return ended


def end_orphans(target: Target) -> None:
    """End as KILLED what dead processes of this user and machine left open in an experiment.

    Where the server is away, or refuses, it is left to the next job.
    """
    ours = f"attributes.status = 'RUNNING' AND tags.`{PROCESS}` LIKE '{_machine()} %'"
    with suppress(TrackingError), patience(), explained(target.destination.uri):
        for run in target.client.search_runs([target.experiment_id], ours):
            if not _lives(run.data.tags[PROCESS]):
                _end_with_children(target.client, [run])
                say(f"The job of the run {run.info.run_name} was killed: it is ended as KILLED.")


def process_tags(process: psutil.Process | None = None) -> dict[str, str]:
    """Return the tag of a run that a process writes, this one by default; none where none holds.

    It says by whom its process can be seen, its number, and when it started.
    """
    if _machine() is None:
        return {}
    process = process or psutil.Process()
    return {PROCESS: f"{_machine()} {process.pid} {_started(process):.2f}"}


@cache
def _machine() -> str | None:
    """Return a digest of who sees the same processes; None where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return None
    return digest([boot, namespace, socket.gethostname(), os.getuid()])[:16]


def _started(process: psutil.Process) -> float:
    """Return when a process started, in seconds since the boot, since clocks are set."""
    return process.create_time() - psutil.boot_time()


def _lives(told: str) -> bool:
    """Return False only where the process of a tag is certainly gone."""
    try:
        _, pid, started = told.split(" ")
        process = psutil.Process(int(pid))
        same = abs(_started(process) - float(started)) < _JITTER
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (ValueError, psutil.Error):
        return True


def _known_as(uri: str) -> str:
    """Return a URI without its password, the same in every working folder."""
    scheme, _, path = uri.partition(":///")
    if scheme == "sqlite" and path and not path.startswith("/"):
        return f"sqlite:///{os.path.abspath(path)}"
    return shown(uri)
