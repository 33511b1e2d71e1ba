"""The benchmark of searches, on little: what it says of itself, and that both sides agree."""

import json
import subprocess
import sys

import benchmark_search
import pytest

FIELDS = ["workload", "plain_s", "reusekit_s", "ratio", "limit", "equal"]


def lines(workload):
    command = [sys.executable, benchmark_search.__file__, "--workload", workload, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_workload_ends_in_a_line_of_json():
    (line,) = lines("frozen")
    assert list(line)[: len(FIELDS)] == FIELDS
    assert line["workload"] == "frozen"
    assert line["ratio"] > 0
    assert line["equal"] is True
    assert line["examples_apart_at_most"] <= 1
    assert line["plain_trials_run"] < line["trials"]


def test_rows_are_compared_relative_to_the_second():
    assert benchmark_search.relative([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
