"""Runs that read well: one parent, a nested run for each trial, phase and evaluation."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import mlflow
from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME
from mlflow.exceptions import MlflowException
from mlflow.utils.autologging_utils import disable_autologging
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from reusekit.errors import TrackingError
from reusekit.search import TrialRecord
from reusekit.secrets import shown
from reusekit.signals import deferred, interruptible
from reusekit.tracking.log import log_history, log_params, now
from reusekit.tracking.names import KIND, context_tags
from reusekit.tracking.network import ServerAwayError, explained, is_away, patience
from reusekit.tracking.operations import Destination, EndRun, StartRun, Target
from reusekit.tracking.outbox import Outbox
from reusekit.tracking.recorder import Recorder, current, recording_to
from reusekit.tracking.server import check_artifacts
from reusekit.tracking.unfinished import end_orphans, mark, process_tags

RESUMED = "reusekit.resumed"
CAUSE = "reusekit.cause"

_LONGEST = 5000  # characters of a tag that every store of MLflow takes
_UNCHOSEN = "0"  # the id of MLflow's own default
_GIVEN = "MLFLOW_RUN_ID"  # of the environment: the run that `mlflow run` has opened already


@dataclass
class Step:
    """A nested run that is being written, and how it ends unless an error or a signal ends it."""

    status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED"


@contextmanager
def pipeline_run(
    name: str,
    experiment: str | None,
    parameters: Mapping[str, Any],
    outbox: Path | None = None,
) -> Iterator[None]:
    """Open the parent run of a pipeline, in which everything else is nested.

    Where a run is active already, this one is nested in that. `mlflow.autolog` is off in it, since
    everything is logged here.

    It is MLflow's active run, too, so that MLflow's own functions can be called in it. These know
    of no outbox: while the server is away, they fail.

    An interrupted run ends as `KILLED`. A process that dies cannot say so: the next pipeline in the
    experiment on its machine ends what it has left open, and with an outbox, whoever runs beside
    it next, or sends it.

    Args:
        name: The run's name.
        experiment: The experiment it belongs to, made where it does not exist; None for that of the
            active run, else the one that MLflow was told of, else `reusekit`.
        parameters: The pipeline's settings, nested as they are; logged with dotted names.
        outbox: Folder for what cannot be sent because the server has gone away; without one, that
            is an error.

    Raises:
        TrackingError: The experiment cannot be used, since it has been deleted; or files cannot be
            stored.
    """
    outer = _outer_run()
    given = None if outer else os.environ.pop(_GIVEN, None)
    if experiment is None and not (given or outer):
        experiment = _current_experiment()
    of = given or (outer if experiment is None else None)
    destination = Destination(mlflow.get_tracking_uri(), experiment, of)
    recorder = Recorder(destination, None if outbox is None else Outbox(outbox))
    key, step = uuid4().hex, Step()
    tags = ({} if given else context_tags()) | process_tags() | {KIND: "pipeline"}
    if outer:
        tags[MLFLOW_PARENT_RUN_ID] = outer
    with suppress(ServerAwayError):
        check_artifacts(recorder.target)
        end_orphans(recorder.target)
    before = MLFLOW_EXPERIMENT_ID.get_raw()
    start = StartRun(key, name, now(), tags, given=given)
    with ExitStack() as cleanup:
        if outbox is not None:
            file = cleanup.enter_context(mark(outbox.parent, key, destination))
            cleanup.callback(lambda: None if recorder.open else file.unlink(missing_ok=True))
        cleanup.callback(recorder.close)
        cleanup.callback(lambda: _deactivate(destination.uri, step.status, outer, before))
        cleanup.enter_context(disable_autologging())
        with _run(recorder, start, step):
            _activate(recorder.target.run_ids.get(key), recorder.target)
            log_params(dotted(parameters))
            yield


@contextmanager
def step_run(
    name: str,
    kind: Literal["trial", "phase", "evaluation"],
    parameters: Mapping[str, Any] = {},
    tags: Mapping[str, str] = {},
    seconds: float = 0,
) -> Iterator[Step]:
    """Open a nested run for one trial, phase or evaluation; its kind is in a tag.

    Args:
        name: The run's name.
        kind: Its purpose.
        parameters: Logged as they are.
        tags: Further tags to find it by.
        seconds: The time that it has taken already, where it is logged once it is over.

    Yields:
        The step, whose status can be set.
    """
    outer = current()
    recorder, key, step = outer.recorder, uuid4().hex, Step()
    tags = {**context_tags(), KIND: kind, **tags}
    began = now() - round(1000 * seconds)
    start = StartRun(key, name, began, tags, parent=outer.run)
    with _run(recorder, start, step):
        if parameters:
            log_params(parameters)
        yield step


def log_trial(record: TrialRecord, resumed: bool = False) -> None:
    """Log a finished trial as a nested run of the run that is written to.

    Its specification becomes parameters; its history, the metrics of its best epoch, the seconds it
    took and the sizes of its whole model become metrics. A trial that failed, or whose model is
    over a limit, is a failed run with the cause in the tag `reusekit.cause`.

    Args:
        record: The trial.
        resumed: Whether it ran in an earlier process; said in the tag `reusekit.resumed`.
    """
    spec = {name: value for name, value in record.spec.to_dict().items() if value is not None}
    tags = {RESUMED: str(resumed).lower()}
    if record.error is not None:
        tags[CAUSE] = record.error[:_LONGEST]
    name = f"trial {record.number:02d} {record.cut}"
    seconds = 0 if record.fit is None else record.fit.seconds
    with step_run(name, "trial", spec, tags, seconds) as step:
        if record.fit is None:
            step.status = "FAILED"
            return
        best = {
            f"best_{metric}": value
            for metric, value in record.metrics.items()
            if metric.startswith("val_")
        }
        costs = {
            # By the names that they have on logged models.
            "parameters.total": record.sizes.parameters,
            "parameters.trainable": record.trained,
            "flops": record.sizes.flops,
            "bytes": record.sizes.bytes,
            "seconds": seconds,
        }
        log_history(record.fit.history, best | costs)


@contextmanager
def _run(recorder: Recorder, start: StartRun, step: Step) -> Iterator[None]:
    """Begin a run that is written to in the block, and say at the end how it ended."""
    begun = False
    try:
        with interruptible(), recording_to(recorder, start.run):
            with deferred():
                recorder.submit(start)
                begun = True
            yield
    except BaseException as error:
        step.status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        raise
    finally:
        if begun:
            with deferred():
                recorder.submit(EndRun(start.run, step.status, now()))


def _activate(run_id: str | None, target: Target) -> None:
    """Make the run MLflow's active one, if the server has it already and is not away."""
    if run_id is None:
        return
    # Where the server goes away in this moment, the next operation says so.
    with suppress(ServerAwayError), patience(), explained(target.destination.uri):
        mlflow.set_experiment(experiment_id=target.experiment_id)
        mlflow.start_run(run_id=run_id, nested=True)


