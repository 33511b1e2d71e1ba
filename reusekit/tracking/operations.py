"""Writes to MLflow, as small operations that can be kept and repeated, and the server they are for.

An operation names its run by a key that is made here, since the server that makes ids may be away.
Sent a second time, because nobody knows whether the first arrived, it changes nothing.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
)
from pydantic import ConfigDict, Discriminator, TypeAdapter, ValidationError

from reusekit.errors import ReusekitError, TrackingError
from reusekit.tracking import linked
from reusekit.tracking.names import KEY
from reusekit.tracking.network import (
    cause_of,
    check_health,
    explained,
    patience,
)

_SECONDS_TO_STORE_A_FILE = 120


@dataclass(frozen=True)
class Destination:
    """The server and the experiment of records, for this process or a later one.

    Attributes:
        uri: Of the server or database.
        experiment: Name of the experiment, which is made where it does not exist.
        run_id: A run that is there already; its experiment is the one, whatever the name.
    """

    uri: str
    experiment: str | None = None
    run_id: str | None = None


class Target:
    """An experiment on a tracking server.

    Attributes:
        destination: Its server and its name.
        run_ids: The runs that this process has sent or found, by their keys.
    """

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.client = MlflowClient(tracking_uri=destination.uri)
        self.run_ids: dict[str, str] = {}

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; the experiment is made where there is none of that name.

        Raises:
            TrackingError: It has been deleted.
        """
        if self.destination.run_id is not None:
            return self.client.get_run(self.destination.run_id).info.experiment_id
        name: Any = self.destination.experiment
        found: Any = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                    raise
                found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"Expected an experiment that can be used. Received: {name!r}, which has been "
                "deleted. Restore it, or name another with --tracking.experiment."
            )
        return found.experiment_id

    def find(self, key: str) -> str | None:
        """Return the id of the run of a key; asks the server, and gives None where it has none."""
        if key not in self.run_ids:
            found = self.client.search_runs(
                [self.experiment_id], f"tags.`{KEY}` = '{key}'", ViewType.ALL, max_results=1
            )
            if not found:
                return None
            self.run_ids[key] = found[0].info.run_id
        return self.run_ids[key]

    def run_id(self, key: str) -> str:
        """Return the id of the run of a key, which the server has to have."""
        found = self.find(key)
        if found is None:
            raise TrackingError(
                f"Expected a run with the tag {KEY} = {key}. Received: none. Send the records of "
                "its job first."
            )
        return found


