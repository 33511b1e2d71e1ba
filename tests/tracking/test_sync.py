"""`reusekit sync` sends what jobs have kept: in order, once, and whenever it is killed again."""

import errno
import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
from tracking.servers import kill_myself, killed
from tracking.small_job import run_job

from reusekit.cli import sync
from reusekit.errors import TrackingError
from reusekit.launch import launch_one_of
from reusekit.tracking import log_metrics, log_params, pipeline_run, step_run
from reusekit.tracking.operations import EndRun
from reusekit.tracking.outbox import Outbox, find_outboxes, send_outbox

JOB = Path("runs", "20260101-job")


@pytest.fixture
def run_sync(capsys):
    """The command: its exit code, its output, and its error."""

    def run(*words: str) -> tuple[int, str, str]:
        code = 0
        capsys.readouterr()
        try:
            launch_one_of({"sync": sync}, ["sync", *words])
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def two_waiting(remote, experiment):
    """A small job whose server went away: a metric and its end wait."""
    with pipeline_run("job", experiment, {"a": 1}, JOB / "outbox"):
        remote.fault = "away"
        log_metrics({"loss": 1.0})
    remote.fault = None
    assert len(Outbox(JOB / "outbox").records()) == 2


def is_whole(there) -> bool:
    """Return whether the small job is there, once, with all of it."""
    (run,) = there()
    return (run["status"], run["metrics"]) == ("FINISHED", {"loss": [(0, "1.0")]})


def test_the_command_sends_all_that_waits(there, two_waiting, run_sync):
    code, out, err = run_sync()
    assert (code, err) == (0, "")
    assert out == f"{JOB / 'outbox'}: sent 2, refused 0, left 0\n"
    assert is_whole(there)
    assert run_sync("runs") == (0, "Nothing waits in runs.\n", "")
    assert list(JOB.iterdir()) == []


def test_a_server_that_is_still_away_is_one_line_and_nothing_is_lost(
    there, two_waiting, run_sync, remote
):
    remote.fault = "away"
    code, out, err = run_sync(str(JOB))
    assert code == 2
    assert "sent 0, refused 0, left 2" in out
    assert err.startswith("error: Expected a tracking server")
    assert err.count("\n") == 1
    assert remote.uri in err
    remote.fault = None
    assert run_sync(str(JOB))[0] == 0
    assert is_whole(there)


def test_another_address_can_be_given(there, two_waiting, run_sync, remote, server):
    remote.fault = "away"
    assert run_sync("runs", f"--uri={server.uri}")[0] == 0
    assert is_whole(there)


def test_killed_at_any_moment_it_can_be_run_again(there, remote, everything, experiment):
    outbox = JOB / "outbox"
    remote.fault = "away"
    run_job(outbox, experiment=experiment)
    remote.fault = None

    def unacknowledged_after(records: int) -> None:
        """Die when the server has the record, but the record is there."""
        unlink, removed = Path.unlink, []

        def watched(file: Path, *words, **options) -> None:
            if file.parent == outbox and file.suffix == ".json":
                removed.append(file)
                if len(removed) > records:
                    kill_myself()
            unlink(file, *words, **options)

        Path.unlink = watched
        for _ in send_outbox(Outbox(outbox)):
            pass

    left = len(Outbox(outbox).records())
    while left > 5:
        killed(lambda: unacknowledged_after(4))
        assert len(Outbox(outbox).records()) == left - 4
        left -= 4
    assert all(send_outbox(Outbox(outbox)))
    assert there() == everything


def test_a_job_that_was_killed_loses_nothing_that_it_had_written(
    there, remote, everything, experiment, run_sync
):
    def job() -> None:
        def happens(moment: str) -> None:
            if moment == "epoch 1":
                remote.fail_from_another_process("away")
            if moment == "end":
                kill_myself()

        run_job(JOB / "outbox", happens, experiment)

    killed(job)
    remote.fault = None
    assert run_sync()[0] == 0
    left = there()
    (job,) = (told for told in left if told["name"] == "job")
    assert job["status"] == "KILLED"
    job["status"] = "FINISHED"
    assert left == everything


def on_disk() -> int:
    """The bytes of an outbox in blocks, as a file system counts them."""
    files = [path for path in (JOB / "outbox").rglob("*") if path.is_file()]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)


