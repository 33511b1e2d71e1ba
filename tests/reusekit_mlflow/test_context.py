"""Every run is tagged with what made it, by installation alone; and nothing of it breaks a run."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import keras
import mlflow
import psutil
import pytest

from reusekit_mlflow import context

# Its last line tells what is loaded after `import mlflow`, and what tags a run got.
PLAIN_USER = """
import sys
import mlflow
heavy = {"keras", "tensorflow", "reusekit", "tensorflow_datasets"} & set(sys.modules)
assert "reusekit_mlflow.datasets" in sys.modules
assert not heavy, heavy
mlflow.set_tracking_uri(sys.argv[1])
with mlflow.start_run() as run:
    pass
assert "keras" not in sys.modules
tags = mlflow.get_run(run.info.run_id).data.tags
print({name: value for name, value in tags.items() if name.startswith("reusekit.")})
"""


def tags_of_a_run(client) -> dict[str, str]:
    with mlflow.start_run() as run:
        pass
    return client.get_run(run.info.run_id).data.tags


def test_a_run_is_tagged_with_versions_backend_and_machine(tracking):
    tags = tags_of_a_run(tracking)
    assert tags["reusekit.version"] == version("reusekit")
    assert tags["reusekit.keras"] == keras.__version__
    assert tags["reusekit.backend"] == keras.config.backend()
    assert f"{psutil.virtual_memory().total / 2**30:.0f} GiB" in tags["reusekit.machine"]


def test_installation_alone_does_it_and_loads_nothing_heavy(tracking):
    uri = mlflow.get_tracking_uri()
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_USER, uri], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()[-1]
    assert version("reusekit") in told
    assert "reusekit.machine" in told


@pytest.fixture
def _uninstalled(monkeypatch):
    def not_found(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(context, "version", not_found)
    context._version.cache_clear()
    yield
    context._version.cache_clear()


@pytest.mark.usefixtures("_uninstalled")
def test_what_is_not_known_is_left_out(tracking):
    tags = tags_of_a_run(tracking)
    assert "reusekit.keras" not in tags
    assert tags["reusekit.backend"] == keras.config.backend()


@pytest.fixture
def _broken(monkeypatch):
    def broken() -> str:
        raise RuntimeError("no such file")

    monkeypatch.setattr(context, "_machine", broken)


@pytest.mark.usefixtures("_broken")
def test_a_failure_breaks_no_run(tracking):
    tags = tags_of_a_run(tracking)
    assert tags["mlflow.source.type"] == "LOCAL"
    assert "reusekit.version" not in tags


def test_accelerators_are_those_that_the_driver_lists(tmp_path, monkeypatch):
    for number in range(2):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text(
            "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t 42\nGPU UUID: \t GPU-1:2\n"
        )
    monkeypatch.setattr(context, "_NVIDIA", tmp_path)
    context._machine.cache_clear()
    told = context._machine()
    context._machine.cache_clear()
    assert told.endswith(" GiB, NVIDIA H100 80GB HBM3, NVIDIA H100 80GB HBM3")
