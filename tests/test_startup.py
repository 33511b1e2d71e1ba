"""Importing reusekit is quiet and light."""

import ast
import os
import platform
import subprocess
import sys
from importlib import import_module, metadata

import keras
import pytest
from processes import run_python

import reusekit
from reusekit.startup import use_onednn, without_noise


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_and_first_operation_print_nothing():
    done = run("import reusekit; import keras; keras.ops.zeros(3)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_onednn_computes_unless_the_user_has_chosen(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    use_onednn()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    use_onednn()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"


def test_import_brings_in_nothing_but_keras_and_itself():
    done = run_python(
        "import sys, keras; before = set(sys.modules); import reusekit\n"
        "print({name.split('.')[0] for name in set(sys.modules) - before})"
    )
    # What checks arguments is light: a tenth of a second, beside seconds.
    checks = {"pydantic", "pydantic_core", "annotated_types", "typing_inspection"}
    light = {"reusekit", "lazy_loader", *checks}
    assert ast.literal_eval(done.stdout) <= light, done.stderr


def test_the_command_says_what_it_can_without_keras():
    done = run(
        "import sys; sys.argv = ['/bin/reusekit', 'cuts', '--help']\n"
        "import reusekit.cli\n"
        "try:\n    reusekit.cli.main()\n"
        "except SystemExit:\n    assert 'keras' not in sys.modules\n"
        "import reusekit as rk; rk.split; rk.heads.Classifier(3)\n"
    )
    assert "models:/NAME@ALIAS" in done.stdout
    assert done.stderr == ""


def test_public_names_are_few_and_there_and_unknown_ones_are_not():
    assert len(reusekit.__all__) <= 45
    assert all(getattr(reusekit, name) is not None for name in reusekit.__all__)
    assert reusekit.__version__ == metadata.version("reusekit")
    with pytest.raises(AttributeError, match="no_such_name"):
        reusekit.no_such_name  # noqa: B018


def test_names_of_before_are_there_and_say_where_they_went():
    for room, names in reusekit._MOVED.items():
        for name in names:
            with pytest.warns(DeprecationWarning, match=f"{room}.{name} now"):
                assert getattr(reusekit, name) is getattr(import_module(room), name)
    with pytest.warns(DeprecationWarning, match=r"heads\.MaskedLanguageModel now"):
        assert reusekit.heads.masked_language_model is reusekit.heads.MaskedLanguageModel


def test_tables_in_notebooks_show_every_row_and_escape_names():
    x = keras.Input((4,))
    model = keras.Model(x, keras.layers.Dense(2)(keras.layers.ReLU(name="a<b")(x)))
    shown = reusekit.cut_points(model)._repr_html_()
    assert "a&lt;b" in shown and "a<b" not in shown
    assert "10" in reusekit.count_params(model)._repr_html_()


def test_warnings_and_errors_come_through():
    lines = [
        "I0000 00:00:1795498473.674838 2569 port.cc:153] oneDNN custom operations are on.",
        "W0000 00:00:1795498473.674838 2569 card.cc:1] The card is too old.",
        "E0000 00:00:1795498473.674838 2569 cuda_platform.cc:52] failed call to cuInit: 303",
        "UserWarning: something of yours",
    ]
    assert without_noise(lines, has_driver=False) == [lines[1], lines[3]]
    assert without_noise(lines, has_driver=True) == lines[1:]
    remark = "W0000 00:00:1795 32060 tf_tfl_flatbuffer_helpers.cc:364] Ignored output_format."
    assert without_noise([remark, lines[1]]) == [lines[1]]


def test_a_failing_import_is_shown_whole():
    done = run_python(
        "from reusekit.startup import quiet\n"
        "import os\n"
        "with quiet():\n"
        "    os.write(2, b'real trouble\\n')\n"
        "    raise ImportError('gone')\n"
    )
    assert "real trouble" in done.stderr
    assert "ImportError: gone" in done.stderr
