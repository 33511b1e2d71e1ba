"""The exhaustive check, on a sample: its table, and that it goes on where it was killed."""

import json
import os
import signal
import subprocess
import sys
import time

import verify_zoo

EVERY = 16


def command(folder, *models):
    chosen = [part for model in models for part in ("--model", model)]
    sample = ["--every", str(EVERY), "--jobs", "1", "--progress", str(folder), "--save", "0"]
    return [sys.executable, verify_zoo.__file__, *chosen, *sample]


def kill_in_the_middle(folder, model):
    """Starts the command, kills all of it once something is saved, and returns what that is."""
    file = folder / f"{model}.json"
    work = subprocess.Popen(
        command(folder, model), start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        while not file.exists():
            assert work.poll() is None, "It ended before anything was saved."
            time.sleep(0.05)
    finally:
        os.killpg(work.pid, signal.SIGKILL)
        work.wait()
    return json.loads(file.read_text())


def test_it_goes_on_where_it_was_killed_and_ends_with_the_same_numbers(tmp_path):
    expected = verify_zoo.verify("MobileNet", EVERY, tmp_path / "without_a_break.json")
    assert expected["split"] == expected["tried"] == -(-expected["tensors"] // EVERY)
    assert expected["failures"] == []
    begun = kill_in_the_middle(tmp_path, "MobileNet")
    assert 0 < begun["tried"] < begun["to_try"]

    done = subprocess.run(
        command(tmp_path, "MobileNet"), capture_output=True, text=True, check=True
    )
    resumed = verify_zoo.load(tmp_path / "MobileNet.json")
    assert resumed == {**expected, "seconds": resumed["seconds"]}
    assert resumed["seconds"] > begun["seconds"]

    titles, row, total = (line.split() for line in done.stdout.splitlines())
    assert titles == list(verify_zoo.COLUMNS)
    assert row == [str(resumed[title]) for title in titles]
    assert total == ["1", "models", *row[2:]]


def test_an_unknown_model_is_one_clear_error(tmp_path):
    done = subprocess.run(command(tmp_path, "ResNet5"), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    *_, last = done.stderr.strip().splitlines()
    assert "argument --model: invalid choice: 'ResNet5' (choose from" in last
    assert "'ResNet50'" in last
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
