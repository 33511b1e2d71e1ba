"""Records in an outbox: sent as they were put there, or said to be damaged; nothing else is."""

import json
import os
import shutil
import stat
from pathlib import Path

import mlflow
import pytest

from reusekit.cli import sync
from reusekit.launch import launch_one_of
from reusekit.sealed_json import checksum
from reusekit.tracking.operations import Destination, EndRun, LogArtifact, LogBatch, StartRun
from reusekit.tracking.outbox import Outbox
from reusekit.tracking.unfinished import end_killed, mark

OUTBOX = Path("runs", "job", "outbox")
PARAMETERS = {str(number): "value" for number in range(3)}


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
def outbox(tracking, tmp_path):
    """Six records that wait for a database: a run, three parameters, a folder of files, its end."""
    outbox = Outbox(OUTBOX)
    destination = Destination(mlflow.get_tracking_uri(), "weak")
    files = tmp_path / "files"
    files.mkdir()
    for name in ("one.txt", "two.txt"):
        (files / name).write_text(name)
    outbox.put(StartRun("key", "job", 1, {}), destination)
    for name, value in PARAMETERS.items():
        outbox.put(LogBatch("key", params={name: value}), destination)
    outbox.put(LogArtifact("key", str(files)), destination)
    outbox.put(EndRun("key", "FINISHED", 2), destination)
    outbox.release()
    return outbox


def arrived(tracking):
    """The run as it is in the database: its parameters, its files and its end."""
    experiment = tracking.get_experiment_by_name("weak")
    runs = [] if experiment is None else tracking.search_runs([experiment.experiment_id])
    if not runs:
        return None
    (run,) = runs
    files = {Path(one.path).name for one in tracking.list_artifacts(run.info.run_id, "files")}
    return run.data.params, files, run.info.status


WHOLE = (PARAMETERS, {"one.txt", "two.txt"}, "FINISHED")


def record(number):
    return OUTBOX / f"{number:08d}.json"


def resealed(number, change):
    """A record altered on purpose, with a checksum that fits."""
    told = json.loads(record(number).read_text())
    del told["checksum"]
    change(told)
    record(number).write_text(json.dumps({**told, "checksum": checksum(told)}))


def test_what_was_not_altered_is_sent(outbox, tracking, run_sync):
    assert run_sync()[0] == 0
    assert arrived(tracking) == WHOLE
    assert not OUTBOX.exists()


def damage(content):
    def alter(file):
        file.unlink()
        if content == "folder":
            file.mkdir()
        elif content == "link":
            file.symlink_to(record(4).absolute())
        else:
            file.write_bytes(content)

    return alter


def alter_digit(file):
    file.write_text(file.read_text().replace('"1": "value"', '"1": "valve"'))


def exchange(file):
    shutil.copy(record(4), file)


@pytest.mark.parametrize(
    "alter",
    [
        damage(b""), damage(b"\xff\xfe"), damage(b"[]"), damage(b"null"), damage(b"{}"),
        damage(b"[" * 100_000), damage("folder"), damage("link"), alter_digit, exchange,
    ],
)  # fmt: skip
def test_a_damaged_record_is_set_aside_and_the_others_are_sent(
    alter, outbox, tracking, run_sync
):  # faults C1, C3
    alter(record(3))
    code, out, err = run_sync()
    assert code == 2
    assert "sent 5, refused 1, left 0" in out
    assert "is damaged" in err
    assert arrived(tracking) == ({"0": "value", "2": "value"}, *WHOLE[1:])
    assert (OUTBOX / "refused" / "00000003.txt").exists()
    assert run_sync() == (0, "Nothing waits in runs.\n", "")


@pytest.mark.parametrize("numbers", [[2], [4], [6], [1], [3, 4], [1, 2, 3, 4, 5, 6]])
def test_a_record_that_is_gone_is_missed(numbers, outbox, tracking, run_sync):  # faults C3
    for number in numbers:
        record(number).unlink()
    code, out, err = run_sync()
    assert code == 2
    assert f"Record {numbers[0]} of 6 is gone" in err
    if 1 not in numbers:
        assert f"sent {6 - len(numbers)}, refused {len(numbers)}, left 0" in out
        kept = {name: v for name, v in PARAMETERS.items() if int(name) + 2 not in numbers}
        assert arrived(tracking)[0] == kept
    assert run_sync()[0] == 0  # said once


