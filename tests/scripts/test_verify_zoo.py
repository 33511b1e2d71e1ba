"""The exhaustive check, on a sample: its table, and that it goes on where it was killed."""

import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import verify_zoo
from processes import forked

EVERY = 16


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command for one model, its progress in the test's folder."""
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")  # which it sets where it is not set

    def main(model):
        sample = ["--every", str(EVERY), "--jobs", "1", "--progress", str(tmp_path), "--save", "0"]
        monkeypatch.setattr("sys.argv", ["verify_zoo.py", "--model", model, *sample])
        verify_zoo.main()

    return main


def verify(file: Path, parent: Connection) -> None:
    """Do what the command does in a process of its own for each model."""
    verify_zoo.verify("MobileNet", EVERY, file, 0)


def killed_in_the_middle(file):
    """Kills the work once something is saved, and returns what that is."""
    with forked(verify, file) as (process, _):
        while not file.exists():
            assert process.is_alive(), "It ended before anything was saved."
            time.sleep(0.05)
    return verify_zoo.load(file)


def test_it_goes_on_where_it_was_killed_and_ends_with_the_same_numbers(run, tmp_path, capsys):
    expected = verify_zoo.verify("MobileNet", EVERY, tmp_path / "without_a_break.json")
    assert expected["split"] == expected["tried"] == -(-expected["tensors"] // EVERY)
    assert expected["failures"] == []
    begun = killed_in_the_middle(tmp_path / "MobileNet.json")
    assert 0 < begun["tried"] < begun["to_try"]

    run("MobileNet")
    resumed = verify_zoo.load(tmp_path / "MobileNet.json")
    assert resumed == {**expected, "seconds": resumed["seconds"]}
    assert resumed["seconds"] > begun["seconds"]

    titles, row, total = (line.split() for line in capsys.readouterr().out.splitlines())
    assert titles == list(verify_zoo.COLUMNS)
    assert row == [str(resumed[title]) for title in titles]
    assert total == ["1", "models", *row[2:]]


def test_an_unknown_model_is_one_clear_error(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("ResNet5")
    said = capsys.readouterr()
    assert said.out == ""
    *_, last = said.err.strip().splitlines()
    assert "argument --model: invalid choice: 'ResNet5' (choose from" in last
    assert "'ResNet50'" in last
    assert list(tmp_path.iterdir()) == []
