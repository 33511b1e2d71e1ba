"""Bottom, top and whole on a tracking server: linked, each part stored once.

Everything here may be interrupted and repeated: what an earlier attempt made is found by its key.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Run,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_MODEL_VERSIONS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NOTE,
)

from reusekit.digests import file_digest
from reusekit.errors import TrackingError
from reusekit.tracking import names
from reusekit.tracking.network import cause_of, is_away
from reusekit.tracking.parts import MODELS
from reusekit.tracking.promotion import PREVIOUS
from reusekit.tracking.registry import filter_of, logged_model_id, original_of
from reusekit.tracking.saved import read_description
from reusekit.tracking.stored import FILE, Part, Reference

CHAMPION = "champion"
"""The alias of the first version of a name."""

SCHEME = "reusekit"
"""Of the source of versions that reusekit fetches: `reusekit:/MODEL_ID`."""


def send(folder: Path, client: MlflowClient, run_id: str) -> ModelVersion:
    """Log and register the models that `prepare` has written.

    A bottom that is stored already, by whatever run of whatever experiment, is not stored again.

    Args:
        folder: As `prepare` has left it.
        client: Of the server.
        run_id: The run that the models are outputs of.

    Returns:
        The version of the whole model: a new one, unless this very model is registered already.

    Raises:
        TrackingError: The registry refuses.
    """
    content, run = json.loads((folder / MODELS).read_text()), client.get_run(run_id)
    try:
        with TemporaryDirectory() as scratch:
            return Sending(client, run, folder, Path(scratch), content).all()
    except MlflowException as error:
        if is_away(error):
            raise
        name = content["models"]["whole"]["registered"]
        raise TrackingError(
            f"Expected a registry that takes {name!r}. Received: a refusal: {cause_of(error)}"
        ) from error


@dataclass(frozen=True)
class StoredPart:
    """A part on the server."""

    model: LoggedModel
    version: ModelVersion

    @property
    def as_part(self) -> Part:
        """The part, as a reference names it."""
        return Part(
            version=f"models:/{self.version.name}/{self.version.version}",
            model_id=self.model.model_id,
            file=self.model.tags[names.FILE],
        )


@dataclass(frozen=True)
class Sending:
    """One folder on its way to one server; it stays as it is, to be sent again if need be."""

    client: MlflowClient
    run: Run
    folder: Path
    added: Path
    content: dict[str, Any]

    def all(self) -> ModelVersion:
        """Log and register bottom, top and whole; see `send`."""
        same = self._same()
        if same is not None:  # another run came to this very model
            self.link_input(same.model.model_id)
            return self._measured_with_alias(same)
        parent = self.content["parent"]
        if parent is not None:
            self.link_input(parent)
        bottom = self._bottom({names.PARENT: parent} if parent else {})
        below = {names.PARENT: bottom.model.model_id}
        top = self.part("top", below)
        if not self.content["standalone"]:
            reference = Reference(
                name=self.content["whole"],
                bottom=bottom.as_part,
                top=top.as_part,
                shared=tuple(self.content["shared"]),
            )
            file = self.added / "whole" / FILE
            file.parent.mkdir(parents=True)
            file.write_text(reference.model_dump_json(indent=1))
            below[names.REFERENCE] = file_digest(file)
        whole = self.part("whole", below)
        return self._measured_with_alias(whole)

    def _same(self) -> StoredPart | None:
        """Return this very model, where another run has registered it under the same name."""
        said = self.content["models"]["whole"]
        same = (names.DIGEST, names.ROLE, names.USAGE)
        wanted = {name: said["tags"][name] for name in same if name in said["tags"]}
        for version in with_tags(self.client, wanted):
            alone = names.FILE in version.tags
            if version.name == said["registered"] and alone == self.content["standalone"]:
                model_id = logged_model_id(original_of(version, self.client))
                if model_id and version.run_id != self.run.info.run_id:
                    with suppress(MlflowException):  # deleted
                        return StoredPart(self.client.get_logged_model(model_id), version)
        return None

    def _measured_with_alias(self, whole: StoredPart) -> ModelVersion:
        """Log the measures of the whole, and move the alias that was asked for."""
        self._log(self.client.get_run(self.run.info.run_id), self.content["metrics"], whole.model)
        return move_alias(self.client, whole.version, self.content["alias"])

    def _bottom(self, tags: Mapping[str, str]) -> StoredPart:
        """Return the bottom that is stored already, or else this one."""
        wanted = self.content["models"]["bottom"]["tags"]
        stored: Any = find_bottom(self.client, wanted)
        if stored is None or stored.version.tags.get(names.KEY) == self._key("bottom"):
            made = self.part("bottom", tags)
            stored = find_bottom(self.client, wanted)
            if stored.model.model_id != made.model.model_id:  # another job was quicker
                self.client.delete_model_version(made.version.name, made.version.version)
                self.client.delete_logged_model(made.model.model_id)
        if stored.model.source_run_id != self.run.info.run_id:
            self.link_input(stored.model.model_id)
        return stored

    def part(self, role: str, tags: Mapping[str, str]) -> StoredPart:
        """Log one of the models and register it."""
        said = self.content["models"][role]
        tags = {**said["tags"], **tags, names.KEY: self._key(role)}
        model = self._logged(role, tags)
        self._measured(role, model)
        # Last, since what is registered is found by others and has to be whole.
        return StoredPart(model, self._registered(role, model, tags))

    def _key(self, role: str) -> str:
        return f"{self.content['key']}-{role}"

    def _logged(self, role: str, tags: Mapping[str, str]) -> LoggedModel:
        said, experiment = self.content["models"][role], self.run.info.experiment_id
        key, run_id = self._key(role), self.run.info.run_id
        tags = {**tags, MLFLOW_RUN_NOTE: self._about(role)} if self._about(role) else tags
        found = self.client.search_logged_models([experiment], f"tags.`{names.KEY}` = '{key}'")
        model = (
            found[0]
            if found
            else self.client.create_logged_model(
                experiment, said["name"], run_id, dict(tags), said["params"], "keras"
            )
        )
        if model.status != LoggedModelStatus.READY:
            description = read_description(self.folder / role)
            description.model_id = description.model_uuid = model.model_id
            description.run_id = run_id
            description.artifact_path = model.artifact_location
            added = self.added / role
            added.mkdir(exist_ok=True)
            description.save(added / MLMODEL_FILE_NAME)
            self.client.set_logged_model_tags(model.model_id, dict(tags))
            for folder in (self.folder / role, added):
                self.client.log_model_artifacts(model.model_id, str(folder))
            model = self.client.finalize_logged_model(model.model_id, "READY")
        outputs: Any = self.client.get_run(run_id).outputs
        if model.model_id not in {output.model_id for output in outputs.model_outputs}:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return model

    def _about(self, role: str) -> str:
        """Return the description of a part; records of before have a card alone."""
        card = self.content.get("card", "") if role == "whole" else ""
        return self.content["models"][role].get("about", card)

    def _registered(self, role: str, model: LoggedModel, tags: Mapping[str, str]) -> ModelVersion:
        said, about = self.content["models"][role], self._about(role)
        name, scheme = said["registered"], SCHEME if said["through_reusekit"] else "models"
        try:
            # The first sentence alone, which holds for later versions, too.
            first, more, _ = about.partition("\n")[0].partition(". ")
            self.client.create_registered_model(name, description=(first + more).strip() or None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = with_tags(self.client, {names.KEY: self._key(role)})
        version = (
            found[0]
            if found
            else self.client.create_model_version(
                name,
                f"{scheme}:/{model.model_id}",
                self.run.info.run_id,
                tags=dict(tags),
                description=about or None,
                model_id=model.model_id,
            )
        )
        # MLflow's page of the model reads this tag; a server sets it by itself, a database does
        # not.
        entry = {"name": version.name, "version": version.version}
        self.client.set_logged_model_tags(
            model.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([entry])}
        )
        return version

    def _measured(self, role: str, model: LoggedModel) -> None:
        """Log the ledger as metrics of the model, by which MLflow can search.

        Metrics belong to a run; each model has one, so that three values of one name never meet.
        """
        experiment, key = self.run.info.experiment_id, self._key(role)
        found = self.client.search_runs([experiment], f"tags.`{names.KEY}` = '{key}'")
        own = {
            names.KIND: "evaluation",
            names.KEY: key,
            MLFLOW_PARENT_RUN_ID: self.run.info.run_id,
        }
        run = (
            found[0]
            if found
            else self.client.create_run(
                experiment, run_name=f"ledger of the {role}", tags=names.context_tags() | own
            )
        )
        self._log(run, self.content["models"][role]["metrics"], model)
        self.client.set_terminated(run.info.run_id)

    def _log(self, run: Run, values: Mapping[str, float], model: LoggedModel) -> None:
        """Log metrics to a run and, with it, to a model, unless the run has them.

        Those of a split say so, by which MLflow's page of a model names its data sets.
        """
        now, measured_on = int(time.time() * 1000), _data_of(run)
        new = [
            Metric(name, float(value), now, 0, model.model_id, **measured_on(name))
            for name, value in values.items()
            if name not in run.data.metrics
        ]
        if new:
            self.client.log_batch(run.info.run_id, new)

    def link_input(self, model_id: str) -> None:
        """Say that the run stands on a model that is there already."""
        inputs: Any = self.client.get_run(self.run.info.run_id).inputs
        if model_id not in {found.model_id for found in inputs.model_inputs}:
            self.client.log_inputs(self.run.info.run_id, models=[LoggedModelInput(model_id)])


def _data_of(run: Run) -> Callable[[str], dict[str, str]]:
    """Return what gives the data set of a metric of a run, as `Metric` takes it."""
    inputs: Any = run.inputs
    by_use = {
        tag.value: {"dataset_name": one.dataset.name, "dataset_digest": one.dataset.digest}
        for one in inputs.dataset_inputs
        for tag in one.tags
        if tag.key == MLFLOW_DATASET_CONTEXT
    }
    uses = {"test": "test", "val": "validation"}
    return lambda metric: by_use.get(uses.get(metric.partition("_")[0], ""), {})


def move_alias(client: MlflowClient, version: ModelVersion, alias: str | None) -> ModelVersion:
    """Move an alias to a version; None moves none, but for the first version of a name.

    That is the champion. The version says which one had the alias before, so that a rollback can
    undo this.
    """
    name, number, wanted = version.name, version.version, alias or CHAMPION
    before = client.get_registered_model(name).aliases.get(wanted)
    moves = alias is not None or (
        before is None and len(client.search_model_versions(filter_of(name))) == 1
    )
    if moves and str(before) != str(number):
        if before is not None:
            client.set_model_version_tag(name, number, f"{PREVIOUS}.{wanted}", str(before))
        client.set_registered_model_alias(name, wanted, number)
    return client.get_model_version(name, number)


def find_bottom(client: MlflowClient, tags: Mapping[str, str]) -> StoredPart | None:
    """Return the oldest bottom with the digest in the tags that is registered and still there."""
    same = {n: tags[n] for n in (names.DIGEST, names.LAYERS, names.ROLE) if n in tags}
    for version in sorted(with_tags(client, same), key=lambda version: version.creation_timestamp):
        try:
            model_id = logged_model_id(original_of(version, client))
            model = model_id and client.get_logged_model(model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if model and names.FILE in model.tags:  # else nothing says what its file has to be
                return StoredPart(model, version)
    return None


def with_tags(client: MlflowClient, tags: Mapping[str, str]) -> list[ModelVersion]:
    """Return the versions, of whatever name, that have all of some tags."""
    wanted = " AND ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_model_versions(wanted))