@pytest.mark.parametrize("how", ["gone", "altered", "none", "folder", "loop"])
def test_a_lost_address_is_asked_for(how, outbox, tracking, run_sync):  # faults C2, C3
    file = OUTBOX / "address.json"
    text = file.read_text()
    file.unlink()
    if how == "altered":
        file.write_text(text.replace("mlflow.db", "other.db"))
    elif how == "none":
        file.write_bytes(b"\xff")
    elif how == "folder":
        file.mkdir()
    elif how == "loop":
        file.symlink_to(file.absolute())
    code, out, err = run_sync()
    assert code == 2
    assert "sent 0, refused 0, left 6" in out
    assert "--uri" in err
    assert not list(Path().rglob("other.db"))
    assert run_sync("runs", f"--uri={mlflow.get_tracking_uri()}")[0] == 0
    assert arrived(tracking) == WHOLE


def test_a_gap_is_seen_where_the_count_is_lost(outbox, tracking, run_sync):  # faults C2, C3
    (OUTBOX / "address.json").unlink()
    record(3).unlink()
    code, _, err = run_sync("runs", f"--uri={mlflow.get_tracking_uri()}")
    assert code == 2
    assert "Record 3 of 6 is gone" in err


@pytest.mark.parametrize("how", ["altered", "more", "fewer", "link", "gone"])
def test_altered_files_are_not_sent(how, outbox, tracking, run_sync, tmp_path):  # faults C3, C4
    carried = OUTBOX / "00000005.carried" / "files"
    if how == "altered":
        (carried / "one.txt").write_text("two.txt")
    elif how == "more":
        (carried / "three.txt").write_text("three")
    elif how == "fewer":
        (carried / "one.txt").unlink()
    elif how == "gone":
        shutil.rmtree(carried.parent)
    else:
        (carried / "one.txt").unlink()
        (tmp_path / "one.txt").write_text("one.txt")
        (carried / "one.txt").symlink_to(tmp_path / "one.txt")
    code, out, _ = run_sync()
    assert (code, "sent 5, refused 1" in out) == (2, True)
    assert arrived(tracking) == (PARAMETERS, set(), "FINISHED")


@pytest.mark.parametrize(
    "path",
    [
        "{outside}", "../../../{name}",
        "00000005.carried/../../../../{name}", "00000005.carried/..",
        "00000005.carried", ".", "", "00000002.json", "../outbox/00000005.carried/files",
        "00000005.carried/files/one.txt", "00000005.carried/link", "00000005.carried/fifo",
    ],
)  # fmt: skip
def test_no_record_names_a_file_outside(path, outbox, tracking, run_sync, tmp_path):  # faults C4
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    carried = OUTBOX / "00000005.carried"
    if path.endswith(("link", "fifo")):
        shutil.rmtree(carried / "files")
        if path.endswith("link"):
            (carried / "link").symlink_to(outside)
        else:
            os.mkfifo(carried / "fifo")
    path = path.format(outside=outside, name=outside.name)

    def change(told):
        told["operation"]["path"] = path
        told["files"] = {} if path.endswith(("link", "fifo")) else told["files"]

    resealed(5, change)
    code, out, _ = run_sync()
    assert (code, "sent 5, refused 1" in out) == (2, True)
    assert not [file for file in Path("mlruns").rglob("*") if file.is_file()]
    assert outside.read_text() == "secret"


def test_records_without_checksums_are_kept_for_the_version_that_wrote_them(
    outbox, tracking, run_sync
):
    for number in range(1, 7):
        operation = json.loads(record(number).read_text())["operation"]
        record(number).write_text(json.dumps(operation))
    told = json.loads((OUTBOX / "address.json").read_text())
    old = {name: told[name] for name in ("uri", "experiment", "run_id")}
    (OUTBOX / "address.json").write_text(json.dumps(old))
    assert run_sync()[0] == 2
    code, _, err = run_sync("runs", f"--uri={mlflow.get_tracking_uri()}")
    assert code == 2
    assert "experiment" in err
    assert len(list(OUTBOX.glob("0*.json"))) == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["operation"].update(kind="unknown"),
        lambda told: told["operation"].update(run=7),
        lambda told: told["operation"].update(params=[1]),
        lambda told: told.update(operation=[1, 2]),
        lambda told: told.update(operation=None),
        lambda told: told["operation"].update(command="ls"),
    ],
)
def test_what_is_no_operation_is_set_aside(change, outbox, tracking, run_sync):
    resealed(3, change)
    code, _, err = run_sync()
    assert code == 2
    assert "Expected an operation of a job" in err
    assert arrived(tracking)[2] == "FINISHED"


