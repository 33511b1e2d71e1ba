"""The model registry: names, versions and aliases, looked up with errors that say what is there."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from reusekit.errors import TrackingError, nearest
from reusekit.tracking.network import cause_of, patience

MODEL_ID = "m-[0-9a-f]{32}"
"""Pattern of the id of a logged model."""

_LONGEST = 250  # characters of a name, to which its parts' names add some


def check_name(name: str) -> None:
    """Refuse a name that the registry takes, but no address finds again.

    Raises:
        TrackingError: It is too long, or has characters that end an address or a filter.
    """
    ends = re.search("[?#]", name) or {"'", '"'} <= {*name}
    if len(name) > _LONGEST or not name.isprintable() or ends:
        raise TrackingError(
            f"Expected a name for the registry of at most {_LONGEST} printable characters without "
            f"? and #, and with one kind of quotes at most. Received: {name[:80]!r}."
        )


def registered_model(name: str) -> RegisteredModel:
    """Return the registered model of a name, with aliases and tags.

    Raises:
        TrackingError: There is no such name; the message names the nearest.
    """
    client = MlflowClient()
    with asking(f"look up the name {name!r}"):
        try:
            return client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        names = [model.name for model in client.search_registered_models()]
    choices = nearest(name, names) or "Register one first, since the registry is empty."
    raise TrackingError(f"Expected the name of a registered model. Received: {name!r}. {choices}")


def filter_of(name: str) -> str:
    """Return the filter that finds the versions of a name."""
    quote = "'" if '"' in name else '"'
    return f"name = {quote}{name}{quote}"


def version_numbers(name: str) -> list[int]:
    """Return the version numbers of a name, oldest first, without deleted ones."""
    with asking(f"list the versions of {name!r}"):
        found = MlflowClient().search_model_versions(filter_of(name))
    return sorted(int(version.version) for version in found)


def find_version(name: str, wanted: int | str | None = None) -> ModelVersion:
    """Return a version by its number or its alias.

    Args:
        name: The name in the registry.
        wanted: A number, an alias, or None for the newest version.

    Raises:
        TrackingError: There is no such name, version or alias; the message names those there are.
    """
    model = registered_model(name)
    if wanted is None:
        numbers = version_numbers(name)
        if not numbers:
            raise TrackingError(
                f"Expected {name} to have a version. Received: none. Register one first."
            )
        return _version(name, numbers[-1])
    if isinstance(wanted, int) or (wanted.isdecimal() and wanted not in model.aliases):
        return _version(name, int(wanted))
    return aliased_version(name, wanted)


def aliased_version(name: str, alias: str) -> ModelVersion:
    """Return the version that has an alias, which may look like a number.

    Raises:
        TrackingError: There is no such name or alias; the message names those there are.
    """
    model = registered_model(name)
    if alias not in model.aliases:
        choices = nearest(alias, model.aliases) or "Set one first, since it has none."
        raise TrackingError(f"Expected an alias of {name}. Received: {alias!r}. {choices}")
    return _version(name, int(model.aliases[alias]))


def champion(name: str, alias: str = "champion") -> ModelVersion | None:
    """Return the version that has an alias, or None where no version has it.

    Raises:
        TrackingError: There is no such name.
    """
    return aliased_version(name, alias) if alias in registered_model(name).aliases else None


def original_of(version: ModelVersion, client: MlflowClient) -> ModelVersion:
    """Return the version that one is a copy of, as `copy_model_version` makes them; else itself."""
    seen = set()
    while (version.name, str(version.version)) not in seen:
        seen.add((version.name, str(version.version)))
        copied = re.fullmatch(r"models:/([^/:]+)/(\d{1,9})", version.source or "")
        if copied is None:
            break
        version = client.get_model_version(*copied.groups())
    return version


def logged_model_id(version: ModelVersion) -> str | None:
    """Return the logged model that a version is made of; None where it was made of something else.

    The registry's database keeps it in the source alone.
    """
    found = re.fullmatch(rf"(?:models|reusekit):/({MODEL_ID})", version.source or "")
    return found[1] if found else None


def set_alias(name: str, alias: str, number: int) -> None:
    """Point an alias at a version, whichever had it before; `promote` looks at that.

    Raises:
        TrackingError: There is no such name or version, or MLflow refuses the alias.
    """
    find_version(name, number)
    with asking(f"point {alias!r} at version {number} of {name}"):
        MlflowClient().set_registered_model_alias(name, alias, str(number))


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turn what MLflow raises into one sentence, such as: cannot `look up the name 'digits'`."""
    try:
        with patience():
            yield
    except MlflowException as error:
        raise TrackingError(
            f"Expected a registry that can {what}. Received: a refusal: "
            f"{cause_of(error).rstrip('.')}. Check the name, and what you may do there."
        ) from error


@dataclass(frozen=True)
class RecordedSplit:
    """A split that a run has read.

    Attributes:
        context: The use: `training`, `validation` or `test`.
        name: Data set and version, such as `sklearn_digits:1.0.0`.
        split: The part of it.
        class_names: Its classes, in label order, of several tasks by name; empty where it has none.
        source: What reads it again, as `mlflow.data.get_source` returns it.
    """

    context: str
    name: str
    split: str
    class_names: tuple[str, ...] | Mapping[str, tuple[str, ...]]
    source: Any = field(repr=False)


def recorded_splits(version: ModelVersion) -> list[RecordedSplit]:
    """Return the splits that the run of a version has read; none where the run is gone.

    Raises:
        TrackingError: The server does not answer.
    """
    if not version.run_id:
        return []
    with asking(f"look up the run of version {version.version} of {version.name}"):
        try:
            inputs = MlflowClient().get_run(version.run_id).inputs
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return []
    found = []
    for read in inputs.dataset_inputs if inputs else ():
        try:
            source = json.loads(read.dataset.source)
            if not source.keys() >= {"name", "split", "treatment", "fingerprint"}:
                continue  # what else people log as an input
            name, split = str(source["name"]), str(source["split"])
            classes = json.loads(read.dataset.profile or "{}").get("class_names", ())
            if isinstance(classes, Mapping):
                classes = {task: tuple(names) for task, names in classes.items()}
            else:
                classes = tuple(classes)
            again = mlflow.data.get_source(read)
        except (ValueError, TypeError, AttributeError, MlflowException):  # nothing of reusekit's
            continue
        contexts = [tag.value for tag in read.tags if tag.key == MLFLOW_DATASET_CONTEXT]
        found += [RecordedSplit(use, name, split, classes, again) for use in contexts]
    return found


def _version(name: str, number: int) -> ModelVersion:
    with asking(f"look up version {number} of {name}"):
        try:
            return MlflowClient().get_model_version(name, str(number))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    there = ", ".join(map(str, version_numbers(name)))
    raise TrackingError(
        f"Expected a version of {name}. Received: {number}. "
        + (f"Choose one that is there: {there}." if there else "Register one first.")
    )
