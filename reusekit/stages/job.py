"""The frame of a pipeline: its output folder, its tracker, its seed and its clock."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal

import keras
import yaml
from filelock import Timeout
from pydantic import BaseModel
from rich.markup import escape

from reusekit.arguments import AnyPath, check, expanded
from reusekit.errors import ConfigError, TrackingError
from reusekit.progress import StageClock, bars_wanted, console, say
from reusekit.settings import BackboneSettings, DataSettings, TrackingSettings
from reusekit.signals import interruptible
from reusekit.stages.inputs import Splits, draw_augmented
from reusekit.startup import BEGAN, is_no_retracing
from reusekit.tracking import connect, log_artifact, log_data, pipeline_run
from reusekit.tracking.outbox import Outbox
from reusekit.tracking.unfinished import end_killed, has_open_runs, is_marked, living

# This module is imported last of what a pipeline needs.
_IMPORT_SECONDS = perf_counter() - BEGAN


@dataclass(frozen=True)
class Job:
    """A running pipeline.

    Attributes:
        name: The pipeline's name.
        folder: This run's own output folder.
        tracking_uri: The tracking server or database in use.
        experiment: The experiment that its run belongs to; None for MLflow's own choice.
        seed: What all randomness starts from.
        clock: The seconds of each stage.
        settings: What `record` was told, by name.
    """

    name: str
    folder: Path
    tracking_uri: str
    experiment: str | None
    seed: int
    clock: StageClock = field(repr=False)
    settings: dict[str, object] = field(default_factory=dict, repr=False)
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say that a stage begins, and time it."""
        with interruptible(), self.clock.stage(name):
            yield

    def record(self, splits: Splits, **settings: object) -> None:
        """Open the parent run in MLflow, with its settings and its data; the job's end closes it.

        Where training examples are augmented, some of them are drawn in `augmented.png`.

        Call it once everything that a person can get wrong has been looked at, so that a mistake
        leaves nothing behind. Where the tracking server goes away from here on, the job goes on,
        and what could not be sent is kept in the folder `outbox` of its output.

        Args:
            splits: The data, recorded as inputs.
            **settings: What to log as parameters; pydantic models, and lists of such, open up.
        """
        groups = {"seed": self.seed, **settings}
        parameters, written = (
            {key: _opened(value, mode) for key, value in groups.items()}
            for mode in ("python", "json")
        )
        outbox = self.folder / "outbox"
        self.settings.update(settings)
        told: Any = settings.get("backbones", [settings.get("backbone")])
        several = [one.source for one in told if isinstance(one, BackboneSettings)]
        source = f" {', '.join(several)}" if several else ""
        name = f"{self.name}{source} on {splits.train.name}"
        self._open.enter_context(pipeline_run(name, self.experiment, parameters, outbox))
        with TemporaryDirectory() as scratch:
            config = Path(scratch, "config.yaml")
            config.write_text(yaml.safe_dump(written, sort_keys=False, allow_unicode=True))
            log_artifact(config)
        if splits.train.augmentation is not None:
            file = self.folder / "augmented.png"
            draw_augmented(splits.train, self.seed).savefig(file, dpi=120)
            log_artifact(file)
        log_data(splits.train, "training")
        log_data(splits.validation, "validation")
        log_data(splits.test, "test")


def _opened(value: object, mode: Literal["python", "json"]) -> object:
    """Return settings as plain data: a list of them by numbers, as parameters have it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode=mode)
    if isinstance(value, list):
        found = [_opened(one, mode) for one in value]
        return found if mode == "json" else {str(place): one for place, one in enumerate(found)}
    return value


@contextmanager
def start_job(
    name: str,
    output: str,
    tracking: TrackingSettings,
    seed: int,
    verbose: bool = False,
    data: DataSettings | None = None,
) -> Iterator[Job]:
    """Check the output folder and the tracker before any work, and seed everything.

    Args:
        name: The pipeline's name.
        output: Folder under which this run gets one of its own.
        tracking: Where MLflow keeps the run.
        seed: Seeds Python, NumPy and Keras.
        verbose: Let the libraries underneath say what they do.
        data: The data set, which is named before anything else is printed.

    Raises:
        ConfigError: The output folder cannot be written.
        TrackingError: The tracker does not answer.
    """
    if data is not None:
        console.print(f"Data set [bold]{escape(data.source)}[/bold]", soft_wrap=True)
    _let_talk(verbose)
    root = expanded(output, ConfigError)
    had_output = root.is_dir()
    folder = _new_folder(root, name)
    clock = StageClock()
    clock.seconds["Import the libraries"] = _IMPORT_SECONDS
    try:
        with interruptible(), living(folder):
            with clock.stage("Ask the tracker"):
                uri = connect(tracking.uri, tracking.model)
                _end_killed_jobs(folder, uri)
            keras.utils.set_random_seed(seed)
            job = Job(name, folder, uri, tracking.experiment, seed, clock)
            with job._open:
                yield job
    except KeyboardInterrupt:  # as the next job does for one that was killed
        if not _is_of_use(folder):
            shutil.rmtree(folder)
        raise
    finally:
        for made in (folder,) if had_output else (folder, folder.parent):
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()


def _end_killed_jobs(own: Path, uri: str) -> None:
    """End the runs of jobs beside this one that were killed, and remove what is of no more use.

    Records that could not be sent are left to `reusekit sync`.
    """
    for folder in sorted(own.parent.iterdir()):
        if folder == own or not is_marked(folder) or Outbox(folder / "outbox").waits():
            continue
        with suppress(Timeout, OSError), living(folder):  # else it lives, or is another user's
            try:
                ended = end_killed(folder, uri)
            except TrackingError as error:
                say(f"warning: {folder} was killed. {error}")
                continue
            if ended:
                say(f"{folder} was killed: what it has left open in MLflow is ended as KILLED.")
            if not _is_of_use(folder):
                shutil.rmtree(folder)


def _is_of_use(folder: Path) -> bool:
    """Look in the folder of an ended job for what is to be sent, for models and for results."""
    waits = Outbox(folder / "outbox").waits() or has_open_runs(folder)
    return waits or any(one for kind in ("*.keras", "*.csv") for one in folder.rglob(kind))


def _let_talk(verbose: bool) -> None:
    """Let warnings of the libraries through, and their other messages where wanted."""
    logging.getLogger("tensorflow").addFilter(is_no_retracing)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # sixty lines for a new database
    if not bars_wanted():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for library in ("mlflow", "absl"):
        logging.getLogger(library).setLevel(logging.INFO if verbose else logging.WARNING)


def _new_folder(output: Path, name: str) -> Path:
    check(AnyPath, str(output), "output", ConfigError)
    folder = output / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{name}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"Expected an output folder that can be written. Received: {str(output)!r}: "
            f"{error.strerror}. Choose another with --output."
        ) from error
    return folder