@dataclass(frozen=True)
class Operation:
    """Something to be written to the run of a key."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    run: str

    def write(self, target: Target, again: bool) -> Any:
        """Write it; see `send`."""
        raise NotImplementedError

    def send(self, target: Target, again: bool = False) -> Any:
        """Write it, with as much patience as it asks for.

        Args:
            target: Where to.
            again: Whether it may have been written already, by a request whose answer was lost.

        Returns:
            The result of the operation.

        Raises:
            ServerAwayError: The server is away. Whether it has taken the operation is not known.
            TrackingError: The server refuses.
        """
        with patience(), explained(target.destination.uri):
            return self.write(target, again)


@dataclass(frozen=True)
class StartRun(Operation):
    """Make the run, unless one of that key is there.

    Attributes:
        name: Its name.
        start: When it started, in milliseconds since 1970.
        tags: Its tags.
        parent: The key of the run that it is nested in.
        given: The id of a run that takes the key, instead of a new one.
    """

    name: str
    start: int
    tags: dict[str, str]
    parent: str | None = None
    given: str | None = None
    kind: Literal["start run"] = "start run"

    def write(self, target: Target, again: bool) -> None:
        """Make the run."""
        tags = {**self.tags, KEY: self.run}
        if self.given is not None:
            target.client.log_batch(self.given, tags=_tags(tags), synchronous=True)
            target.client.update_run(self.given, "RUNNING", self.name)
            target.run_ids[self.run] = self.given
            return
        if again and target.find(self.run) is not None:
            return
        if self.parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = target.run_id(self.parent)
        made = target.client.create_run(target.experiment_id, self.start, tags, self.name)
        target.run_ids[self.run] = made.info.run_id


@dataclass(frozen=True)
class LogBatch(Operation):
    """Log metrics, parameters and tags; MLflow drops what it has.

    Attributes:
        metrics: Of each value its name, value, time in milliseconds since 1970, and step.
        params: Parameters.
        tags: Tags.
    """

    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    kind: Literal["log batch"] = "log batch"

    def write(self, target: Target, again: bool) -> None:
        """Log them."""
        target.client.log_batch(
            target.run_id(self.run),
            [Metric(*metric) for metric in self.metrics],
            [Param(name, value) for name, value in self.params.items()],
            _tags(self.tags),
            synchronous=True,
        )


@dataclass(frozen=True)
class LogInput(Operation):
    """Log a data set, as its `to_dict` gives it, as an input; MLflow drops one that it has."""

    dataset: dict[str, str | None]
    context: str
    kind: Literal["log input"] = "log input"

    def write(self, target: Target, again: bool) -> None:
        """Log it."""
        told: dict[str, Any] = self.dataset
        logged = DatasetInput(Dataset(**told), [InputTag(MLFLOW_DATASET_CONTEXT, self.context)])
        target.client.log_inputs(target.run_id(self.run), [logged])


@dataclass(frozen=True)
class EndRun(Operation):
    """Say that the run ended as FINISHED, FAILED or KILLED, and at which millisecond since 1970."""

    status: str
    end: int
    kind: Literal["end run"] = "end run"

    def write(self, target: Target, again: bool) -> None:
        """Say it."""
        target.client.set_terminated(target.run_id(self.run), self.status, self.end)


@dataclass(frozen=True)
class Carrying(Operation):
    """An operation that carries the file or folder of a path."""

    path: str

    def send(self, target: Target, again: bool = False) -> Any:
        """Write it; a server may take long to store a file, and one that is away says nothing."""
        uri = target.destination.uri
        check_health(uri)
        try:
            with patience(_SECONDS_TO_STORE_A_FILE), explained(uri):
                return self.write(target, again)
        except ReusekitError:
            raise
        except Exception as error:  # the client of an artifact store raises whatever it likes
            raise TrackingError(
                "Expected an artifact store that takes files. Received: a refusal: "
                f"{cause_of(error, uri).rstrip('.')}. See that it can be written."
            ) from error


@dataclass(frozen=True)
class LogArtifact(Carrying):
    """Log a file as an artifact; it takes the place of one of the same name.

    Attributes:
        folder: Of the artifact store, in which it goes; None for the uppermost.
        table: Whether MLflow is to show it as a table and `mlflow.load_table` to find it.
    """

    folder: str | None = None
    table: bool = False
    kind: Literal["log artifact"] = "log artifact"

    def write(self, target: Target, again: bool) -> None:
        """Log it."""
        run_id = target.run_id(self.run)
        target.client.log_artifact(run_id, self.path, self.folder)
        if self.table:
            name = Path(self.path).name
            entry = {"path": f"{self.folder}/{name}" if self.folder else name, "type": "table"}
            tags = target.client.get_run(run_id).data.tags
            tables = json.loads(tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
            if entry not in tables:
                listed = json.dumps([*tables, entry])
                target.client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, listed)


@dataclass(frozen=True)
class SendModels(Carrying):
    """Log and register the models of a folder; see `reusekit.tracking.linked`."""

    kind: Literal["models"] = "models"

    def write(self, target: Target, again: bool) -> ModelVersion:
        """Log and register them; gives the version of the whole model."""
        return linked.send(Path(self.path), target.client, target.run_id(self.run))


_ANY: TypeAdapter[Operation] = TypeAdapter(
    Annotated[
        StartRun | LogBatch | LogInput | EndRun | LogArtifact | SendModels, Discriminator("kind")
    ]
)


def read_operation(told: Any) -> Operation:
    """Return an operation from what `dataclasses.asdict` has made of it.

    Raises:
        TrackingError: That is none.

    Example:
        >>> read_operation({"run": "a1b2", "status": "KILLED", "end": 1700, "kind": "end run"})
        EndRun(run='a1b2', status='KILLED', end=1700, kind='end run')
    """
    try:
        return _ANY.validate_python(told)
    except ValidationError as error:
        raise TrackingError(
            f"Expected an operation of a job. Received: what is none: {type(error).__name__}."
        ) from error


def _tags(tags: dict[str, str]) -> list[RunTag]:
    return [RunTag(name, value) for name, value in tags.items()]
