"""Registered models over one bottom, combined: one pass, all answers, each head by its alias.

A combined model stores no weights: `data/combination.json` says the bottom by its hash, and the
address of each head. What serves it looks at the addresses again and exchanges tops; it never reads
the bottom twice.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from uuid import uuid4

import keras
import mlflow.pyfunc
import numpy as np
import pandas as pd
from annotated_types import MinLen
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import DataType, ParamSpec
from pydantic import Field

from reusekit.arguments import Alias, checked
from reusekit.digests import file_digest
from reusekit.errors import DataError, ReusekitError, TrackingError, nearest
from reusekit.tracking import names
from reusekit.tracking.backbones import find_registered_version
from reusekit.tracking.combination import (
    Combination,
    HeadVersion,
    ServedHead,
    address_of,
    check_bottoms,
    combination_of,
    joined_name,
)
from reusekit.tracking.linked import Sending, move_alias, with_tags
from reusekit.tracking.network import is_away
from reusekit.tracking.registry import (
    aliased_version,
    asking,
    check_name,
    filter_of,
    logged_model_id,
)
from reusekit.tracking.runs import pipeline_run
from reusekit.tracking.saved import (
    COMBINED_LOADER,
    Answering,
    named_signature,
    read_description,
    requirements,
)
from reusekit.tracking.stored import COMBINATION, Stored
from reusekit.tracking.usage import Usage

_log = logging.getLogger(__name__)
_TROUBLE = (ReusekitError, MlflowException, OSError)  # after which a server goes on


@dataclass(frozen=True)
class _Serving:
    """A head that answers."""

    read: HeadVersion
    top: keras.Model

    def is_of(self, version: ModelVersion) -> bool:
        """Return whether it is this version, and not one of another model of the same name."""
        own = self.read.version
        return (own.name, str(own.version), own.source) == (
            version.name,
            str(version.version),
            version.source,
        )


@dataclass(frozen=True)
class _State:
    """All that answers at one time; exchanged as one, since several threads may ask."""

    content: Combination
    heads: Mapping[str, _Serving]
    model_id: str | None


class Combined:
    """A combined model that answers: the bottom, read once, and the tops that there are now.

    Args:
        content: The combination.
        model_id: The logged model that it is of, where it follows what its own alias says; None
            for a fixed list of heads.

    Attributes:
        bottom: The bottom.
    """

    def __init__(self, content: Combination, model_id: str | None = None) -> None:
        self._client, self._told, self._lock = MlflowClient(), dict[str, str](), threading.Lock()
        self.bottom = content.bottom.load(self._client)
        self._state = _State(content, {}, model_id if _follows(content, model_id) else None)
        self._state = _State(content, self._heads(content), self._state.model_id)
        self._looked = time.monotonic()

    @property
    def tops(self) -> list[keras.Model]:
        """The tops that answer now."""
        return [one.top for one in self._state.heads.values()]

    @property
    def usage(self) -> Usage:
        """The use of all heads together."""
        return _together(self._state.content, self._state.heads)

    def outputs(self, features: Any) -> dict[str, np.ndarray]:
        """Return what the tops make of features, by the tasks of `usage`."""
        return _outputs(self._state.heads, features)

    def predict(
        self,
        inputs: Any,
        heads: Sequence[str] = (),
        probabilities: bool = False,
        files: bool = True,
    ) -> pd.DataFrame:
        """Predict raw inputs, by one pass through the bottom.

        Args:
            inputs: Several inputs, as `reusekit.predict` takes them.
            heads: The heads that are to answer; none for all.
            probabilities: Give those of all classes or labels, too.
            files: Whether text may be the path of a picture.

        Returns:
            A row for each input, with the columns of each head, which begin with its name.

        Raises:
            DataError: There is no such head, or the inputs are not what the bottom takes.
        """
        state = self._state  # of this answer, whatever another thread makes of it
        for name in heads:
            if name not in state.heads:
                raise DataError(
                    f"Expected the name of a head. Received: {name!r}. {nearest(name, state.heads)}"
                )
        asked = {n: one for n, one in state.heads.items() if not heads or n in heads}
        return _together(state.content, asked).predict(
            self.bottom, inputs, probabilities, files, lambda features: _outputs(asked, features)
        )

    def refresh(self) -> None:
        """Look at the aliases, if that is due, and exchange the tops of those that have moved.

        What cannot be had, or does not fit, changes nothing; the log says it. A call while another
        thread is at it changes nothing, either.
        """
        if time.monotonic() - self._looked < self._state.content.refresh:
            return
        if not self._lock.acquire(blocking=False):
            return
        try:
            content, model_id = self._newest()
            self._state = _State(content, self._heads(content), model_id)
            self._told.pop("", None)
        except _TROUBLE as error:
            self._warn("", f"{self._state.content.name} goes on with what it has: {error}")
        finally:
            self._looked = time.monotonic()
            self._lock.release()

    def _newest(self) -> tuple[Combination, str | None]:
        """Return the combination that the alias means now, and the model that it is of.

        Raises:
            TrackingError: It cannot be had, or stands on another bottom.
        """
        state = self._state
        if state.model_id is None:
            return state.content, None
        version = aliased_version(state.content.name, state.content.alias)
        model_id = logged_model_id(version)
        if model_id == state.model_id:
            return state.content, model_id
        content = Combination.of(Stored.of_version(version, self._client), self._client)
        check_bottoms({"what is served": state.content.bottom, address_of(version): content.bottom})
        return content, model_id

    def _heads(self, content: Combination) -> dict[str, _Serving]:
        return {name: self._head(name, head, content) for name, head in content.heads.items()}

    def _head(self, name: str, head: ServedHead, content: Combination) -> _Serving:
        """Return what a head's address means now; what answers already where that is refused.

        Of a head that does not answer yet it is the version that it was combined with.

        Raises:
            TrackingError: The registry is away, or neither can be had.
        """
        held = self._state.heads.get(name)
        try:
            found = self._serving(find_registered_version(head.address), held, content, head)
        except _TROUBLE as error:
            if isinstance(error.__cause__, Exception) and is_away(error.__cause__):
                raise
            if held is None or self._state.content.heads[name].address != head.address:
                held = self._serving(find_registered_version(head.version), held, content, head)
            else:
                held.read.check(content, head)
            self._warn(name, f"The head {name} goes on with {held.read.named}: {error}")
            return held
        self._told.pop(name, None)
        if held is not None and found is not held:
            _log.info("The head %s is %s now.", name, found.read.named)
        return found

    def _serving(
        self, version: ModelVersion, held: _Serving | None, content: Combination, head: ServedHead
    ) -> _Serving:
        """Return the head of a version, read unless it answers already."""
        if held is not None and held.is_of(version):
            held.read.check(content, head)
            return held
        read = HeadVersion.read(version, self._client)
        read.check(content, head)
        return _Serving(read, read.reference.top.load(self._client))

    def _warn(self, about: str, text: str) -> None:
        """Log a warning, once for as long as it stays the same."""
        if self._told.get(about) != text:
            _log.warning(text)
        self._told[about] = text


@checked(TrackingError)
def combine(
    name: str,
    models: Annotated[Sequence[str], MinLen(1)] | Annotated[Mapping[str, str], MinLen(1)],
    *,
    alias: Alias | None = None,
    refresh: Annotated[float, Field(ge=0)] = 60.0,
) -> ModelVersion:
    """Register a model that answers with several models over the bottom that they share.

    `mlflow.pyfunc.load_model`, `mlflow models serve`, `rk.predict` and `reusekit predict` take it.
    One pass through the bottom serves all heads. Where it is served, each head follows the alias in
    its address, and the list of heads follows the alias of the combined model itself.

    Args:
        name: The name of the combined model in the registry.
        models: The addresses of registered models, such as `models:/digits@champion`, each under
            its registered name or, in a dictionary, under one of its own. Answers have it.
        alias: The alias that is moved to the new version; None for `champion`, which the first
            version gets and later ones do not.
        refresh: The seconds after which a served model looks at the aliases again, before it
            answers; 0 for each time.

    Returns:
        The version: a new one, unless this very combination is registered already.

    Raises:
        TrackingError: The models stand on several bottoms, differ in preprocessing, or would
            answer with one column twice; one is stored with weights of its own; a name is there
            twice, or names single models already; or the registry does not answer.
        BackboneError: There is no such address.
    """
    check_name(name)
    client = MlflowClient()
    found = {head: HeadVersion.read(version, client) for head, version in _by_name(models).items()}
    given = list(models.values() if isinstance(models, Mapping) else models)
    content = combination_of(name, dict(zip(found, given, strict=True)), found, alias, refresh)
    with asking(f"list the versions of {name!r}"):
        others = client.search_model_versions(filter_of(name))
    if any((one.tags or {}).get(names.ROLE) != names.COMBINED for one in others):
        raise TrackingError(
            f"Expected a name of combined models alone, or a new one. Received: {name!r}, which "
            "has versions of other models."
        )
    combined = Combined(content)  # whatever cannot be read is refused before anything is written
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "sent", names.COMBINED)
        _save(combined, content, folder)
        digest = file_digest(folder / COMBINATION)
        tags = {names.ROLE: names.COMBINED, names.REFERENCE: digest}
        with asking(f"register {name!r}"):
            for same in with_tags(client, tags):
                if same.name == name:
                    return move_alias(client, same, alias)
        said = {
            "name": "".join("-" if letter in "/.:%\"'" else letter for letter in name),
            "registered": name,
            "about": _card(content),
            "tags": tags,
            "params": {"heads": ", ".join(content.heads)},
            "metrics": {},
            "through_reusekit": True,
        }
        sent = {"key": uuid4().hex, "models": {names.COMBINED: said}}
        asked = {"model": name, "heads": {n: one.named for n, one in found.items()}}
        with pipeline_run(f"combine {name}", None, asked), asking(f"register {name!r}"):
            run = mlflow.active_run()
            assert run is not None  # without an outbox
            sending = Sending(client, run, folder.parent, Path(scratch), sent)
            for one in found.values():
                if one.model_id is not None:
                    sending.link_input(one.model_id)
            made = sending.part(names.COMBINED, {names.PARENT: content.bottom.model_id})
            return move_alias(client, made.version, alias)


def _load_pyfunc(path: str) -> Any:
    """Load for `mlflow.pyfunc`: a combined model that follows the aliases."""
    content = Combination.read(Path(path, COMBINATION), "The combined model")
    return _Served(Combined(content, read_description(Path(path)).model_id))


class _Served(Answering):
    """A combined model that looks at the aliases before it answers."""

    def __init__(self, combined: Combined) -> None:
        self._combined = combined

    def answer(self, data: Any, params: Mapping[str, Any], files: bool) -> pd.DataFrame:
        """Answer with all heads, or with those that `params` name."""
        self._combined.refresh()
        heads = [str(name) for name in params.get("heads", ())]
        return self._combined.predict(data, heads, bool(params.get("probabilities")), files)


def _by_name(models: Sequence[str] | Mapping[str, str]) -> dict[str, ModelVersion]:
    """Return the versions of addresses by the names of heads.

    Raises:
        TrackingError: A name is there twice, or is empty; or there is no such version.
    """
    if isinstance(models, Mapping):
        if "" in models:
            raise TrackingError("Expected a name of each head. Received: ''.")
        return {name: find_registered_version(address) for name, address in models.items()}
    found: dict[str, ModelVersion] = {}
    for address in models:
        version = find_registered_version(address)
        if version.name in found:
            raise TrackingError(
                f"Expected each head once. Received: {version.name!r} twice. Give the heads names "
                "of their own."
            )
        found[version.name] = version
    return found


def _save(combined: Combined, content: Combination, folder: Path) -> None:
    """Write a combined model as MLflow does."""
    packages = [
        one for part in (combined.bottom, *combined.tops) for one in requirements(part, True)
    ]
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=COMBINED_LOADER,
        pip_requirements=list(dict.fromkeys(packages)),
    )
    written = read_description(folder)
    del written.flavors["python_function"]["code"]  # None, where a folder with code would be said
    asked = ParamSpec("heads", DataType.string, [], (-1,))
    written.signature = named_signature(combined.usage, asked)
    written.save(folder / MLMODEL_FILE_NAME)
    (folder / COMBINATION).parent.mkdir(exist_ok=True)
    (folder / COMBINATION).write_text(content.model_dump_json(indent=1))


def _card(content: Combination) -> str:
    heads = "".join(
        f"| {n} | {one.address} | {one.version} |\n" for n, one in content.heads.items()
    )
    return (
        f"Answers of {len(content.heads)} heads by one pass through {content.bottom.version}.\n\n"
        f"| head | follows | was |\n|---|---|---|\n{heads}"
    )


def _together(content: Combination, heads: Mapping[str, _Serving]) -> Usage:
    """Return the use of heads together: that of several tasks, one or more of each head."""
    tasks = {
        joined_name(name, task): answers
        for name, one in heads.items()
        for task, answers in one.read.usage.by_task.items()
    }
    return Usage(
        kind="joint",
        names=tuple(tasks),
        tasks=tasks,
        treatment=content.treatment,
        columns=content.columns,
    )


def _outputs(heads: Mapping[str, _Serving], features: Any) -> dict[str, np.ndarray]:
    """Return what tops make of features, by the tasks of `_together`."""
    return {
        joined_name(name, task): part
        for name, one in heads.items()
        for task, part in one.read.usage.outputs(one.top.predict_on_batch(features)).items()
    }


def _follows(content: Combination, model_id: str | None) -> bool:
    """Return whether a logged model is the one that its own alias means."""
    try:
        version = aliased_version(content.name, content.alias)
    except _TROUBLE:
        return False
    return model_id is not None and logged_model_id(version) == model_id
