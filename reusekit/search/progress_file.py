"""The progress of a search, in one file that is always whole."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reusekit.errors import ConfigError
from reusekit.sealed_json import DamagedFileError, read_sealed, write_sealed


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON beside the file, see that it is on the disk, and rename.

    Raises:
        ConfigError: It cannot be written; the disk may be full.
    """
    try:
        write_sealed(file, content)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}.") from error


def read(file: Path) -> dict[str, Any] | None:
    """Read what was written last; None where nothing was.

    Raises:
        ConfigError: The file is not what `write` leaves.
    """
    if not os.path.lexists(file):
        return None
    try:
        return read_sealed(file)
    except (DamagedFileError, PermissionError) as error:
        raise ConfigError(
            f"{file} is not the state of a search, as it was written: {error} Choose another "
            "folder, or discard it (fresh=True, or --fresh)."
        ) from error


@contextmanager
def os_errors_explained(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses in a search's folder into one sentence.

    Raises:
        ConfigError: It refused; what it refuses elsewhere is raised as it is.
    """
    try:
        yield
    except OSError as error:
        where = error.filename
        if not isinstance(where, str | os.PathLike) or not Path(where).is_relative_to(folder):
            raise
        raise ConfigError(
            f"The folder {folder} of a search cannot be used: {error.strerror} ({where}). Remove "
            "what is in the way, or choose another folder."
        ) from error


def refuse_other(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a search that is another one.

    Args:
        before: What was searched, as it was written down.
        now: What is to be searched.
        folder: Where the earlier search lies.

    Raises:
        ConfigError: They differ; the message shows in what.
    """
    now = json.loads(json.dumps(now))
    different = list(_differences(before, now))
    if different:
        raise ConfigError(
            f"{folder} holds a search of something else: {'; '.join(different)}. Choose another "
            "folder, or discard what was found there (fresh=True, or --fresh)."
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            inner = f"{name}.{key}" if name else key
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{name} was {json.dumps(before)} and is {json.dumps(now)}"
