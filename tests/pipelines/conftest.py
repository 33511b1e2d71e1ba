"""Run a pipeline as its command line would, in this process; with a feature store of the tests."""

import runpy
import sys

import pytest
from repository import ROOT


@pytest.fixture(scope="session")
def run_pipeline():
    """Run `pipelines/NAME.py` with the given words as its command line."""

    def run(name: str, *words: str) -> None:
        file = str(ROOT / "pipelines" / f"{name}.py")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [file, *words])
            runpy.run_path(file, run_name="__main__")

    return run


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory):
    """No test may fill or use the store that a person has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield
