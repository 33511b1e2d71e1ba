"""Faults in what waits for a tracking server: damaged, exchanged, deleted and foreign records."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np

from faults.files import Outside, damage
from faults.outcome import Outcome
from reusekit.errors import TrackingError
from reusekit.progress import console
from reusekit.sealed_json import checksum
from reusekit.tracking.operations import Destination, EndRun, LogArtifact, LogBatch, StartRun
from reusekit.tracking.outbox import Outbox, find_outboxes, send_outbox

TRIES = 150

_PARAMETERS = {str(number): "value" for number in range(3)}
_FILES = {"one.txt": "one", "two.txt": "two"}


def run(generator: np.random.Generator, tries: int, folder: Path) -> Iterator[Outcome]:
    """Damage copies of one outbox, and send them to a database of their own."""
    quiet, console.quiet = console.quiet, True
    try:
        database = folder / "empty.db"
        if not database.exists():  # which takes seconds to make
            mlflow.MlflowClient(f"sqlite:///{database}").search_experiments()
        for number in range(tries):
            root = folder / str(number)
            outside = Outside(root / "outside")
            shutil.copy(database, root / "runs.db")
            client = mlflow.MlflowClient(f"sqlite:///{root / 'runs.db'}")
            client.create_experiment("weak", artifact_location=str(root / "artifacts"))
            _fill(root, client)
            case, what = _damage(generator, root / "job" / "outbox", outside)
            yield _judged(case, f"{number}: {what}", root, client, outside)
            shutil.rmtree(root)
    finally:
        console.quiet = quiet


def _fill(root: Path, client: mlflow.MlflowClient) -> None:
    outbox = Outbox(root / "job" / "outbox")
    destination = Destination(client.tracking_uri, "weak")
    for name, text in _FILES.items():
        (root / "files").mkdir(exist_ok=True)
        (root / "files" / name).write_text(text)
    batches = [LogBatch("key", params={name: value}) for name, value in _PARAMETERS.items()]
    carrying = LogArtifact("key", str(root / "files"))
    start, end = StartRun("key", "job", 1, {}), EndRun("key", "FINISHED", 2)
    for operation in (start, *batches, carrying, end):
        outbox.put(operation, destination)
    outbox.release()


def _damage(generator: np.random.Generator, outbox: Path, outside: Outside) -> tuple[str, str]:
    kind = generator.choice(["record", "record", "address", "carried", "path", "stray"])
    records = sorted(outbox.glob("0*.json"))
    if kind == "path":
        return "C4", _renamed(generator, records[4], outside)
    if kind == "stray":
        (outbox / "notes.txt").write_text("mine")
        (outbox / "refused").symlink_to(outside.folder)
        return "C5", "stray file, and refused a link"
    files = {
        "record": records,
        "address": [outbox / "address.json"],
        "carried": sorted(outbox.glob("*.carried/*/*.txt")),
    }[str(kind)]
    file = files[generator.integers(len(files))]
    others = [one for one in files if one != file]
    case = {"record": "C1,C3", "address": "C2,C3", "carried": "C3"}[str(kind)]
    return case, damage(generator, file, others, outside)


def _renamed(generator: np.random.Generator, record: Path, outside: Outside) -> str:
    """Have a record name a file outside, with a checksum that fits."""
    target = outside.folder / "file"
    told = json.loads(record.read_text())
    del told["checksum"]
    path = str(
        generator.choice(
            [
                str(target),
                f"{record.stem}.carried/../../../outside/file",
                "../../outside/file",
                f"{record.stem}.carried/link",
            ]
        )
    )
    if path.endswith("link"):
        (record.with_suffix(".carried") / "link").symlink_to(target)
        told["files"]["link"] = "0" * 64
    told["operation"]["path"] = path
    record.write_text(json.dumps({**told, "checksum": checksum(told)}))
    return f"path {path}"


def _judged(
    case: str, detail: str, root: Path, client: mlflow.MlflowClient, outside: Outside
) -> Outcome:
    complaints: list[str] = []
    try:
        for uri in (None, client.tracking_uri):  # as the command says where a destination is lost
            for outbox in find_outboxes(root / "job"):
                try:
                    complaints += ["refused" for taken in send_outbox(outbox, uri) if not taken]
                except TrackingError as error:
                    complaints.append(str(error))
    except Exception as error:
        return Outcome(case, "foreign", f"{detail}: {type(error).__name__}: {error}")
    if not outside.untouched() or len([*root.glob("*.db")]) != 1:
        return Outcome(case, "outside", detail)
    (experiment,) = (one for one in client.search_experiments() if one.name == "weak")
    runs = client.search_runs([experiment.experiment_id])
    files = [path for path in (root / "artifacts").rglob("*") if path.is_file()]
    sent = {path.name: path.read_text() for path in files}
    if not sent.items() <= _FILES.items():
        return Outcome(case, "outside", f"{detail}: sent {sent}")
    if any(not run.data.params.items() <= _PARAMETERS.items() for run in runs) or len(runs) > 1:
        return Outcome(case, "wrong", detail)
    whole = len(runs) == 1 and (runs[0].data.params, sent) == (_PARAMETERS, _FILES)
    if whole and runs[0].info.status == "FINISHED":
        return Outcome(case, "right", detail)
    return Outcome(case, "refused" if complaints else "wrong", detail)
