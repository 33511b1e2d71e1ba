"""The benchmark of rankings, on little: every ranking is judged on pictures and on texts."""

import json
import math

import benchmark_ranking


def test_every_ranking_is_judged(monkeypatch, capsys):
    words = ["benchmark_ranking.py", "--quick", "--set=shapes"]
    monkeypatch.setattr("sys.argv", words)
    benchmark_ranking.main()
    out = capsys.readouterr().out
    line = json.loads(out.splitlines()[0])
    assert list(line) == ["set", "seed", *benchmark_ranking.METHODS]
    for method in benchmark_ranking.METHODS:
        assert -1 <= line[method]["among"] <= 1 or math.isnan(line[method]["among"])
    assert "Kendall's tau" in out


def test_every_set_has_all_its_classes():
    for opened, _ in benchmark_ranking.SETS.values():
        parts = [opened(part, 40) for part in ("train", "validation")]
        assert parts[0].task == parts[1].task
