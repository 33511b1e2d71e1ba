"""The demo of clusters, on little: a node is killed, and the champion is that of one machine."""

import sys

import pytest
from processes import start_python
from repository import ROOT

pytest.importorskip("ray")

QUICK = ["--search.max_cuts", "2", "--search.max_trials", "8", "--search.ask", "2"]
QUICK += ["--search.epochs", "2", "--finetune.epochs", "1", "--baselines.linear", "false"]


class Forked:
    """A command of Python's as a process that has imported Keras already."""

    def __init__(self, told):
        code = (
            "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        self.args, self._process = told, start_python(code, *told[1:], folder=ROOT)

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self._process.exitcode


def test_the_champion_of_two_nodes_is_that_of_one_machine(tmp_path, monkeypatch, capsys):
    import cluster_demo

    monkeypatch.setenv("PYTHONPATH", "")  # which the nodes set
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setattr(cluster_demo, "start", Forked)
    monkeypatch.setattr(sys, "argv", ["cluster_demo.py", "--output", str(tmp_path), "--", *QUICK])
    cluster_demo.main()
    said = capsys.readouterr().out
    assert "a node is killed" in said and "They are the same" in said
