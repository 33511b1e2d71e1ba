"""Pictures of MLflow's pages: which there are, and one of them where there is a browser."""

import mlflow
import numpy as np
import pytest
import screenshots
from mlflow import MlflowClient
from PIL import Image

from reusekit.tracking import log_metrics, pipeline_run, step_run


@pytest.fixture(scope="module")
def job(module_tracking):
    """A small job in the experiment `shown`: its run's id."""
    with pipeline_run("a job", "shown", {"seed": 1}):
        run_id = mlflow.active_run().info.run_id
        mlflow.log_text("nothing", "plan.txt")
        mlflow.log_image(Image.new("RGB", (2, 2)), "model.png")
        with step_run("test", "evaluation"):
            log_metrics({"accuracy": 0.5})
    return run_id


def test_the_pages_of_the_newest_job_are_found(module_tracking, job):
    pages = screenshots.pages(module_tracking)
    assert set(pages) == {"runs", "trials", "run", "models", "run_model", "evaluation"}
    assert pages["run"].endswith(f"/runs/{job}")
    assert pages["run_model"].endswith(f"/runs/{job}/artifacts/model.png")


def test_without_a_job_a_person_is_told_to_run_one(tracking):
    with pytest.raises(LookupError, match="make demo"):
        screenshots.pages(tracking)


def test_without_a_browser_a_person_is_told_how_to_get_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install chromium"):
        screenshots.chromium()


@pytest.mark.usefixtures("job")
def test_a_page_becomes_a_picture(tmp_path):
    try:
        program = screenshots.chromium()
    except FileNotFoundError:
        pytest.skip("no Chromium here")
    with screenshots.server(mlflow.get_tracking_uri()) as address:
        page = address + screenshots.pages(MlflowClient(address))["run"]
        screenshots.take(program, page, tmp_path / "run.png")
    picture = Image.open(tmp_path / "run.png")
    assert picture.size == screenshots.SIZE
    assert len(np.unique(picture.convert("L"))) > 20  # not one colour
