"""The command `reusekit`."""

import runpy
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress

import keras
import numpy as np
import pytest
from mlflow.projects._project_spec import load_project
from PIL import Image
from processes import run_python

import reusekit as rk
from reusekit.cli import cache, completion, cuts, doctor, init, main
from reusekit.features import FeatureKey, FeatureStore
from reusekit.launch import launch_one_of
from reusekit.stages import clean_cut

COMMANDS = {"cuts": cuts, "init": init, "cache": cache, "doctor": doctor}


def test_every_cut_that_is_listed_can_be_used(capsys):
    launch_one_of(COMMANDS, ["cuts", "reusekit/glyphnet"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert listed[0] == "stem_conv"
    assert listed[-1] == "block7_out"
    backbone = rk.load_backbone("reusekit/glyphnet")
    assert [clean_cut(backbone, at).at for at in listed] == listed


def test_init_lays_out_pipelines_that_run(tmp_path, capsys, monkeypatch):
    launch_one_of(COMMANDS, ["init", str(tmp_path / "mine")])
    assert load_project(tmp_path / "mine").env_type == "python_env"  # pipeline F
    python, *command = shlex.split(capsys.readouterr().out)
    assert python == sys.executable
    monkeypatch.setattr(sys, "argv", [*command, "--print_config"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(command[0], run_name="__main__")
    assert "sklearn_digits" in capsys.readouterr().out


def test_init_overwrites_nothing(tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    with pytest.raises(SystemExit) as stopped:
        launch_one_of(COMMANDS, ["init", str(tmp_path)])
    assert stopped.value.code == 2
    assert "without 'configs'" in capsys.readouterr().err
    assert not (tmp_path / "pipelines").exists()


def test_help_and_unknown_subcommands(capsys):
    launch_one_of(COMMANDS, [])
    assert "reusekit cuts" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        launch_one_of(COMMANDS, ["cutss"])
    assert stopped.value.code == 2
    assert "Did you mean 'cuts'" in capsys.readouterr().err


def test_classes_of_ones_own_are_found_once_imported(tmp_path, monkeypatch, capsys):
    # pipeline, "Refused, and should work": custom classes
    (tmp_path / "own_layers.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('own')\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x): return 2 * x\n"
    )
    make = (
        "import keras, own_layers\n"
        "x = keras.Input((4,))\n"
        "y = own_layers.Twice()(keras.layers.Dense(3, name='hidden')(x))\n"
        "keras.Model(x, keras.layers.Dense(2)(y)).save('own.keras')\n"
    )
    assert run_python(make, folder=tmp_path).returncode == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit):
        launch_one_of(COMMANDS, ["cuts", "own.keras"])
    assert "needs Twice" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        launch_one_of(COMMANDS, ["cuts", "own.keras", "--import=nowhere"])
    assert "can be imported. Received: 'nowhere'" in capsys.readouterr().err
    launch_one_of(COMMANDS, ["cuts", "own.keras", "--import=own_layers"])
    assert "hidden" in capsys.readouterr().out


@pytest.fixture
def store(tmp_path):
    store = FeatureStore(tmp_path / "store")
    about = {"model": "net", "cut": "block3_out", "data": "digits:1.0.0", "split": "train"}
    for name, size in (("aaaaaaaaaaaaaaaa", 1000), ("bbbbbbbbbbbbbbbb", 500)):
        key = FeatureKey(name, ("x",), size, about)
        store.get_or_compute(key, lambda start, stop: [{"x": np.zeros((stop, 4), "float32")}])
    return store


def run_cache(capsys, store, *words):
    """The lines that the command prints, and its error, where there is one."""
    try:
        launch_one_of(COMMANDS, ["cache", words[0], f"--path={store.path}", *words[1:]])
    except SystemExit as stopped:
        assert stopped.code == 2
    return capsys.readouterr()


def test_the_cache_is_listed(store, capsys):
    out = run_cache(capsys, store, "list").out
    row = next(line for line in out.splitlines() if "aaaaaaaaaaaa" in line)
    assert [part.strip() for part in row.split("│")[1:8]] == [
        "aaaaaaaaaaaa", "whole", "net", "block3_out", "digits:1.0.0 train", "1,000", "16,000",
    ]  # fmt: skip
    assert "24,000" in out


def test_the_cache_is_verified(store, capsys):
    assert run_cache(capsys, store, "verify").err == ""
    (path,) = store.path.glob("entries/bbb*/*.npy")
    path.write_bytes(path.read_bytes()[:-1])
    found = run_cache(capsys, store, "verify")
    assert "1 blocks damaged" in found.out
    assert "Received: 1 of 2 that are damaged" in found.err


def test_the_cache_is_reduced_and_cleared(store, capsys):
    assert "1 entries stay" in run_cache(capsys, store, "gc", "--budget=10000").out
    assert [entry.digest[0] for entry in store.entries()] == ["b"]
    assert "0 entries stay" in run_cache(capsys, store, "clear").out
    assert store.entries() == []


def test_mistaken_cache_commands_are_refused_and_touch_nothing(store, tmp_path, capsys):
    assert "a budget with 'gc' alone" in run_cache(capsys, store, "list", "--budget=1").err
    assert "at least 1" in run_cache(capsys, store, "gc", "--budget=0").err
    assert "'list'" in run_cache(capsys, store, "lits").err
    with pytest.raises(SystemExit):
        launch_one_of(COMMANDS, ["cache", "clear", f"--path={tmp_path / 'nowhere'}"])
    assert "the folder of a feature store" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
    assert len(store.entries()) == 2


def test_output_that_nobody_reads_any_more_ends_quietly():  # pipeline F
    command = "import sys; sys.argv = ['reusekit']; from reusekit.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # as `head` does
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_the_doctor_tells_by_its_code_and_mends_into_a_new_file(tmp_path, capsys):
    x = keras.Input((4, 4, 3), name="x")
    y = keras.layers.Conv2D(2, 1, name="conv")(keras.layers.RandomFlip(name="flip")(x))
    y = keras.layers.GlobalAveragePooling2D()(y)
    keras.Model(x, keras.layers.Dense(3, name="out")(y)).save(tmp_path / "ill.keras")
    for number, kind in enumerate(("cat", "dog") * 10):
        (tmp_path / "photos" / kind).mkdir(parents=True, exist_ok=True)
        picture = np.full((4, 4, 3), 12 * number, "uint8")
        Image.fromarray(picture).save(tmp_path / "photos" / kind / f"{number}.png")

    def told(*words):
        with pytest.raises(SystemExit) as stopped:
            launch_one_of(COMMANDS, ["doctor", *map(str, words)])
        return stopped.value.code, capsys.readouterr()

    photos = ("--data", tmp_path / "photos")
    code, said = told(tmp_path / "ill.keras", *photos, "--fix", tmp_path / "mended.keras")
    assert code == 1
    assert "3 outputs, and the data 2 classes: cat, dog" in " ".join(said.out.split())
    assert "has all mended but 1 of 2" in said.out
    launch_one_of(COMMANDS, ["doctor", str(tmp_path / "mended.keras")])
    assert "Nothing was found" in capsys.readouterr().out
    code, said = told(tmp_path / "ill.keras", "--fix", tmp_path / "mended.keras")
    assert (code, "nothing is ever written over" in said.err) == (2, True)
    code, said = told(tmp_path / "gone.keras")
    assert (code, "Expected a file or folder" in said.err) == (2, True)


def test_without_arguments_five_things_are_shown_that_work(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reusekit"])
    main()
    said = capsys.readouterr().out
    shown = [line.split() for line in said.splitlines() if line.startswith("  reusekit ")]
    assert len(shown) == 5
    for _, name, *_ in shown:
        with pytest.raises(SystemExit, match="0"):
            monkeypatch.setattr(sys, "argv", ["reusekit", name, "--help"])
            main()
        assert f"usage: reusekit {name}" in capsys.readouterr().out


ASKED = {
    "reusekit doc": "doctor",
    "reusekit export m --quan": "--quantize",
    "reusekit cache v": "verify",
    "reusekit completion z": "zsh",
    "reusekit sync mi": "mine.keras",
    "reusekit predict m mine.keras mi": "mine.keras",
}
# An interactive shell in a terminal of its own, in which the words are typed.
IN_ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'TERM=dumb PS1=; autoload -Uz compinit; compinit -u -D; eval "$(<script)"'
zpty -w shell 'reusekit() { print "ran:${@[-1]}:" }; print be""gun'
zpty -r -m shell line '*begun*'
for words in $@; do
  zpty -n -w shell $words$'\t\n'
  zpty -r -m shell line '*ran:*:*'
  print -r -- ${${line#*ran:}%%:*}
done
zpty -d shell
"""


def test_bash_completes_subcommands_options_choices_and_files(capsys, tmp_path):
    completion("bash")
    ask = (
        "COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=(); "
        "_shtab_reusekit; echo ${{COMPREPLY[@]}}\n"
    )
    (tmp_path / "mine.keras").touch()
    script = capsys.readouterr().out + "".join(ask.format(words=words) for words in ASKED)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [*ASKED.values()], done.stderr


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_completes_the_same(capsys, tmp_path):
    completion("zsh")
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "mine.keras").touch()
    command = ["zsh", "-f", "-c", IN_ZSH, "zsh", *ASKED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.splitlines() == [*ASKED.values()], done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("cust", "Received: 'cust'. Did you mean 'cuts'?"),
        ("cuts", "Expected SOURCE. Received: nothing. See 'reusekit cuts --help'."),
        ("cuts m --max_widht=1", "Received: 'max_widht'. Did you mean 'max_width'?"),
        ("cuts m other", "Received: other"),
        ("cuts m -v", "Received: -v"),
        ("cuts --config=nowhere.yaml", "Received: 'nowhere.yaml': No such file"),
        ("cuts --config=tab.yaml", "line 2. Indent it with spaces."),
        ("cuts --config=key.yaml", "Received: 'sourec'. Did you mean 'source'?"),
        ("cache lits", "Did you mean 'list'?"),
        ("cuts reusekit/glyfnet", "Did you mean 'reusekit/glyphnet'"),
        ("doctor nowhere.keras", "Received: 'nowhere.keras'. Check its path."),
    ],
)
def test_a_wrong_turn_is_one_line_with_the_way_on(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tab.yaml").write_text("source:\n\tm\n")
    (tmp_path / "key.yaml").write_text("sourec: m\n")
    with pytest.raises(SystemExit) as stopped:
        launch_one_of(COMMANDS, words.split())
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("error: Expected ") and says in said.err


@pytest.mark.parametrize("variable", ["", "NO_COLOR=1", "TERM=dumb"])
def test_nothing_but_text_goes_into_a_pipe(variable, store, capsys, monkeypatch):
    name, _, value = variable.partition("=")
    if name:
        monkeypatch.setenv(name, value)
    for words in ([], ["--help"], ["cuts", "--help"], ["cuts", "reusekit/glyphnet"], ["cust"]):
        with suppress(SystemExit):
            launch_one_of(COMMANDS, words)
    run_cache(capsys, store, "lits")
    launch_one_of(COMMANDS, ["cache", "verify", f"--path={store.path}"])
    said = capsys.readouterr()
    assert "block3_out" in said.out
    assert "\x1b" not in said.out + said.err