@pytest.mark.parametrize(("room", "status"), [(64 * 1024, "FAILED"), (12 * 1024, "KILLED")])
def test_a_full_disk_ends_in_ended_runs(
    room, status, there, remote, experiment, run_sync, monkeypatch
):  # faults F1
    fsync = os.fsync

    def fill(file: int) -> None:
        if on_disk() > room:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with (
        pytest.raises(TrackingError, match="No space left"),
        pipeline_run("job", experiment, {"a": 1}, JOB / "outbox"),
        step_run("phase", "phase"),
    ):
        remote.fault = "away"
        monkeypatch.setattr(os, "fsync", fill)
        for step in range(100):
            log_metrics({"loss": 1.0}, step)
    waiting = [json.loads(path.read_text()) for path in Outbox(JOB / "outbox").records()]
    ends = [one["operation"] for one in waiting if one["operation"]["kind"] == "end run"]
    assert [one["status"] for one in ends] == ["FAILED", "FAILED"] * (status == "FAILED")
    monkeypatch.setattr(os, "fsync", fsync)
    remote.fault = None
    assert run_sync()[0] == 0
    assert [(run["name"], run["status"]) for run in there()] == [("job", status), ("phase", status)]
    assert list(JOB.iterdir()) == []


@pytest.fixture
def ctrl_c():
    """Ctrl-C as a person has it; what a shell has put in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("away", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_runs_as_killed(
    number, away, there, remote, experiment, run_sync, ctrl_c
):  # faults A2
    with (
        pytest.raises(KeyboardInterrupt),
        pipeline_run("job", experiment, {}, JOB / "outbox"),
        step_run("phase", "phase"),
    ):
        if away:
            remote.fault = "away"
        with suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        raise ValueError("Unbatching a tensor")  # as TensorFlow may make of it
    remote.fault = None
    run_sync()
    assert [(run["name"], run["status"]) for run in there()] == [
        ("job", "KILLED"),
        ("phase", "KILLED"),
    ]
    assert list(JOB.iterdir()) == []


def test_what_is_in_use_is_left_alone(there, two_waiting, run_sync):
    other = Outbox(JOB / "outbox")
    other.hold()
    code, out, _ = run_sync()
    assert code == 0
    assert "left alone" in out
    assert len(other.records()) == 2
    other.release()
    assert run_sync()[0] == 0
    assert is_whole(there)


def test_the_outbox_of_a_running_job_is_left_alone(remote, experiment, run_sync):
    with pipeline_run("job", experiment, {}, JOB / "outbox"):
        remote.fault = "away"
        log_metrics({"loss": 1.0})
        code, out, _ = run_sync()
        assert code == 0
        assert "left alone, since its job still runs" in out
        remote.fault = None


def test_what_is_refused_is_set_aside_and_keeps_up_nothing(
    there, remote, experiment, run_sync, tmp_path
):
    with pipeline_run("job", experiment, {"a": 1}, JOB / "outbox"):
        remote.fault = "away"
        log_params({"a": 2})
        log_metrics({"loss": 1.0})
    remote.fault = None
    (JOB / "outbox" / "00000002.json").write_text("{}")  # the metric
    code, out, err = run_sync()
    assert code == 2
    assert "refused 2, left 0" in out
    assert "refused" in err.splitlines()[-1]
    refused = JOB / "outbox" / "refused"
    assert {file.name for file in refused.iterdir()} == {
        "00000001.json", "00000001.txt", "00000002.json", "00000002.txt",
    }  # fmt: skip
    assert "'a'" in (refused / "00000001.txt").read_text()
    (run,) = there()
    assert (run["status"], run["params"]) == ("FINISHED", {"a": "1"})
    assert find_outboxes(Path("runs")) == []
    outbox = Outbox(JOB / "outbox")
    outbox.put(EndRun("a run", "FINISHED", 0), outbox.destination())
    assert [record.name for record in outbox.records()] == ["00000004.json"]
    outbox.release()


def test_no_password_is_kept(remote, experiment, run_sync, monkeypatch):
    whole = remote.uri.replace("//", "//me:secret@")
    mlflow.set_tracking_uri(whole)
    with pipeline_run("job", experiment, {}, JOB / "outbox"):
        remote.fault = "away"
        log_metrics({"loss": 1.0})
    remote.fault = None
    kept = [file.read_text() for file in JOB.rglob("*.*") if file.is_file()]
    assert any("***" in text for text in kept)
    assert not any("secret" in text for text in kept)
    mlflow.set_tracking_uri(remote.uri)
    code, _, err = run_sync()
    assert code == 2
    assert "--uri" in err
    mlflow.set_tracking_uri(whole)
    assert run_sync()[0] == 0


def test_a_folder_that_is_not_there_is_named(run_sync, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run_sync("rnus")
    assert (code, os.listdir()) == (2, [])
    assert "Received: 'rnus', which is no folder" in err
