"""A job ends what killed ones beside it have left open, and removes of them what is of no use."""

from pathlib import Path

import mlflow
import pytest
from filelock import FileLock

from reusekit.settings import TrackingSettings
from reusekit.stages.job import start_job
from reusekit.tracking.operations import Destination
from reusekit.tracking.unfinished import LOCK, mark


def folder(name: str, *files: str) -> Path:
    made = Path("runs", name)
    for file in files:
        (made / file).parent.mkdir(parents=True, exist_ok=True)
        (made / file).write_text("here")
    return made


def test_what_killed_jobs_left_is_ended_and_removed(tracking, capfd):  # faults A2
    experiment = tracking.create_experiment("weak")
    open_run = tracking.create_run(experiment, tags={"reusekit.key": "key"}).info.run_id
    dead = folder("dead", LOCK, "plan.json")
    with mark(dead, "key", Destination(mlflow.get_tracking_uri(), "weak")):
        pass
    (dead / LOCK).touch()
    purged = folder("purged", LOCK)
    with mark(purged, "other", Destination(mlflow.get_tracking_uri(), run_id="0" * 32)):
        pass
    trained = folder("trained", LOCK, "models/whole.keras")
    elsewhere = folder("elsewhere", LOCK)
    with mark(elsewhere, "key", Destination("sqlite:///elsewhere.db", "weak")):
        pass
    alive = folder("alive", LOCK, "plan.json")
    finished = folder("finished", "plan.json", "trials.csv")
    search = folder("search", "running.lock", "state.json")  # as --search.folder runs/search
    with (
        FileLock(alive / LOCK),
        start_job("finetune", "runs", TrackingSettings(), 0) as job,
    ):
        assert (job.folder / LOCK).exists()
        said = capfd.readouterr().err
        assert [path.exists() for path in (dead, purged)] == [False, False]
        assert (trained / "models" / "whole.keras").exists()
        for kept in (elsewhere, alive, finished, search):
            assert kept.exists()
    assert not job.folder.exists()  # nothing was written
    assert tracking.get_run(open_run).info.status == "KILLED"
    assert [line for line in said.splitlines() if "KILLED" in line] == [
        "runs/dead was killed: what it has left open in MLflow is ended as KILLED."
    ]
    assert not Path("elsewhere.db").exists()


@pytest.mark.parametrize("written", ["plan.json", "trials.csv"])
def test_an_interrupted_job_leaves_results_alone(tracking, written):  # faults A2
    with (
        pytest.raises(KeyboardInterrupt),
        start_job("finetune", "runs", TrackingSettings(), 0) as job,
    ):
        (job.folder / written).write_text("here")
        raise KeyboardInterrupt
    assert job.folder.exists() is (written == "trials.csv")