def _deactivate(uri: str, status: str, outer: str | None, experiment: str | None) -> None:
    """End the active runs of MLflow: the parent, and those left open in it.

    MLflow forgets a run before it asks the server, so that this works without one, too. The run and
    the experiment that were active before are so again.
    """
    while (run := mlflow.active_run()) is not None and run.info.run_id != outer:
        with suppress(TrackingError), patience(1), explained(uri):
            mlflow.end_run(status)
    if experiment is None:
        MLFLOW_EXPERIMENT_ID.unset()
    elif experiment != MLFLOW_EXPERIMENT_ID.get_raw():
        with suppress(TrackingError), patience(1), explained(uri):
            mlflow.set_experiment(experiment_id=experiment)


def _outer_run() -> str | None:
    """Return the caller's active run, if it is one of the server in use."""
    active = mlflow.active_run()
    if active is None:
        return None
    try:
        with patience():
            return mlflow.get_run(active.info.run_id).info.run_id
    except MlflowException as error:
        if is_away(error):
            return active.info.run_id
        raise TrackingError(
            f"Expected an active run of {shown(mlflow.get_tracking_uri())}. Received: "
            f"{active.info.run_id}, which is not one of it. End it first: mlflow.end_run()."
        ) from error


def _current_experiment() -> str:
    """Return the name of the experiment that `mlflow.set_experiment` or the environment chose."""
    chosen = MLFLOW_EXPERIMENT_ID.get()  # by set_experiment, too
    if chosen and chosen != _UNCHOSEN:
        try:
            with patience(), explained(mlflow.get_tracking_uri()):
                return mlflow.get_experiment(chosen).name
        except ServerAwayError:
            pass
        except TrackingError as error:
            raise TrackingError(
                f"{error} Set MLFLOW_EXPERIMENT_ID to an experiment that can be used, or name one "
                "with --tracking.experiment."
            ) from error
    return MLFLOW_EXPERIMENT_NAME.get() or "reusekit"


def dotted(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level with dotted names.

    Example:
        >>> dotted({"data": {"name": "mnist"}, "seed": 1})
        {'data.name': 'mnist', 'seed': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
