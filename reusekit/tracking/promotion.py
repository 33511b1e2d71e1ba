"""Promotion and rollback: an alias moved from one version to another, with the reason beside it.

A registry of MLflow cannot look at an alias and move it in one request, so it is looked at right
before the move and right after. Of two processes that move it within the same milliseconds, both
may find what they expected. The alias then is where the later one put it, both candidates say that
they were promoted, and a rollback goes to the version that both were compared with.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import mlflow
from mlflow.entities.model_registry import ModelVersion

from reusekit.errors import TrackingError
from reusekit.tracking.registry import (
    aliased_version,
    asking,
    registered_model,
    set_alias,
    version_numbers,
)

PROMOTED = "reusekit.promoted"
REFUSED = "reusekit.refused"
ROLLED_BACK = "reusekit.rolled_back"
PREVIOUS = "reusekit.previous"


def promote(name: str, alias: str, candidate: int, champion: int | None, why: str) -> None:
    """Move an alias to a version that was found better than the one that has it.

    The version then says why, in the tag `reusekit.promoted`, and which version had the alias
    before, in `reusekit.previous.ALIAS`. `roll_back` reads the latter.

    Args:
        name: The name in the registry.
        alias: The alias to move.
        candidate: Where to.
        champion: The version that the candidate was compared with; None where none had the alias.
        why: The reason.

    Raises:
        TrackingError: The candidate was deleted, or another version has the alias by now; nothing
            was moved. Or another process moved it just after: it is where that one put it.
    """
    _expect(name, alias, champion)
    # Before the move: killed between the two, a champion would not know where to go back to.
    previous = None if champion is None else str(champion)
    _set_tags(name, candidate, {f"{PREVIOUS}.{alias}": previous})
    _move(name, alias, champion, candidate)
    _set_tags(name, candidate, {PROMOTED: _dated(f"{alias}: {why}")})


def refuse(name: str, alias: str, candidate: int, why: str) -> None:
    """Say on a version why it was not promoted, in the tag `reusekit.refused`."""
    _set_tags(name, candidate, {REFUSED: _dated(f"{alias}: {why}")})


def roll_back(name: str, alias: str, why: str) -> tuple[int, int]:
    """Give an alias back to the version that had it before the one that has it now.

    Called again it goes back further: each step uses up the tag that it went by.

    Args:
        name: The name in the registry.
        alias: The alias to move.
        why: The reason, kept in the tag `reusekit.rolled_back` of the version that loses it.

    Returns:
        The version that had the alias, and the one that has it now.

    Raises:
        TrackingError: No version has the alias, there is none before it on record, that one was
            deleted, or another process moves the alias.
    """
    current = aliased_version(name, alias)
    number, previous = int(current.version), previous_champion(current, alias)
    _move(name, alias, number, previous)
    said = f"{alias} given back to version {previous}: {why}"
    _set_tags(name, number, {ROLLED_BACK: _dated(said), f"{PREVIOUS}.{alias}": None})
    return number, previous


def previous_champion(version: ModelVersion, alias: str) -> int:
    """Return the number of the version that had an alias before a version was promoted.

    Raises:
        TrackingError: None is on record, or it was deleted.
    """
    written = version.tags.get(f"{PREVIOUS}.{alias}")
    if written is None:
        raise TrackingError(
            f"Expected version {version.version} of {version.name} to have taken {alias!r} over "
            "from another by a promotion. Received: none, so there is nothing on record to go "
            "back to. Set the alias on another version in the registry."
        )
    there = version_numbers(version.name)
    if written not in map(str, there) or written == str(version.version):
        raise TrackingError(
            f"Expected the version of {version.name} that had {alias!r} before version "
            f"{version.version}. Received: {written[:20]}, which has been deleted. Set the alias "
            f"on one that is there: {', '.join(map(str, there))}."
        )
    return int(written)


def _move(name: str, alias: str, before: int | None, after: int) -> None:
    _expect(name, alias, before)
    set_alias(name, alias, after)
    _expect(name, alias, after)


def _expect(name: str, alias: str, number: int | None) -> None:
    found = registered_model(name).aliases.get(alias)
    if (None if found is None else int(found)) != number:
        raise TrackingError(
            f"Expected {name}@{alias} to be {_called(number)}. Received: {_called(found)}, since "
            "it was moved meanwhile. Start again."
        )


def _called(number: int | str | None) -> str:
    return "no version" if number is None else f"version {number}"


def _set_tags(name: str, number: int, tags: Mapping[str, str | None]) -> None:
    """Set tags of a version; those of None are removed."""
    client = mlflow.MlflowClient()
    with asking(f"write the tags of version {number} of {name}"):
        for key, value in tags.items():
            if value is None:
                client.delete_model_version_tag(name, str(number), key)
            else:
                client.set_model_version_tag(name, str(number), key, value)


def _dated(text: str) -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {text}"
