"""Bars: in a notebook one output that is drawn anew; none in CI and on terminals that cannot."""

import os
import pty
import sys
import types
from contextlib import suppress

import pytest

from reusekit.progress import console, counted, say, tracked


class Output:
    """An output of a cell, as `IPython.display.display` gives it with an id."""

    def __init__(self, bundle):
        self.bundles = [bundle]

    def update(self, bundle, raw):
        assert raw
        self.bundles.append(bundle)


@pytest.fixture
def outputs(monkeypatch):
    """The outputs of a cell of a notebook, which is not CI."""
    found = []

    def display(bundle, raw, display_id):
        assert raw and display_id
        found.append(Output(bundle))
        return found[-1]

    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(console, "is_jupyter", True)
    monkeypatch.delenv("CI", raising=False)
    return found


def test_a_bar_in_a_notebook_is_one_output_of_one_line(outputs, capsys):
    assert sum(tracked(range(500), "Adding [numbers]")) == 124_750
    with counted("Trials", 3) as step:
        step()
        step("Trials (<best>)", 2)
    assert len(outputs) == 2
    for output, said in zip(outputs, ("Adding [numbers]", "Trials"), strict=True):
        assert len(output.bundles) < 50  # and not one for each of 500 items
        last = output.bundles[-1]
        assert [one.strip().count("\n") for one in last.values()] == [0, 1]
        assert last["text/plain"].startswith(said)
        assert "100%" in last["text/plain"] and "100%" in last["text/html"]
        assert "\x1b" not in str(output.bundles)
    assert "&lt;best&gt;" in str(outputs[1].bundles)
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_an_error_ends_stays_where_it_was(outputs):
    with pytest.raises(ZeroDivisionError), counted("Trials", 4) as step:
        step()
        raise ZeroDivisionError
    assert "25%" in outputs[0].bundles[-1]["text/plain"]


def test_there_is_no_bar_in_ci(outputs, monkeypatch, capsys):
    monkeypatch.setenv("CI", "true")
    assert list(tracked([1, 2], "Adding")) == [1, 2]
    assert outputs == [] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("term", "moves"), [("xterm", True), ("dumb", False)])
def test_bars_move_on_terminals_that_can(term, moves, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", term)
    inner, outer = pty.openpty()
    with os.fdopen(outer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert sum(tracked([1, 2, 3], "Adding")) == 6
        say("Done.")
    said = b""
    with suppress(OSError):  # which Linux has for the end
        while read := os.read(inner, 65_536):
            said += read
    os.close(inner)
    assert b"Done." in said
    assert (b"\x1b" in said) == moves
