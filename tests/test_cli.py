"""The command `reusekit`."""

import shlex
import subprocess

import pytest

import reusekit as rk
from reusekit.cli import cuts, init
from reusekit.launch import launch_one_of
from reusekit.stages import clean_cut

COMMANDS = {"cuts": cuts, "init": init}


def test_every_cut_that_is_listed_can_be_used(capsys):
    launch_one_of(COMMANDS, ["cuts", "reusekit/glyphnet"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed[0] == "stem_conv"
    assert listed[-1] == "block7_out"
    backbone = rk.load_backbone("reusekit/glyphnet")
    assert [clean_cut(backbone, at).at for at in listed] == listed


def test_init_lays_out_pipelines_that_run(tmp_path, capsys):
    launch_one_of(COMMANDS, ["init", str(tmp_path / "mine")])
    command = shlex.split(capsys.readouterr().out)
    done = subprocess.run([*command, "--print_config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "sklearn_digits" in done.stdout


def test_init_overwrites_nothing(tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    with pytest.raises(SystemExit) as stopped:
        launch_one_of(COMMANDS, ["init", str(tmp_path)])
    assert stopped.value.code == 2
    assert "'configs' already" in capsys.readouterr().err
    assert not (tmp_path / "pipelines").exists()


def test_help_and_unknown_subcommands(capsys):
    launch_one_of(COMMANDS, [])
    assert "reusekit cuts" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        launch_one_of(COMMANDS, ["cutss"])
    assert stopped.value.code == 2
    assert "Did you mean 'cuts'" in capsys.readouterr().err
