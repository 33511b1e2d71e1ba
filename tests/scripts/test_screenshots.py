"""Pictures of a job: which pages there are, and a real browser on some of them."""

import mlflow
import numpy as np
import pandas as pd
import pytest
import screenshots
from mlflow import MlflowClient
from PIL import Image
from selenium.webdriver import ActionChains, Keys

from reusekit.tracking import log_metrics, log_table, pipeline_run, report_page, step_run


@pytest.fixture(scope="module")
def job(module_tracking):
    """A small job in the experiment `shown`: its run."""
    trials = pd.DataFrame({"trial": [0, 1, 2], "cut": ["a", "c", "b"], "parameters": [9, 10, 200]})
    trials["val_accuracy"], trials["depth"] = [0.5, 0.25, 0.75], [0.1, 0.4, 0.9]
    with pipeline_run("a job", "shown", {"seed": 1}):
        run = mlflow.active_run()
        mlflow.log_text("nothing", "plan.txt")
        mlflow.log_image(Image.new("RGB", (2, 2)), "model.png")
        log_table(trials, "trials.json")
        log_table(trials.rename(columns={"val_accuracy": "validation_accuracy"}), "cuts.json")
        log_table(trials[::2], "pareto_parameters.json")
        with step_run("test", "evaluation"):
            log_metrics({"accuracy": 0.5})
    return run


def test_the_pages_of_the_newest_job_are_found(module_tracking, job):
    assert screenshots.newest_run(module_tracking).info.run_id == job.info.run_id
    pages = screenshots.pages(module_tracking, job)
    assert set(pages) == {"runs", "run", "run_model", "evaluation"}
    assert pages["run"].address.endswith(f"/runs/{job.info.run_id}")
    assert pages["run_model"].address.endswith(f"/runs/{job.info.run_id}/artifacts/model.png")


def test_without_a_job_a_person_is_told_to_run_one(tracking):
    with pytest.raises(LookupError, match="make demo"):
        screenshots.newest_run(tracking)


def test_without_a_browser_a_person_is_told_how_to_get_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install chromium"):
        screenshots.chromium()


@pytest.fixture(scope="module")
def browser():
    try:
        screenshots.chromium()
    except FileNotFoundError:
        pytest.skip("no Chromium here")
    with screenshots.browser() as driver:
        yield driver


def test_a_page_of_mlflow_becomes_a_picture(browser, job, tmp_path):
    with screenshots.server(mlflow.get_tracking_uri()) as address:
        page = screenshots.pages(MlflowClient(address), job)["run"]
        screenshots.take(browser, screenshots.on_server(page, address), tmp_path / "run.png")
    picture = Image.open(tmp_path / "run.png")
    assert picture.size == screenshots.SIZE
    assert len(np.unique(picture.convert("L"))) > 20  # not one colour


def test_a_report_reads_narrow_and_wide_light_and_dark(browser, job, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(report_page(job.info.run_id), "utf-8")
    taken = list(screenshots.take_report(browser, file, tmp_path))
    assert [one.stem.split("_")[1:] for one in taken] == [
        *(["light", "400"], ["dark", "400"], ["light", "1200"], ["dark", "1200"]),
    ]
    corners = [Image.open(one).convert("L").getpixel((2, 2)) for one in taken]
    assert max(corners[1::2]) < 60 < 200 < min(corners[::2])
    assert {Image.open(one).width for one in taken} == {400, 1200}

    # The last one is open still: a dot tells what it is, and a heading sorts.
    dots = browser.find_elements("css selector", "circle")
    told = browser.find_elements("css selector", ".told")
    assert [one.text for one in told] == ["Point at a dot."] * 2
    ActionChains(browser).move_to_element(dots[0]).perform()
    assert told[0].text == "a: 0.5"
    ActionChains(browser).move_to_element(dots[-1]).perform()
    assert told[1].text == "trial 2, b: 0.75, 200 parameters"
    heading = next(
        one for one in browser.find_elements("css selector", "th") if one.text == "parameters"
    )

    def column():
        rows = browser.find_elements("css selector", "table.sort tbody tr")
        return [row.find_elements("tag name", "td")[3].text for row in rows]

    assert column() == ["9", "10", "200"]
    heading.click()
    heading.click()
    assert column() == ["200", "10", "9"]  # by number, not by letter
    heading.send_keys(Keys.ENTER)
    assert column() == ["9", "10", "200"]


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("<p>Result<script>undefined.x</script>", "logs .*Cannot read properties"),
        ("<p>Result<img src='data:image/png;base64,AAAA'>", "shows 1 broken pictures"),
        ("<p style='width: 900px'>Result", "is wider than 400 pixels"),
    ],
)
def test_a_page_with_a_fault_is_no_picture_to_keep(browser, tmp_path, inside, said):
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{inside}")
    page = screenshots.Page(file.as_uri(), ("Result",))
    with pytest.raises(RuntimeError, match=said):
        screenshots.take(browser, page, tmp_path / "page.png", width=400)


def test_a_page_without_its_words_is_named(browser, tmp_path, monkeypatch):
    monkeypatch.setattr(screenshots, "_PAGE_SECONDS", 0.1)
    page = screenshots.Page("data:text/html,Result", ("Result", "Trials"))
    with pytest.raises(RuntimeError, match=r"does not show the words \['Trials'\]"):
        screenshots.take(browser, page, tmp_path / "page.png")
