"""Object storage, or any other file system of fsspec: objects under one address.

What a storage that does not answer was asked is asked again, with growing pauses. What it refuses
becomes one sentence.
"""

import errno
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from glob import escape
from typing import Any, TypeVar

from reusekit.errors import ReusekitError
from reusekit.progress import say
from reusekit.secrets import hide, shown

T = TypeVar("T")

PATIENCE = 60.0
"""For so many seconds a storage that does not answer is asked again."""

_PAUSE, _LONGEST_PAUSE = 0.25, 8.0

# By name, since botocore may not be installed; those of a connection, not those of a request.
_AWAY = {"ConnectionError", "HTTPClientError", "ClientConnectionError", "FSTimeoutError"}
_BUSY = (errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO), errno.ETIMEDOUT)


@dataclass(frozen=True)
class Listed:
    """The size of an object in bytes, and when it was written, by the storage's clock."""

    size: int
    modified: datetime


def is_url(path: Any) -> bool:
    """Tell the address of an object storage from a path.

    Example:
        >>> is_url("s3://bucket/features"), is_url("~/features")
        (True, False)
    """
    return isinstance(path, str) and "://" in path


class Objects:
    """The objects under an address such as `s3://BUCKET/PREFIX`.

    Credentials, region and endpoint are found as the storage's own tools find them; of S3 these are
    `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` and so on, or the files in `~/.aws`.

    Args:
        url: The address.
        error: The class of what is raised.

    Raises:
        ReusekitError: Of that class: nothing can be asked under such an address.

    Example:
        >>> objects = Objects("memory://example", ReusekitError)
        >>> objects.put("a/b", b"one")
        >>> objects.get("a/b"), objects.get("a/c"), list(objects.under("a"))
        (b'one', None, ['a/b'])
        >>> objects.create("a/b", b"two")
        False
    """

    def __init__(self, url: str, error: type[ReusekitError]) -> None:
        self.url, self._error = url if url.endswith("://") else url.rstrip("/"), error
        # Two attempts of botocore's own; who asks again after that is this class.
        options: dict[str, Any] = {"use_listings_cache": False}
        if url.startswith(("s3:", "s3a:")):
            options["config_kwargs"] = {"retries": {"total_max_attempts": 2}}
        if url.startswith(("file:", "local:")):
            options["auto_mkdir"] = True
        try:
            from fsspec.core import url_to_fs

            self._files, self._root = url_to_fs(self.url, **options)
        except ImportError as missing:
            raise error(
                f"{shown(url)} needs a package that is not installed: {missing}. For S3: "
                "pip install 'reusekit[s3]'."
            ) from missing
        except Exception as wrong:
            raise error(
                f"Expected a folder, or an address such as s3://BUCKET/PREFIX. Received: "
                f"{shown(url)!r}: {hide(str(wrong), url)}."
            ) from wrong
        self._root = self._root.rstrip("/")
        if not self._root or any(sign in self._root for sign in "*?["):  # which fsspec expands
            raise error(
                "Expected an address with a bucket and without the signs * ? [, such as "
                f"s3://BUCKET/PREFIX. Received: {shown(url)!r}."
            )

    def get(self, name: str) -> bytes | None:
        """Return the content of an object; None where there is none."""
        return self.get_all([name])[0]

    def get_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the contents of several objects, asked for at a time."""
        paths = [self._path(name) for name in names]
        if not paths:
            return []

        def ask() -> dict[str, Any]:
            found = self._files.cat([*map(escape, paths)], recursive=False, on_error="return")
            for one in found.values():
                if isinstance(one, Exception) and not isinstance(one, FileNotFoundError):
                    raise one
            return found

        found = {path.lstrip("/"): one for path, one in self._asked(ask).items()}
        told = [found.get(path.lstrip("/")) for path in paths]
        return [one if isinstance(one, bytes) else None for one in told]

    def put(self, name: str, content: bytes) -> None:
        """Write an object, which is there as a whole or not at all."""
        self._asked(partial(self._files.pipe_file, self._path(name), content))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object that is not there, and return whether it was this call that wrote it.

        Of several at the same moment, each with a content of its own, one alone is told so. S3
        decides that by `If-None-Match`.
        """
        try:
            write = partial(self._files.pipe_file, self._path(name), content, mode="create")
            self._asked(write, FileExistsError)
        except FileExistsError:
            # An attempt whose answer was lost may have written it.
            return self.get(name) == content
        return True

    def exists(self, name: str) -> bool:
        """Return whether there is an object of a name."""
        with suppress(FileNotFoundError):
            self._asked(partial(self._files.info, self._path(name)), FileNotFoundError)
            return True
        return False

    def under(self, folder: str = "") -> dict[str, Listed]:
        """Return all objects below a name, by their names."""
        path = self._path(folder) if folder else self._root

        def ask() -> dict[str, Any]:
            try:
                return self._files.find(path, detail=True)
            except FileNotFoundError as error:
                if "bucket does not exist" in str(error):
                    raise
                return {}

        start = len(self._root.strip("/")) + 1
        return {
            path.strip("/")[start:]: Listed(one.get("size") or 0, _written(one))
            for path, one in sorted(self._asked(ask).items())
        }

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        paths = [self._path(name) for name in names]
        plain = [path for path in paths if escape(path) == path]  # `rm` expands all others
        try:
            if plain:
                self._asked(partial(self._files.rm, plain), FileNotFoundError)
            left = [path for path in paths if escape(path) != path]
        except FileNotFoundError:
            left = paths
        for path in left:
            with suppress(FileNotFoundError):
                self._asked(partial(self._files.rm_file, path), FileNotFoundError)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _asked(self, ask: Callable[[], T], *expected: type[Exception]) -> T:
        """Ask until there is an answer, or for `PATIENCE` seconds.

        Args:
            ask: What is asked.
            *expected: Errors that are an answer, and are raised as they are.

        Raises:
            ReusekitError: It refused, or gave no answer.
        """
        began, pause = time.monotonic(), _PAUSE
        while True:
            try:
                return ask()
            except expected:
                raise
            except Exception as error:
                reason = hide(str(error) or type(error).__name__, self.url).rstrip(".")
                if not _is_away(error):
                    raise self._error(
                        f"{shown(self.url)} cannot be used: {reason}. See that the bucket is there "
                        "and that your credentials may list, read and write in it."
                    ) from error
                waited = time.monotonic() - began
                if waited >= PATIENCE:
                    raise self._error(
                        f"{shown(self.url)} did not answer for {waited:.0f} s: {reason}. What was "
                        "done is kept: give the same command again once it answers."
                    ) from error
                if pause == _PAUSE:
                    say(f"warning: {shown(self.url)} does not answer ({reason}); asking again ...")
                time.sleep(min(pause, PATIENCE - waited))
                pause = min(2 * pause, _LONGEST_PAUSE)


def _is_away(error: Exception) -> bool:
    """Tell a storage that does not answer, or is busy, from one that refuses."""
    if isinstance(error, PermissionError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError):
        return error.errno in _BUSY
    return any(kind.__name__ in _AWAY for kind in type(error).__mro__)


def _written(one: dict[str, Any]) -> datetime:
    """Return when an object was written, as its file system tells it."""
    told = one.get("LastModified") or one.get("mtime") or one.get("created") or 0.0
    return told if isinstance(told, datetime) else datetime.fromtimestamp(told, UTC)
