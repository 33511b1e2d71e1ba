"""The benchmark of folders, on a few small pictures."""

import json
import sys

import benchmark_data


def test_both_readers_are_timed_side_by_side(monkeypatch, capsys):
    words = ["--pictures=24", "--width=64", "--size=16", "--rounds=1"]
    monkeypatch.setattr(sys, "argv", ["benchmark_data.py", *words])
    benchmark_data.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["pictures"] == 24
    assert {"keras", "reusekit", "reusekit, next pass", "reusekit into glyphnet"} < {
        *told["seconds"]
    }
    assert all(seconds > 0 for seconds in told["seconds"].values())
