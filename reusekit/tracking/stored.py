"""Models that MLflow holds, read from fixed names inside their folder and by hash.

The description of a model, its file `MLmodel` included, may have been written by anyone. So it
never says what is read, from where, or how: a model is `data/model.keras`, or the two that
`data/reference.json` names by their ids, read by Keras in its safe mode.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.parse import urlsplit

import keras
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from reusekit.arguments import first_fault
from reusekit.backbones.files import read_file
from reusekit.digests import file_digest
from reusekit.errors import ReusekitError, TrackingError
from reusekit.secrets import shown
from reusekit.sharing import join
from reusekit.tracking import names
from reusekit.tracking.network import cause_of
from reusekit.tracking.registry import MODEL_ID, asking, logged_model_id, original_of
from reusekit.tracking.saved import (
    COMBINED_LOADER,
    LOADER,
    WEIGHTS,
    name_answers,
    read_description,
)
from reusekit.tracking.usage import USAGE, Usage

FILE = Path("data", "reference.json")
"""Where a reference lies in a model's folder, in place of the weights."""

COMBINATION = Path("data", "combination.json")
"""Where a combined model says its heads, and the bottom below them."""

_Name = Annotated[str, StringConstraints(max_length=500)]
_ASKED = ("data", "save_exported_model")  # of MLflow's reader of Keras models
_MORE = ("code", "data")  # which have it import modules, and read another folder
_INDIRECT = ("models", "reusekit", "runs")  # addresses that stand for another
# Asked with the credentials of the tracking server.
_SERVERS = ("http", "https", "mlflow-artifacts")


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Part(_Checked):
    """A model that is stored once: its version for people, its id, and its file's SHA-256."""

    version: _Name
    model_id: str
    file: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]

    def load(self, client: MlflowClient) -> keras.Model:
        """Read the model.

        Raises:
            TrackingError: It is gone, altered, or says to look elsewhere.
            BackboneError: It is no Keras model, or asks for code to be run.
        """
        named = f"{self.version} ({self.model_id})"
        stored = replace(
            Stored.of_logged(self.model_id, client, named),
            files=frozenset({self.file}),
            purpose="this model was joined from",
        )
        with TemporaryDirectory() as scratch:
            return read_file(stored.fetch(client, WEIGHTS, Path(scratch)), named)


