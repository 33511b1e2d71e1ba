"""Writes to MLflow, as small operations that can be kept and repeated.

An operation names its run by a key that is made here, since the server that makes ids may be away.
Sent a second time, because nobody knows whether the first arrived, it changes nothing.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import (
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
)
from pydantic import TypeAdapter

from reusekit.errors import TrackingError
from reusekit.tracking import linked
from reusekit.tracking.names import KEY
from reusekit.tracking.target import Target


@dataclass(frozen=True)
class Operation:
    """Something to be written to a run.

    Attributes:
        run: The run's key.
    """

    kind: ClassVar[str]
    run: str

    def send(self, target: Target, again: bool) -> Any:
        """Write it.

        Args:
            target: Where to.
            again: Whether it may have been written already.
        """
        raise NotImplementedError


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

    kind: ClassVar[str] = "start run"
    name: str
    start: int
    tags: dict[str, str]
    parent: str | None = None
    given: str | None = None

    def send(self, target: Target, again: bool) -> None:
        """Make the run."""
        tags = {**self.tags, KEY: self.run}
        if self.given is not None:
            target.client.log_batch(self.given, tags=_tags(tags), synchronous=True)
            target.client.update_run(self.given, "RUNNING", self.name)
            target.know(self.run, self.given)
            return
        if again and target.find(self.run) is not None:
            return
        if self.parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = target.run_id(self.parent)
        made = target.client.create_run(target.experiment_id, self.start, tags, self.name)
        target.know(self.run, made.info.run_id)


@dataclass(frozen=True)
class LogBatch(Operation):
    """Log metrics, parameters and tags; MLflow drops what it has.

    Attributes:
        metrics: Of each value its name, value, time in milliseconds since 1970, and step.
        params: Parameters.
        tags: Tags.
    """

    kind: ClassVar[str] = "log batch"
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def send(self, target: Target, again: bool) -> None:
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
    """Log a data set as an input; MLflow drops one that it has.

    Attributes:
        dataset: As MLflow's `Dataset.to_dict` gives it.
        context: What it is for.
    """

    kind: ClassVar[str] = "log input"
    dataset: dict[str, str]
    context: str

    def send(self, target: Target, again: bool) -> None:
        """Log it."""
        logged = DatasetInput(
            Dataset(**self.dataset), [InputTag(MLFLOW_DATASET_CONTEXT, self.context)]
        )
        target.client.log_inputs(target.run_id(self.run), [logged])


@dataclass(frozen=True)
class EndRun(Operation):
    """Say how and when the run ended.

    Attributes:
        status: `FINISHED`, `FAILED` or `KILLED`.
        end: When, in milliseconds since 1970.
    """

    kind: ClassVar[str] = "end run"
    status: str
    end: int

    def send(self, target: Target, again: bool) -> None:
        """Say it."""
        target.client.set_terminated(target.run_id(self.run), self.status, self.end)


@dataclass(frozen=True)
class Carrying(Operation):
    """An operation that carries a file or a folder.

    Attributes:
        path: Where that lies.
    """

    path: str


@dataclass(frozen=True)
class LogArtifact(Carrying):
    """Log a file as an artifact; it takes the place of one of the same name.

    Attributes:
        folder: Of the artifact store, in which it goes; None for the uppermost.
        table: Whether MLflow is to show it as a table and `mlflow.load_table` to find it.
    """

    kind: ClassVar[str] = "log artifact"
    folder: str | None = None
    table: bool = False

    def send(self, target: Target, again: bool) -> None:
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

    kind: ClassVar[str] = "models"

    def send(self, target: Target, again: bool) -> ModelVersion:
        """Log and register them; gives the version of the whole model."""
        return linked.send(Path(self.path), target.client, target.run_id(self.run))


_KINDS = {
    operation.kind: operation
    for operation in (StartRun, LogBatch, LogInput, EndRun, LogArtifact, SendModels)
}


_READERS = {kind: TypeAdapter(operation) for kind, operation in _KINDS.items()}


def to_dict(operation: Operation) -> dict[str, Any]:
    """Return an operation as it is kept."""
    return {"kind": operation.kind, **asdict(operation)}


def from_dict(told: Any) -> Operation:
    """Return an operation from what was kept.

    Raises:
        TrackingError: That is none.

    Example:
        >>> from_dict(to_dict(EndRun("a1b2", "FINISHED", 1700000000000)))
        EndRun(run='a1b2', status='FINISHED', end=1700000000000)
    """
    try:
        values = dict(told)
        kind = values.pop("kind")
        _KINDS[kind](**values)  # which refuses what it does not know
        return _READERS[kind].validate_python(values)
    except (ValueError, KeyError, TypeError) as error:
        raise TrackingError(f"This is no operation: {type(error).__name__}.") from error


def _tags(tags: dict[str, str]) -> list[RunTag]:
    return [RunTag(name, value) for name, value in tags.items()]
