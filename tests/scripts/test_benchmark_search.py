"""The benchmark of searches, on little: what it says of itself, and that both sides agree."""

import json
import logging

import benchmark_search
import pytest

FIELDS = ["workload", "plain_s", "reusekit_s", "ratio", "limit", "equal"]


def test_a_workload_ends_in_a_line_of_json(monkeypatch, capsys):
    logger = logging.getLogger("tensorflow")
    monkeypatch.setattr(logger, "level", logger.level)  # the script sets it
    monkeypatch.setattr("sys.argv", ["benchmark_search.py", "--workload", "frozen", "--quick"])
    benchmark_search.main()
    (line,) = (
        json.loads(text) for text in capsys.readouterr().out.splitlines() if text.startswith("{")
    )
    assert list(line)[: len(FIELDS)] == FIELDS
    assert line["workload"] == "frozen"
    assert line["ratio"] > 0
    assert line["equal"] is True
    assert line["examples_apart_at_most"] <= 1
    assert line["plain_trials_run"] < line["trials"]


def test_rows_are_compared_relative_to_the_second():
    assert benchmark_search.relative([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