class Reference(_Checked):
    """The parts that a whole model is joined from.

    Attributes:
        name: The whole model's own name.
        bottom: From its inputs to the cut.
        top: From the cut to its outputs.
        shared: The weights that both parts hold and that are one, as `Split.shared` lists them.
    """

    name: _Name
    bottom: Part
    top: Part
    shared: tuple[str, ...]

    @classmethod
    def read(cls, file: Path, named: str) -> "Reference":
        """Read a reference of a model that errors name.

        Raises:
            TrackingError: It is damaged.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise TrackingError(
                f"Expected {FILE.as_posix()} of {named} as it was written. Received: one that is "
                f"damaged{first_fault(error)}. Register the model again."
            ) from error


@dataclass(frozen=True)
class Stored:
    """The folder of a model in an artifact store.

    Attributes:
        named: Its exact address, of a version or by its id.
        location: Where the folder is.
        files: Every SHA-256 that its file with the weights is on record with; that many must agree.
        references: The same of its reference to its parts.
        usages: The same of what says its use.
        purpose: The occasion on which that was put on record.
        model_id: The logged model; None where it is none.
        head: The address at which its head begins, where that is on record.
        role: What it is of a model, by its tag; None where nothing says it.
    """

    named: str
    location: str
    files: frozenset[str] = frozenset()
    references: frozenset[str] = frozenset()
    usages: frozenset[str] = frozenset()
    purpose: str = "was logged"
    model_id: str | None = None
    head: str | None = None
    role: str | None = None

    @classmethod
    def of_logged(cls, model_id: str, client: MlflowClient, named: str = "") -> "Stored":
        """Return the facts known of a logged model.

        Raises:
            TrackingError: There is no such model.
        """
        named = named or f"models:/{model_id}"
        if not re.fullmatch(MODEL_ID, model_id):
            raise TrackingError(
                f"Expected the id of a model, m-..., in {named}. Received: {model_id!r}."
            )
        try:
            model = client.get_logged_model(model_id)
        except MlflowException as error:
            raise TrackingError(
                f"Expected a model that can be had. Received: {named}, which may have been "
                f"deleted: {cause_of(error).rstrip('.')}. Choose another version."
            ) from error
        head = model.tags.get(names.CUT if names.FROZEN_UP_TO in model.tags else names.HEAD)
        return cls(
            named,
            model.artifact_location,
            *_on_record(model),
            model_id=model_id,
            head=head,
            role=model.tags.get(names.ROLE),
        )

    @classmethod
    def of_version(cls, version: ModelVersion, client: MlflowClient) -> "Stored":
        """Return the facts known of a registered version, of a logged model or a folder.

        Raises:
            TrackingError: The model that it is of is gone.
        """
        named = f"models:/{version.name}/{version.version}"
        with asking(f"look up what {named} is a copy of"):
            original = original_of(version, client)
        model_id = logged_model_id(original)
        if model_id is None:
            found = cls(named, original.source, *_on_record(original))  # type: ignore[arg-type]  # has a source
        else:
            found = cls.of_logged(model_id, client, named)
        files, references, usages = _on_record(version)
        return replace(
            found,
            files=found.files | files,
            references=found.references | references,
            usages=found.usages | usages,
        )

    def load(self, client: MlflowClient) -> keras.Model:
        """Read the model, from its parts where it is a reference to them.

        Raises:
            TrackingError: It or a part of it is gone, altered, or says to look elsewhere.
            BackboneError: It is no Keras model, or asks for code to be run.
        """
        if self.role == names.COMBINED:
            raise TrackingError(
                f"Expected a single model. Received: {self.named}, which combines several. Name "
                "one of those."
            )
        reference = self.reference(client)
        if reference is not None:
            return _joined(reference, client)
        with TemporaryDirectory() as scratch:
            return read_file(self.fetch(client, WEIGHTS, Path(scratch)), self.named)

    def reference(self, client: MlflowClient) -> Reference | None:
        """Read the reference to the model's parts; None where it has weights of its own.

        Raises:
            TrackingError: It is gone, altered or damaged.
        """
        if not self._has(client, FILE):
            return None
        with TemporaryDirectory() as scratch:
            return Reference.read(self.fetch(client, FILE, Path(scratch)), self.named)

    def usage(self, client: MlflowClient) -> Usage | None:
        """Read how the model is used; None where nothing says it, as of models of before.

        Raises:
            TrackingError: It is gone, altered or damaged.
        """
        if not self.usages and not self._has(client, USAGE):
            return None
        with TemporaryDirectory() as scratch:
            return Usage.read(self.fetch(client, USAGE, Path(scratch)), self.named)

    def _folder(self, client: MlflowClient) -> ArtifactRepository:
        """Return the folder as an artifact store; its address may not stand for another."""
        location, server = urlsplit(self.location), urlsplit(client.tracking_uri)
        there = (location.hostname, location.port)
        elsewhere = location.hostname and there != (server.hostname, server.port)
        if location.scheme in _INDIRECT or (location.scheme in _SERVERS and elsewhere):
            raise TrackingError(
                f"Expected a folder in an artifact store for {self.named}. Received: "
                f"{shown(self.location)[:200]}, which is at another address."
            )
        with self._reading():
            return get_artifact_repository(self.location, client.tracking_uri)

    def _has(self, client: MlflowClient, name: Path) -> bool:
        folder = self._folder(client)
        if isinstance(folder, LocalArtifactRepository):
            return os.path.lexists(Path(folder.artifact_dir, name))
        with self._reading():
            listed = folder.list_artifacts(name.parent.as_posix())
        return name.as_posix() in {info.path for info in listed}

    def fetch(self, client: MlflowClient, name: Path, scratch: Path) -> Path:
        """Copy one file of a fixed name, and see that it is what was logged."""
        folder = self._folder(client)
        if isinstance(folder, LocalArtifactRepository):
            refuse_links(Path(folder.artifact_dir), self.named, name.parent, name)
        with self._reading():
            file = Path(folder.download_artifacts(name.as_posix(), str(scratch)))
        known = {FILE: self.references, COMBINATION: self.references, USAGE: self.usages}
        self._check(file, name, known.get(name, self.files))
        return file

    def _check(self, file: Path, name: Path, digests: frozenset[str]) -> None:
        if not file.is_file():
            raise TrackingError(
                f"Expected a file {name.as_posix()} of {self.named}. Received: none. Register the "
                "model again."
            )
        found = file_digest(file)
        for digest in digests - {found}:
            raise TrackingError(
                f"Expected {self.named} to be what {self.purpose}: a file {name.as_posix()} with "
                f"SHA-256 {digest}. Received: {found}. Register the model again if you trust "
                "neither."
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the client of an artifact store raises whatever it likes
            raise TrackingError(
                f"Expected {WEIGHTS.as_posix()} of {self.named}. Received: none that can be had; "
                f"it may have been deleted: {cause_of(error, self.location).rstrip('.')}. Choose "
                "another version."
            ) from error


def load_version(version: ModelVersion) -> keras.Model:
    """Load a registered version, joined where it is stored as a reference to its parts.

    Raises:
        TrackingError: It or a part of it is gone, altered, or says to look elsewhere.
        BackboneError: It is no Keras model, or asks for code to be run.
    """
    client = MlflowClient()
    return Stored.of_version(version, client).load(client)


def refuse_links(root: Path, named: str, *inside: Path) -> None:
    """Refuse links in a folder, which would lead out of it: all, or those that are named.

    The folder itself may be one.

    Raises:
        TrackingError: There is a link.
    """
    for path in [root / name for name in inside] or root.rglob("*"):
        if os.path.islink(path):  # which has no error for a name that no system has
            raise TrackingError(
                f"Expected a file or a folder in that of {named}. Received: "
                f"{path.relative_to(root)}, which is a link. Register the model again."
            )


def complete(folder: Path, model_id: str, client: MlflowClient) -> None:
    """Make a logged model that was fetched one that MLflow itself can load, and safely.

    Where it is a reference to parts, these are joined into the folder. `mlflow.pyfunc` answers with
    its names from then on, where it has some.

    Raises:
        TrackingError: It or a part of it is gone or altered, or asks MLflow for more than to read
            its own file.
        BackboneError: A part asks for code to be run.
    """
    stored = Stored.of_logged(model_id, client)
    refuse_links(folder, stored.named)
    combined = (folder / COMBINATION).is_file()
    if combined and not stored.references:  # a reference of earlier versions has none either
        raise TrackingError(
            f"Expected {stored.named} to be one model, as its record says. Received: a folder that "
            "says that it is of several models. Combine them again."
        )
    _check_description(folder, stored.named, combined)
    if combined:
        stored._check(folder / COMBINATION, COMBINATION, stored.references)
    elif (folder / FILE).is_file():
        stored._check(folder / FILE, FILE, stored.references)
        reference = Reference.read(folder / FILE, stored.named)
        _joined(reference, client).save(folder / WEIGHTS)
    elif (folder / WEIGHTS).is_file():
        stored._check(folder / WEIGHTS, WEIGHTS, stored.files)
    if stored.usages or (folder / USAGE).is_file():
        stored._check(folder / USAGE, USAGE, stored.usages)
        name_answers(folder, Usage.read(folder / USAGE, stored.named))


def _check_description(folder: Path, named: str, combined: bool) -> None:
    """Refuse a description that has MLflow read another file, or import other code."""
    try:
        flavors = read_description(folder).flavors
        served = flavors.get("python_function", {})
        asks = {key: flavors["keras"].get(key) for key in _ASKED} if "keras" in flavors else {}
        loader = served.get("loader_module", "mlflow.keras")
    except Exception as error:  # YAML and MLflow raise whatever they like
        raise TrackingError(
            f"Expected {MLMODEL_FILE_NAME} of {named} as it was written. Received: one that is "
            f"damaged: {cause_of(error).rstrip('.')}. Register the model again."
        ) from error
    expected: dict[str, Any] = {"data": WEIGHTS.parent.as_posix(), "save_exported_model": False}
    allowed = [expected, expected | {"save_exported_model": None}]
    loaders: tuple[str, ...] = ("mlflow.keras", LOADER)
    if combined:
        expected, allowed, loaders = {}, [{}], (COMBINED_LOADER,)
    if asks not in allowed or loader not in loaders or not served.keys().isdisjoint(_MORE):
        raise TrackingError(
            f"Expected {expected} in {MLMODEL_FILE_NAME} of {named}, which is to read "
            f"{(COMBINATION if combined else WEIGHTS).as_posix()} and no more: no code and no "
            f"other folder. Received: {str(asks)[:200]}, loaded by {str(loader)[:80]!r}."
        )


def _joined(reference: Reference, client: MlflowClient) -> keras.Model:
    """Return the whole of two parts, none of which is a reference itself."""
    parts = [part.load(client) for part in (reference.bottom, reference.top)]
    try:
        bottom, top = parts
        return join(bottom, top, shared=reference.shared, name=reference.name)
    except ReusekitError:
        raise
    except (ValueError, TypeError) as error:  # a name that Keras does not take
        raise TrackingError(
            f"Expected parts of {reference.name!r} that can be joined. Received: others: "
            f"{str(error).rstrip('.')}. Register the model again."
        ) from error


def _on_record(
    of: LoggedModel | ModelVersion,
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    return tuple(  # type: ignore[return-value]  # of three, one for each tag
        frozenset({of.tags[name]} if of.tags and name in of.tags else ())
        for name in (names.FILE, names.REFERENCE, names.USAGE)
    )
