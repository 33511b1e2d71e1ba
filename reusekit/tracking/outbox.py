"""What could not be sent: operations in a folder, in order, until a server has acknowledged them.

outbox/address.json       where they are meant for; no password is kept
outbox/00000001.json      one operation, written as a whole or not at all
outbox/00000002.json
outbox/00000002.carried/  a copy of the file or folder that it carries
outbox/refused/           what the server refused when it was sent, and why
outbox/.lock              held by the process that fills or sends them
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout

from reusekit.errors import TrackingError
from reusekit.progress import console
from reusekit.sealed_json import write_durably
from reusekit.tracking.network import ServerAwayError, shown
from reusekit.tracking.operations import Carrying, Operation, from_json, to_json
from reusekit.tracking.sending import send
from reusekit.tracking.target import Address, Target


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
        """The files of the operations that wait, in order."""
        return sorted(self.folder.glob("[0-9]*.json"))

    def hold(self) -> None:
        """Keep other processes away, until `release`.

        Raises:
            InUseError: Another process fills or sends it.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InUseError(
                f"{self.folder} is in use: its job still runs, or it is being sent."
            ) from None

    def release(self) -> None:
        """Let other processes have it; where nothing is left, the folder goes."""
        if self._lock.is_locked:
            if not self.records() and not self._refused.exists():
                shutil.rmtree(self.folder)
            self._lock.release()

    def address(self) -> Address:
        """Where the operations are meant for, with `***` for a password.

        Raises:
            TrackingError: That cannot be read.
        """
        file = self.folder / "address.json"
        try:
            return Address(**json.loads(file.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise TrackingError(f"{file} cannot be read: {error}") from error

    def put(self, operation: Operation, address: Address) -> None:
        """Append an operation, with a copy of what it carries.

        Args:
            operation: What could not be sent.
            address: Where it is meant for; the same for all.

        Raises:
            TrackingError: It cannot be kept; the disk may be full.
        """
        try:
            self._put(operation, address)
        except OSError as error:
            raise TrackingError(
                f"What the tracking server {shown(address.uri)} does not take cannot be kept in "
                f"{self.folder} either: {error.strerror}."
            ) from error

    def _put(self, operation: Operation, address: Address) -> None:
        self.hold()
        used = [*self.records(), *self._refused.glob("[0-9]*.json")]
        if not (self.folder / "address.json").exists():
            kept = asdict(replace(address, uri=shown(address.uri)))
            write_durably(self.folder / "address.json", json.dumps(kept, indent=1))
        number = 1 + max((int(record.stem) for record in used), default=0)
        record = self.folder / f"{number:08d}.json"
        if isinstance(operation, Carrying):
            copied = _carried(record) / Path(operation.path).name
            shutil.rmtree(copied.parent, ignore_errors=True)  # of a process that was killed here
            _copy_durably(Path(operation.path), copied)
            operation = replace(operation, path=str(copied.relative_to(self.folder)))
        write_durably(record, to_json(operation))

    def send(self, target: Target) -> Iterator[bool]:
        """Send what waits, in order; what has been acknowledged is removed.

        Args:
            target: Where to.

        Yields:
            After each operation, whether it was taken. One that the server refuses is set aside,
            with a warning, so that it keeps up no other.

        Raises:
            ServerAwayError: The server is away; what is left waits on.
        """
        for record in self.records():
            try:
                send(self._read(record), target, again=True)
            except ServerAwayError:
                raise
            except TrackingError as refusal:
                self._set_aside(record, str(refusal))
                yield False
            else:
                record.unlink()
                shutil.rmtree(_carried(record), ignore_errors=True)
                yield True

    @property
    def _refused(self) -> Path:
        return self.folder / "refused"

    def _read(self, record: Path) -> Operation:
        operation = from_json(record.read_text())
        if isinstance(operation, Carrying):
            operation = replace(operation, path=str(self.folder / operation.path))
            if not Path(operation.path).exists():
                raise TrackingError(f"{operation.path}, which it carries, is not there.")
        return operation

    def _set_aside(self, record: Path, reason: str) -> None:
        self._refused.mkdir(exist_ok=True)
        write_durably(self._refused / f"{record.stem}.txt", f"{reason}\n")
        carried = _carried(record)
        if carried.exists():
            carried.rename(self._refused / carried.name)
        record.rename(self._refused / record.name)
        console.print(
            f"warning: one record could not be sent: {reason} It is kept in {self._refused}.",
            soft_wrap=True,
            markup=False,
        )


def _carried(record: Path) -> Path:
    return record.with_suffix(".carried")


def _copy_durably(source: Path, copied: Path) -> None:
    """Copy a file or a folder, and have it written to the disk."""
    copied.parent.mkdir()
    if source.is_dir():
        shutil.copytree(source, copied)
    else:
        shutil.copy2(source, copied)
    for file in (copied, *copied.rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
