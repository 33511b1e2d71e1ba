"""The frame of a pipeline: its output folder, its tracker, its seed, and what took how long."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import keras
from pydantic import BaseModel

from reusekit.errors import ConfigError
from reusekit.progress import StageClock
from reusekit.settings import TrackingSettings
from reusekit.tracking import connect, pipeline_run


@dataclass(frozen=True)
class Job:
    """A running pipeline.

    Attributes:
        folder: This run's own output folder.
        tracking_uri: The tracking server or database in use.
        run_id: The parent run in MLflow.
        clock: What took how long.
    """

    folder: Path
    tracking_uri: str
    run_id: str
    clock: StageClock = field(repr=False)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Say that a stage begins, and time it."""
        return self.clock.stage(name)


@contextmanager
def start_job(
    name: str,
    output: str,
    tracking: TrackingSettings,
    seed: int,
    verbose: bool = False,
    **settings: object,
) -> Iterator[Job]:
    """Check output folder and tracker before any work, then open the parent run.

    Args:
        name: The pipeline's name.
        output: Folder under which this run gets one of its own.
        tracking: Where MLflow keeps the run.
        seed: Seeds Python, NumPy and Keras.
        verbose: Let the libraries underneath say what they do.
        **settings: What to log as the run's parameters; pydantic models open up.

    Raises:
        ConfigError: The output folder cannot be written.
        TrackingError: The tracker does not answer.
    """
    _let_talk(verbose)
    clock = StageClock()
    with clock.stage("Check tracker and output folder"):
        folder = _new_folder(Path(output), name)
        try:
            uri = connect(tracking.uri, tracking.experiment)
        except Exception:
            folder.rmdir()
            raise
    keras.utils.set_random_seed(seed)
    parameters = {
        key: value.model_dump() if isinstance(value, BaseModel) else value
        for key, value in {"seed": seed, **settings}.items()
    }
    with pipeline_run(name, parameters) as run:
        yield Job(folder, uri, run.info.run_id, clock)


def _let_talk(verbose: bool) -> None:
    """Warnings of the libraries always come through; what they do comes through where wanted."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # sixty lines for a new database
    for library in ("mlflow", "absl"):
        logging.getLogger(library).setLevel(logging.INFO if verbose else logging.WARNING)


def _new_folder(output: Path, name: str) -> Path:
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
    try:
        for suffix in ("", *(f"-{number}" for number in range(2, 100))):
            folder = output / (stem + suffix)
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                if output.is_dir():
                    continue  # a run that began in the same second has it
                raise
            return folder
    except OSError as error:
        raise ConfigError(
            f"The output folder {str(output)!r} cannot be written: {error.strerror}. "
            "Choose another with --output."
        ) from error
    raise ConfigError(f"{output} holds a hundred runs named {stem}.")
