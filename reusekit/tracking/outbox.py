"""Unsent operations in a folder, in order, until a server has acknowledged them.

outbox/address.json       where they are meant for, and how many there are; no password is kept
outbox/00000001.json      one operation, written as a whole or not at all
outbox/00000002.json
outbox/00000002.carried/  a copy of the file or folder that it carries
outbox/refused/           what was not sent, and why
outbox/.lock              held by the process that fills or sends them
outbox/.reserve           room for the ends of runs, should the disk be full

Each record has its number and a checksum, and the SHA-256 of what it carries. Nothing but these
names is read: a record that points elsewhere is not sent.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock, Timeout

from reusekit.digests import file_digest
from reusekit.errors import TrackingError
from reusekit.progress import say
from reusekit.sealed_json import DamagedFileError, read_sealed, write_durably, write_sealed
from reusekit.secrets import shown
from reusekit.tracking.network import ServerAwayError, check_health
from reusekit.tracking.operations import (
    Carrying,
    Destination,
    EndRun,
    Operation,
    SendModels,
    Target,
    read_operation,
)
from reusekit.tracking.unfinished import end_killed, end_orphans, living

_RESERVE = 32 * 1024  # bytes: some blocks of a file system for each of a few nested runs


class InUseError(TrackingError):
    """Another process fills or sends an outbox."""


class Outbox:
    """Operations that wait in a folder.

    Args:
        folder: Where; it is made when the first one is put in, and removed when none is left.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._lock = FileLock(self.folder / ".lock")

    def records(self) -> list[Path]:
        """List the files of the operations that wait, in order."""
        return sorted(self.folder.glob(f"{'[0-9]' * 8}.json"))

    def waits(self) -> bool:
        """Look whether something waits here, or did and is gone."""
        told = self._told() or {}
        return bool(self.records()) or told.get("sent", 0) < told.get("kept", 0)

    def hold(self) -> None:
        """Keep other processes away, until `release`.

        Raises:
            InUseError: Another process fills or sends it.
            TrackingError: It cannot be written.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InUseError(
                f"Expected a folder that is not in use. Received: {self.folder}, whose job still "
                "runs, or which is being sent. Wait until that has ended."
            ) from None
        except OSError as error:
            raise TrackingError(
                f"Expected a folder that can be used. Received: {self.folder}: {error.strerror}. "
                "Choose another one."
            ) from error

    def release(self) -> None:
        """Let other processes have it; where nothing is left, the folder goes.

        Files that others have put there stay, and the folder with them.
        """
        if self._lock.is_locked:
            if not self.waits() and not self._refused.exists():
                self._remove_own()
            self._lock.release()
            with suppress(OSError):
                self.folder.rmdir()

    def _remove_own(self) -> None:
        for left in (*self.folder.glob("*.carried"), *self.folder.glob("*.part")):
            if left.name[:8].isdigit() or left.name.startswith("address.json."):
                _remove(left)
        for name in ("address.json", ".reserve", ".lock"):
            with suppress(OSError):  # a folder in its place
                (self.folder / name).unlink(missing_ok=True)

    def destination(self, uri: str | None = None) -> Destination:
        """Return the target of the operations, with `***` for a password.

        Raises:
            TrackingError: No `uri` is given, and the file that says so is missing or damaged.
        """
        told = self._told()
        if told is None:
            if uri is None:
                raise TrackingError(
                    f"Expected {self.folder / 'address.json'}, which says where its records are "
                    "meant for. Received: one that is missing or damaged. Give the URI of the "
                    "tracking server with --uri."
                )
            told = next(filter(None, map(_sealed, self.records())), {})
        experiment, run_id = told.get("experiment"), told.get("run_id")
        if experiment is None and run_id is None:
            raise TrackingError(
                f"Expected {self.folder} to say which experiment it is meant for. Received: "
                "neither an experiment nor a run. Run the job again in another folder."
            )
        return Destination(told["uri"] if uri is None else uri, experiment, run_id)

    def put(self, operation: Operation, destination: Destination) -> None:
        """Append an operation, with a copy of what it carries.

        For the end of a run some room is kept, so that runs end on a full disk, too.

        Args:
            operation: The operation that could not be sent.
            destination: Where it is meant for; the same for all.

        Raises:
            TrackingError: It cannot be kept; the disk may be full.
        """
        try:
            self._put(operation, destination)
        except OSError as error:
            if isinstance(operation, EndRun) and self._give_room():
                self.put(operation, destination)
                return
            raise TrackingError(
                f"Expected {self.folder} to keep what the tracking server {shown(destination.uri)} "
                f"does not take. Received: {error.strerror}. Free some of its disk."
            ) from error

    def _put(self, operation: Operation, destination: Destination) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.hold()
        kept = asdict(replace(destination, uri=shown(destination.uri)))
        used = [int(file.stem) for file in (*self.records(), *self._refused.glob("[0-9]*.json"))]
        told = self._told()
        if told is None:
            told = {**kept, "kept": 0, "sent": min(used, default=1) - 1}
            self._tell(told)
        if not isinstance(operation, EndRun):
            self._keep_room()
        number = 1 + max((told["kept"], *used))
        record = self.folder / f"{number:08d}.json"
        files: dict[str, str] = {}
        if isinstance(operation, Carrying):
            copied = _carried(record) / Path(operation.path).name
            _remove(copied.parent)  # of a process that was killed here
            try:
                _copy_durably(Path(operation.path), copied, isinstance(operation, SendModels))
                files = _digests(copied.parent)
            except OSError:
                _remove(copied.parent)
                raise
            operation = replace(operation, path=str(copied.relative_to(self.folder)))
        content = {"number": number, "operation": asdict(operation), "files": files, **kept}
        write_sealed(record, content, private=True)
        with suppress(OSError):  # the record is there: it counts without being counted
            self._tell({**told, "kept": number})

    def _keep_room(self) -> None:
        """Make the reserve, unless it is there or the disk is full already."""
        try:
            with (self.folder / ".reserve").open("xb") as file:
                file.write(os.urandom(_RESERVE // 2).hex().encode())  # zeros may take no room
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            pass
        except OSError:
            self._give_room()

    def _give_room(self) -> bool:
        """Remove the reserve; False where there is none."""
        try:
            (self.folder / ".reserve").unlink()
        except OSError:
            return False
        return True

    def send(self, target: Target) -> Iterator[bool]:
        """Send the operations in order; those that are acknowledged are removed.

        Args:
            target: Where to.

        Yields:
            After each operation, whether it was taken. One that the server refuses, or that is
            damaged, is set aside, with a warning, so that it keeps up no other; of one that is
            gone a note is set aside.

        Raises:
            ServerAwayError: The server is away; what is left waits on.
            TrackingError: The folder for what is refused is a link.
        """
        if self._refused.is_symlink():
            raise TrackingError(
                f"Expected a folder for what is refused. Received: {self._refused}, which is a "
                "link. Remove it, and sync again."
            )
        self._give_room()  # which sending needs as well
        before = self._told() or {}
        present = {int(record.stem): record for record in self.records()}
        sent = before.get("sent")
        if sent is None:  # nobody knows how many there were; between two there is none missing
            sound = [number for number, record in present.items() if _sealed(record)]
            sent = min(sound, default=1) - 1
            kept = max(sound, default=0)
        else:
            kept = before["kept"]
        for number in sorted({*present, *range(sent + 1, kept + 1)}):
            record = self.folder / f"{number:08d}.json"
            if number in present:
                done = number <= sent  # it was acknowledged before a kill
                failed = None if done else self._send(record, target)
            else:
                done = self._note(number).exists()
                failed = None if done else f"Record {number} of {kept} is gone, and what it held."
            if failed is not None:
                self._set_aside(record, failed)
            if "kept" in before and number <= kept:
                self._tell({**before, "sent": max(sent, number)})
            if failed is None:
                _remove(record)
                _remove(_carried(record))
            if not done:
                yield failed is None

    def _send(self, record: Path, target: Target) -> str | None:
        """Send a record; where it is refused, return the reason."""
        try:
            self._read(record).send(target, again=True)
        except ServerAwayError:
            raise
        except TrackingError as refusal:
            return str(refusal)
        return None

    @property
    def _refused(self) -> Path:
        return self.folder / "refused"

    def _told(self) -> dict[str, Any] | None:
        """Read `address.json`; None where it is missing or damaged."""
        with suppress(DamagedFileError, PermissionError):
            return read_sealed(self.folder / "address.json")
        return None

    def _tell(self, told: dict[str, Any]) -> None:
        write_sealed(self.folder / "address.json", told, private=True)

    def _read(self, record: Path) -> Operation:
        """Read an operation.

        Raises:
            TrackingError: It is damaged, or carries what is not in its own folder.
        """
        told = _sealed(record)
        if told is None:
            raise TrackingError(
                f"Expected a record as it was written. Received: {record}, which is damaged, or of "
                "a version of reusekit whose records had no checksums. Send the latter with that "
                "version."
            )
        operation = read_operation(told["operation"])
        if isinstance(operation, Carrying):
            carried, path = _carried(record), Path(operation.path)
            if path.parts != (carried.name, path.name) or path.name == "..":
                raise TrackingError(
                    f"Expected a record that carries what lies in {carried.name}. Received: "
                    f"{record}, which carries {operation.path}."
                )
            found = _digests(carried)
            if not (self.folder / path).exists():
                raise TrackingError(
                    f"Expected {self.folder / path}, which the record carries. Received: nothing "
                    "there."
                )
            if found != told.get("files", found):
                raise TrackingError(
                    f"Expected {carried} to hold the files that were put there. Received: others."
                )
            operation = replace(operation, path=str(self.folder / path))
        return operation

    def _note(self, number: int) -> Path:
        return self._refused / f"{number:08d}.txt"

    def _set_aside(self, record: Path, reason: str) -> None:
        """Write the reason why a record was not sent, and keep its remains beside that."""
        self._refused.mkdir(mode=0o700, exist_ok=True)
        write_durably(self._note(int(record.stem)), f"{reason}\n", private=True)
        say(f"warning: one record could not be sent: {reason} It is kept in {self._refused}.")
        for path in (_carried(record), record):
            if os.path.lexists(path):
                path.rename(self._refused / path.name)


def find_outboxes(folder: Path) -> list[Outbox]:
    """Return the outboxes in a folder and below it in which something waits, oldest job first."""
    found = {folder, *folder.rglob("outbox")}
    folders = sorted(one for one in found if one.name == "outbox" and not one.is_symlink())
    return [outbox for outbox in map(Outbox, folders) if outbox.waits()]


def send_outbox(outbox: Outbox, uri: str | None = None) -> Iterator[bool]:
    """Send what waits in an outbox, in order. Killed at any moment, it can be called again.

    Args:
        outbox: The outbox to send.
        uri: Where to; None for where it is meant for.

    Yields:
        After each record, whether the server has taken it. One that it refuses is set aside.

    Raises:
        InUseError: Its job still runs, or another process sends it.
        ServerAwayError: The server does not answer; what is left waits on.
        TrackingError: Where to send it is not known.
    """
    outbox.hold()
    before, job = mlflow.get_tracking_uri(), outbox.folder.parent
    try:
        destination, known_as = _destination(outbox, uri)
        check_health(destination.uri)
        # Where a version is registered, MLflow asks the server in use for its model.
        mlflow.set_tracking_uri(destination.uri)
        target = Target(destination)
        yield from outbox.send(target)
        if not outbox.waits():
            with suppress(Timeout), living(job):  # else it lives, and sends by itself
                if end_killed(job, destination.uri, known_as):
                    say(f"{job}: its job was killed. What it has left open is ended as KILLED.")
            end_orphans(target)
    finally:
        mlflow.set_tracking_uri(before)
        outbox.release()


def _destination(outbox: Outbox, uri: str | None) -> tuple[Destination, str]:
    """Return the target of an outbox, and the URI that its job knew."""
    if uri is not None:
        destination = outbox.destination(uri)
        with suppress(TrackingError):
            return destination, outbox.destination().uri
        return destination, uri
    kept = outbox.destination()
    current = mlflow.get_tracking_uri()
    if shown(current) == kept.uri:
        return replace(kept, uri=current), kept.uri  # with the password, which is not kept
    if "***" in kept.uri:
        raise TrackingError(
            f"Expected the password of {kept.uri}, for which {outbox.folder} is meant. Received: "
            "none, since it is not kept. Give the whole URI with --uri, or in the environment's "
            "MLFLOW_TRACKING_URI."
        )
    return kept, kept.uri


def _sealed(record: Path) -> dict[str, Any] | None:
    """Return the content of a record; None where it is not what was written under its name."""
    try:
        told = read_sealed(record)
    except (DamagedFileError, PermissionError):
        return None
    return None if record.is_symlink() or told.get("number") != int(record.stem) else told


def _carried(record: Path) -> Path:
    return record.with_suffix(".carried")


def _copy_durably(source: Path, copied: Path, linked: bool) -> None:
    """Copy a file or a folder, and have it written to the disk."""
    copied.parent.mkdir()
    if source.is_dir():
        shutil.copytree(source, copied, copy_function=_link if linked else shutil.copy2)
    else:
        shutil.copy2(source, copied)
    for file in filter(Path.is_file, (copied, *copied.rglob("*"))):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _link(source: str, copied: str) -> None:
    """Link a file that nobody alters any more, which needs no room; else copy it."""
    try:
        os.link(source, copied, follow_symlinks=False)
    except OSError:  # another file system, or one without such links
        shutil.copy2(source, copied)


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder, by its path in it.

    Raises:
        TrackingError: It holds, or is, something that is neither a file nor a folder.
    """
    found: dict[str, str] = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        if not os.path.lexists(path):
            raise TrackingError(
                f"Expected a file or a folder. Received: {path}, which is not there. Check its "
                "path."
            )
        kind = path.lstat().st_mode
        if stat.S_ISREG(kind):
            found[path.relative_to(folder).as_posix()] = file_digest(path)
        elif not stat.S_ISDIR(kind):
            raise TrackingError(
                f"Expected files and folders, since links are not followed. Received: {path}, "
                "which is a link or no file. Copy what it points to in its place."
            )
    return found


def _remove(path: Path) -> None:
    """Remove a file or folder of the outbox; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
