"""Kills at random moments: of a search in the library, and of a whole job; then on to the end.

Each try is a chain: the same command is started, and after a while that is drawn KILL, TERM or INT
is sent to it, one to four times; then it runs to its end. What it finds must be what it finds in
peace.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from faults.outcome import Outcome

TRIES = 10
_EVERY = 3  # so many tries are one of a job, which takes longer, and the others of the library

_ROOT = Path(__file__).parents[2]
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_LIBRARY = (sys.executable, "-m", "faults.kills")
_JOB = (
    sys.executable,
    str(_ROOT / "pipelines" / "cut_search.py"),
    f"--config={_ROOT / 'configs' / 'digits.yaml'}",
    "--data.examples_per_class=5",
    "--search.max_trials=6",
    "--search.max_cuts=2",
    "--search.epochs=8",
    "--search.store=store",
    "--finetune.epochs=2",
    "--baselines.from_scratch=false",
    "--baselines.linear=false",
    "--tracking.uri=sqlite:///runs.db",
)


@dataclass
class Kind:
    """A command that is killed.

    Attributes:
        case: The case it stands for.
        command: The command line.
        seconds: How long it takes in peace.
        found: What it finds in peace.
    """

    case: str
    command: Sequence[str]
    seconds: float = 0.0
    found: Any = None


def run(generator: np.random.Generator, tries: int, folder: Path) -> Iterator[Outcome]:
    """Kill chains of processes."""
    # Where a shell has put this in the background, INT is ignored, here and in what is started.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    library, job = Kind("A library", _LIBRARY), Kind("A1,A2 job", _JOB)
    for number in range(tries):
        kind = job if number % _EVERY == _EVERY - 1 else library
        if kind.found is None:
            peace = folder / kind.case
            began = time.monotonic()
            done = _start(kind, peace)
            said = done.communicate()[1]
            if done.returncode != 0:
                yield Outcome(kind.case, "foreign", f"in peace: {said[-300:]}")
                return
            kind.seconds, kind.found = time.monotonic() - began, _found(peace)
        yield _chain(generator, kind, folder / str(number), number)


def _chain(generator: np.random.Generator, kind: Kind, folder: Path, number: int) -> Outcome:
    sent: list[str] = []
    for _ in range(generator.integers(1, 5)):
        which = _SIGNALS[generator.integers(len(_SIGNALS))]
        process = _start(kind, folder)
        try:
            process.wait(generator.uniform(0, kind.seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(which)
        said = process.communicate()[1]
        sent.append(f"{which.name} {process.returncode}")
        if process.returncode == 2 or ("Traceback" in said and process.returncode > 0):
            return Outcome(kind.case, "foreign", f"{number} {sent}: {said[-300:]}")
        if "KILL" not in " ".join(sent) and _running(folder):
            return Outcome(kind.case, "running", f"{number} {sent}")
        if process.returncode == 0:  # it was quicker
            break
    last = _start(kind, folder)
    said = last.communicate()[1]
    detail = f"{number} {sent}"
    if last.returncode != 0:
        return Outcome(kind.case, "foreign", f"{detail}: {said[-300:]}")
    if _running(folder):
        return Outcome(kind.case, "running", detail)
    if _found(folder) != kind.found:
        return Outcome(kind.case, "wrong", f"{detail}: other results")
    left = _left(folder)
    return Outcome(kind.case, "wrong" if left else "right", f"{detail} {left or ''}")


def _start(kind: Kind, folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    path = os.pathsep.join([str(_ROOT), str(_ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        kind.command,
        cwd=folder,
        env=os.environ | {"CI": "true", "PYTHONPATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _found(folder: Path) -> Any:
    """Return a search's trials without seconds, and the digest of the best one."""
    (file,) = folder.glob("**/state.json")
    records = json.loads(file.read_text())["records"]
    for record in records:
        record["fit"].pop("seconds")
        record.pop("weights")  # the file holds when it was written
    best = folder / "best.json"
    return records, best.read_text() if best.exists() else None


def _running(folder: Path) -> list[str]:
    """Return the names of the runs that are open in a job's database."""
    if not (folder / "runs.db").exists():
        return []
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder / 'runs.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, "attributes.status = 'RUNNING'")
    return [run.info.run_name for run in runs]


def _left(folder: Path) -> list[str]:
    """Return the files that a killed process has left behind."""
    patterns = (
        "*.part",
        "part-*",
        "drafts/*",
        "removed/*",
        "outbox",
        "*.run.json",
        "runs/*/*.lock",
    )
    left = [path for pattern in patterns for path in folder.rglob(pattern)]
    jobs = [path for path in folder.glob("runs/2*") if not any(path.rglob("*.keras"))]
    finished = [path for path in jobs if (path / "trials.csv").exists()]
    return [str(path.relative_to(folder)) for path in (*left, *set(jobs).difference(finished))]


def _search() -> None:
    """Search in the current folder, and say what the best model is."""
    import reusekit as rk
    from reusekit.signals import interruptible

    with interruptible():
        size = rk.data.Treatment(image_size=(32, 32))
        train = rk.data.load("sklearn_digits", "train[:60]", treatment=size)
        validation = rk.data.load("sklearn_digits", "validation[:40]", treatment=size)
        space = rk.SearchSpace(
            cuts=["stem_out", "block7_out"],
            units=[0],
            dropout=[0.0],
            learning_rates=[0.01, 0.03],
            frozen_up_to=["block7_out", "block4_out"],
        )
        search = rk.CutSearch(
            rk.load_backbone("reusekit/glyphnet").model,
            train,
            validation,
            space,
            rk.SearchConfig(epochs=4, ask=2),
            folder="search",
            store=rk.FeatureStore("store"),
        )
        search.run()
        weights = b"".join(array.tobytes() for array in search.best_model().get_weights())
        Path("best.json").write_text(hashlib.sha256(weights).hexdigest())


if __name__ == "__main__":
    try:
        _search()
    except KeyboardInterrupt:
        sys.exit(130)
