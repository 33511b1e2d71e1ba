"""The benchmark of surgery, in short: what it prints, and what holds on any machine."""

import re
import sys

import benchmark_surgery


def test_the_short_run_reports_growth_and_what_a_split_leaves(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_surgery.py", "--quick"])
    depth = sys.getrecursionlimit()
    try:
        benchmark_surgery.main()
    finally:
        sys.setrecursionlimit(depth)
    first, application, chain = (
        part.splitlines() for part in capsys.readouterr().out.split("\n\n")
    )

    titles, resnet = (line.split() for line in application)
    assert (resnet[0], titles[0]) == ("ResNet50", "model")
    seconds, goal = (float(resnet[titles.index(t)].rstrip("s")) for t in ("cut_points", "goal"))
    assert 0 < seconds < goal

    rows = [line.split() for line in chain[1:]]
    assert [int(row[0]) for row in rows] == list(benchmark_surgery.CHAINS[:3:2])
    # A chain ten times as long takes no more than a few times as long for each layer.
    reading = [float(row[2]) for row in rows]
    assert reading[-1] < 4 * reading[0]

    left = re.search(r"leaves (\d+) records, one on each of the (\d+) layers", " ".join(first))
    records, layers = map(int, left.groups())
    assert records == layers
    assert 100 < int(re.search(r"of (\d+) bytes by allocation", " ".join(first))[1]) < 3000