def test_a_stray_file_stays_and_stops_nothing(outbox, tracking, run_sync):  # faults C5
    (OUTBOX / "notes.txt").write_text("mine")
    (OUTBOX / "folder").mkdir()
    (OUTBOX / "folder" / "more.txt").write_text("mine")
    assert run_sync()[0] == 0
    assert arrived(tracking) == WHOLE
    assert {path.name for path in OUTBOX.iterdir()} == {"notes.txt", "folder"}
    assert (OUTBOX / "folder" / "more.txt").read_text() == "mine"
    assert run_sync() == (0, "Nothing waits in runs.\n", "")


@pytest.mark.parametrize("name", [".lock", "refused"])
def test_a_link_in_an_outbox_is_not_followed(name, outbox, run_sync, tmp_path):  # faults C8
    outside = tmp_path / "outside"
    outside.mkdir()
    (OUTBOX / name).unlink(missing_ok=True)
    (OUTBOX / name).symlink_to(outside if name == "refused" else outside / "lock")
    code, _, err = run_sync()
    assert code == 2
    assert err.startswith("error: Expected ")
    assert list(outside.iterdir()) == []


def test_it_is_private_and_named_as_a_shell_takes_it(tracking, capsys):  # faults D7, D8
    outbox = Outbox(Path("my runs", "job 1", "outbox"))
    before = os.umask(0)
    try:
        outbox.put(EndRun("key", "FINISHED", 1), Destination("http://me:secret@host", "weak"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(outbox.folder.stat().st_mode) == 0o700
    for file in outbox.folder.glob("*.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "secret" not in file.read_text()
    outbox.release()


def test_what_a_full_disk_refused_leaves_the_outbox_as_it_was(outbox, tracking, monkeypatch):
    fsync = os.fsync

    def full(file):
        raise OSError(28, "No space left on device")

    (OUTBOX / ".reserve").unlink()
    files = {path: path.read_bytes() for path in OUTBOX.rglob("*") if path.is_file()}
    monkeypatch.setattr(os, "fsync", full)
    for operation in (EndRun("key", "FINISHED", 1), LogArtifact("key", str(record(1)))):
        with pytest.raises(ValueError, match=r"to keep .* No space left"):
            outbox.put(operation, outbox.destination())
    monkeypatch.setattr(os, "fsync", fsync)
    outbox.release()
    assert {path: path.read_bytes() for path in OUTBOX.rglob("*") if path.is_file()} == files


def test_only_what_is_open_is_ended(tracking, tmp_path):  # faults A2
    uri = mlflow.get_tracking_uri()
    experiment = tracking.create_experiment("weak")

    def run(name, key=None, parent=None, status=None):
        tags = {"reusekit.key": key or name}
        if parent:
            tags["mlflow.parentRunId"] = parent
        made = tracking.create_run(experiment, tags=tags, run_name=name).info.run_id
        if status:
            tracking.set_terminated(made, status)
        return made

    parent = run("parent", "key")
    phase = run("phase", parent=parent)
    names = {
        parent: "KILLED", phase: "KILLED", run("inner", parent=phase): "KILLED",
        run("trial", parent=parent, status="FAILED"): "FAILED", run("another"): "RUNNING",
    }  # fmt: skip
    with mark(tmp_path / "job", "key", Destination(uri, "weak")) as file:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not end_killed(tmp_path / "job", "sqlite:///elsewhere.db")
    assert not Path("elsewhere.db").exists()
    assert end_killed(tmp_path / "job", uri)
    assert {name: tracking.get_run(name).info.status for name in names} == names
    assert not end_killed(tmp_path / "job", uri)
    assert list((tmp_path / "job").iterdir()) == []
