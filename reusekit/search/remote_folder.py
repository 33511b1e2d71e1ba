"""The folder of a search in object storage, and the lease that lets one driver at a time use it."""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from reusekit.arguments import expanded
from reusekit.digests import digest
from reusekit.errors import ConfigError
from reusekit.features import default_path
from reusekit.objects import Objects, is_url
from reusekit.progress import say
from reusekit.sealed_json import write_durably
from reusekit.search.folder import STATE_FILE, alone, folder_errors_explained
from reusekit.secrets import shown

LEASE = 60.0
"""After so many seconds without a renewal a driver counts as dead, by the storage's clock."""

RENEWAL = 15.0
"""A driver renews its lease so often, in seconds."""

_LEASES, _OWNER = "lease", "lease.json"
_GIVEN_UP = b""
# What this machine alone needs, and what is no part of the folder.
_NOT_KEPT = ("keras_tuner/", "running.lock", _OWNER, f"{_LEASES}/", "asks/")


class RemoteFolder:
    """The folder of a search in object storage, and the folder of this machine that stands for it.

    A search works in the latter. What it keeps is written to the storage after each group of
    trials, the state last, and fetched from there at the start, so that any machine goes on with
    it. The object `lease/N` is written where there is none; whoever wrote the one with the largest
    number is the driver. Given up, it stays as an empty one, so that no number comes twice.

    Args:
        url: The address, such as `s3://BUCKET/PREFIX`.

    Attributes:
        url: The address.
        folder: The folder of this machine.

    Raises:
        ConfigError: It cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._objects = Objects(url, ConfigError)
        self.url = shown(self._objects.url)
        self.folder = default_path().parent / "searches" / digest(self._objects.url)[:16]
        self._objects.under(_LEASES)  # refused before any work where it is
        self._number = 0  # that of the own lease; 0 without one
        self._told = b""
        self._known: dict[str, tuple[int, int]] = {}  # files that are in the storage as they are
        self._behind = False  # something could not be written
        self._lost: ConfigError | None = None
        self._ended = threading.Event()

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Keep other drivers off, and yield whether the folder was fetched anew.

        The caller holds the lock of this machine's folder. Within the block it may be asked for
        again.

        Raises:
            ConfigError: Another driver has it.
        """
        if self._number:
            yield False
            return
        own = self._take()
        renewing = threading.Thread(target=self._renew, daemon=True)
        self._ended.clear()
        renewing.start()
        try:
            kept = [one for one in self._objects.under() if not one.startswith(_NOT_KEPT)]
            if own:  # what a process that died here left is as new as the storage, or newer
                self._known = dict.fromkeys(kept, (-1, -1))
            else:
                self._fetch(kept)
            # Not before: what is fetched by half is older than the storage.
            with folder_errors_explained(self.folder):
                write_durably(self.folder / _OWNER, self._told.decode())
            yield not own
            self.put()
        finally:
            self._ended.set()
            renewing.join()
            number, self._number = self._number, 0
            if not self._behind and self._lost is None:
                self._objects.put(_name(number), _GIVEN_UP)

    def put(self) -> None:
        """Write the files that have changed, the state last, and remove those that are gone.

        Raises:
            ConfigError: The storage does not take them, or another driver has the search now.
        """
        self._behind = True
        self._check()
        with folder_errors_explained(self.folder):
            files = self._files()
            changed = [name for name, stat in files.items() if self._known.get(name) != stat]
            for name in sorted(changed, key=lambda name: name == STATE_FILE):
                if name == STATE_FILE and len(changed) > 1:  # what came before may have taken long
                    self._check()
                self._objects.put(name, (self.folder / name).read_bytes())
                self._known[name] = files[name]
        gone = [name for name in self._known if name not in files]
        self._objects.delete(gone)
        for name in gone:
            del self._known[name]
        self._behind = False

    def _files(self) -> dict[str, tuple[int, int]]:
        """Return size and time of each file that is kept, by its name."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not name.startswith(_NOT_KEPT) and path.suffix != ".part":
                stat = path.stat()
                found[name] = (stat.st_size, stat.st_mtime_ns)
        return found

    def _fetch(self, listed: list[str]) -> None:
        """Make the folder what the storage holds."""
        # Who may write into the storage must not choose where this machine writes.
        paths = map(PurePosixPath, listed)
        inside = [str(one) for one in paths if not one.is_absolute() and ".." not in one.parts]
        with folder_errors_explained(self.folder):
            for name in self._files():
                (self.folder / name).unlink()
            for name in sorted(inside, key=lambda name: name == STATE_FILE):
                content = self._objects.get(name)
                if content is not None:
                    path = self.folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        path.write_bytes(content)
                    except OSError as error:  # a full disk names no file
                        raise ConfigError(
                            f"Expected a file that can be written. Received: {path}: "
                            f"{error.strerror}. Free some of its disk, or choose another folder."
                        ) from error
            self._known = self._files()

    # --- the lease ------------------------------------------------------------------------------

    def _take(self) -> bool:
        """Take the lease, and return whether a process that died in this folder had it."""
        leases = self._leases()
        last = max(leases, default=0)
        before = self._objects.get(_name(last)) if last else None
        mine = self.folder / _OWNER
        own = before is not None and mine.is_file() and mine.read_bytes() == before
        if before not in (None, _GIVEN_UP) and not own:
            self._wait_for_end(last, before)
        told = {
            "owner": uuid.uuid4().hex,
            "machine": platform.node(),
            "process": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._told = json.dumps(told).encode()
        if not self._objects.create(_name(last + 1), self._told):
            raise self._refused(self._objects.get(_name(last + 1)))
        if self._objects.create(_name(last + 1), b""):
            raise ConfigError(
                "Expected storage that creates an object once, which keeps two drivers apart. "
                f"Received: {self.url}, which writes over one that is there. Choose S3, or a "
                "folder that all machines share."
            )
        self._objects.delete(map(_name, leases))
        self._number, self._lost, self._behind = last + 1, None, False
        return own

    def _leases(self) -> dict[int, datetime]:
        """Return when each lease was renewed, by its number."""
        found = self._objects.under(_LEASES)
        return {int(n.split("/")[1]): one.modified for n, one in found.items() if n[-6:].isdigit()}

    def _wait_for_end(self, number: int, told: bytes) -> None:
        """Wait until a lease was not renewed for long enough, or is given up.

        Raises:
            ConfigError: It was renewed.
        """
        renewed = self._leases().get(number)
        asked = f"asks/{uuid.uuid4().hex}"  # the storage's clock counts
        self._objects.put(asked, b"")
        now = self._objects.under("asks")[asked].modified
        self._objects.delete([asked])
        left = 0.0 if renewed is None else LEASE - (now - renewed).total_seconds()
        if left > 0:
            say(f"{self.url} is held by {_described(told)}; looking whether it lives ...")
        ends = time.monotonic() + left
        while renewed is not None and time.monotonic() < ends:
            time.sleep(min(1.0, RENEWAL / 4))
            leases = self._leases()
            if max(leases, default=number) > number:
                raise self._refused(told)
            if leases.get(number, renewed) != renewed:
                if self._objects.get(_name(number)) == _GIVEN_UP:
                    return
                raise self._refused(told)
            renewed = leases.get(number)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            with suppress(ConfigError):  # the storage is away: `put` will say so if it stays
                self._check()
                self._objects.put(_name(self._number), self._told)
            if self._lost is not None:
                return

    def _check(self) -> None:
        """Raise ConfigError where another driver has taken the lease."""
        if self._lost is None:
            last = max(self._leases(), default=0)
            found = self._objects.get(_name(last)) if last else None
            if found != self._told:
                self._lost = ConfigError(
                    f"Expected a search in {self.url} to be this process's. Received: one taken "
                    f"over by {_described(found)}, since this process did not renew its lease for "
                    f"{LEASE:.0f} s. Leave what it kept to that one."
                )
        if self._lost is not None:
            raise self._lost

    def _refused(self, told: bytes | None) -> ConfigError:
        return ConfigError(
            f"Expected a folder in which no search is running. Received: {self.url}, held by "
            f"{_described(told)}. Wait for the one there, or choose another folder."
        )


def _name(number: int) -> str:
    return f"{_LEASES}/{number:06d}"


def _described(told: bytes | None) -> str:
    """Return who wrote a lease, in words."""
    try:
        found: dict[str, Any] = json.loads(told or b"")
        return f"process {found['process']} on {found['machine']}, since {found['since']}"
    except (ValueError, TypeError, KeyError):
        return "another process"


class KeptSearch:
    """The folder of a search: one of this machine, or one that stands for an address.

    Args:
        folder: The folder or the address.

    Attributes:
        folder: The folder of this machine.
        name: The folder, or the address at which the same search goes on.

    Raises:
        ConfigError: It cannot be used.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self._remote = RemoteFolder(str(folder)) if is_url(folder) else None
        self.folder = self._remote.folder if self._remote else expanded(folder, ConfigError)
        self.name = self._remote.url if self._remote else str(self.folder)

    def put(self) -> None:
        """Write what has changed to the address, where there is one."""
        if self._remote is not None:
            self._remote.put()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep other processes and machines off; yields whether the folder was fetched anew.

        Raises:
            ConfigError: Another search in it is running.
        """
        with alone(self.folder):
            if self._remote is None:
                yield False
                return
            try:
                with self._remote.held() as fetched:
                    yield fetched
            except ConfigError as error:
                if isinstance(error.__cause__, OSError):  # of the disk of this machine
                    raise
                raise ConfigError(str(error).replace(str(self.folder), self.name)) from error
