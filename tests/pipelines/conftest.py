"""Run a pipeline as its command line would, in this process."""

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
