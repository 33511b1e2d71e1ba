"""How far a search has come, in one file that is always whole."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reusekit.errors import ConfigError


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON beside the file, see that it is on the disk, and rename."""
    # Always under one name: a search has one writer, and what a kill leaves is written over.
    beside = file.with_suffix(".part")
    with beside.open("w") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)


def read(file: Path) -> dict[str, Any] | None:
    """What was written last; None where nothing was.

    Raises:
        ConfigError: The file is not what `write` leaves.
    """
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(
            f"{file} is not the state of a search: {error}. Choose another folder, or discard it "
            "(fresh=True, or --fresh)."
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
