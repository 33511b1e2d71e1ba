"""The commands that pipelines, configurations and pages show are commands that work."""

import re
import shlex

import pytest
from repository import ROOT

SHOWN = re.compile(r"^\W*(?:\.venv/bin/)?python pipelines/(\w+)\.py (.+)$", re.MULTILINE)
PAGES = [
    ROOT / "README.md",
    *(ROOT / f"docs/{name}.md" for name in ("pipelines", "search", "scale", "storage")),
]
FILES = [*ROOT.glob("pipelines/*.py"), *ROOT.glob("configs/*.yaml"), *PAGES]
COMMANDS = sorted({match for file in FILES for match in SHOWN.findall(file.read_text())})


def test_there_are_some():
    assert {name for name, _ in COMMANDS} == {"cut_search", "finetune", "promote", "rollback"}


@pytest.mark.parametrize(("name", "words"), COMMANDS)
def test_its_settings_are_accepted(name, words, run_pipeline, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        run_pipeline(name, *shlex.split(words), "--print_config")
    assert stopped.value.code == 0, capfd.readouterr().err


@pytest.mark.filterwarnings("error:rk:DeprecationWarning")
def test_help_is_shown_without_a_warning(run_pipeline, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_pipeline("cut_search", "--help")
    assert stopped.value.code == 0
    assert "--search.limits" in capsys.readouterr().out
