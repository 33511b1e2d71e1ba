"""The tracker is checked before anything depends on it."""

import shlex
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

import reusekit as rk
from reusekit.tracking import connect, ui_command


def test_a_database_file_serves(tracking):
    assert connect("sqlite:///mlflow.db", "a model") == "sqlite:///mlflow.db"
    assert not tracking.search_registered_models()
    folder = Path("fresh größe 50% & +x").absolute()  # pipeline A1: as MLflow's default has it
    folder.mkdir()
    shutil.copy("mlflow.db", folder)
    encoded = f"sqlite:///{quote(str(folder))}/mlflow.db"
    assert connect(encoded, "a model") == encoded


def test_the_ui_command_runs_as_printed_and_tells_no_password():
    program, *words = shlex.split(ui_command("sqlite:////a folder/mlflow.db"))
    assert words == ["ui", "--backend-store-uri", "sqlite:////a folder/mlflow.db"]
    done = subprocess.run([program, "ui", "--help"], capture_output=True, text=True)
    assert "--backend-store-uri" in done.stdout
    assert "hidden" not in ui_command("postgresql://me:hidden@host/db")


def test_a_server_that_does_not_answer_is_named_with_what_to_do(tracking):
    with pytest.raises(rk.TrackingError) as caught:
        connect("http://127.0.0.1:9", "x")
    assert "http://127.0.0.1:9, which does not answer" in str(caught.value)
    assert "mlflow server" in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///no/such/folder/mlflow.db",
        "nonsense://x",
        "sqlite:///garbage",
        "postgresql://127.0.0.1:9/y",
        "postgresql://x:port/y",
        "http://x:port",
        "http://[bad/",
    ],
)
def test_what_cannot_be_used_is_refused(tracking, uri):
    Path("garbage").write_text("no database" * 100)
    with pytest.raises(rk.TrackingError) as caught:
        connect(uri, "x")
    assert uri in str(caught.value)
