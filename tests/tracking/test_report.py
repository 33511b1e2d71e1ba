"""The report of a run: escaped, without network, with a word for each part that is missing."""

import json
import re

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities.model_registry import ModelVersion

from reusekit.cli import report
from reusekit.errors import ConfigError, TrackingError
from reusekit.tracking import (
    log_artifact,
    log_metrics,
    log_table,
    pipeline_run,
    report_page,
    step_run,
)

EVIL = "<script>alert('x')</script>"
PLANS = {"plans": {"one": {"seconds": 1.0}, "other": {"seconds": 0.25}}}  # of two backbones


@pytest.fixture
def run_id(tracking, tmp_path):
    told = {
        "where": "--data.folder 'my photos'",
        "seconds": {"Search the cut": 2.0, "Register": 1.5},
        "confusion": {"names": [EVIL, "b"], "counts": [[3, 1], [0, 2]]},
        "mistakes": [
            {"truth": EVIL, "said": "b (90%)", "loss": 2.5, "text": EVIL, "words": [[EVIL, -0.5]]},
            {"truth": "b", "said": EVIL, "loss": 1.5, "image": '"><script>alert(1)</script>'},
        ],
    }
    trials = {"trial": [0, 1, 2], "cut": [EVIL, "deep", "failed"], "depth": [0.2, 0.9, 0.4]}
    trials = pd.DataFrame({**trials, "val_accuracy": [0.5, 0.75, None]})
    trials["parameters"] = [10, 2000, None]
    cuts = trials[:2].rename(columns={"val_accuracy": "validation_accuracy"})
    with pipeline_run(f"a job on {EVIL}", "shown", {"data": {"name": EVIL}}):
        log_metrics({"test_accuracy": 0.625})
        for name, value in (("report", told), ("plan", PLANS)):
            (tmp_path / f"{name}.json").write_text(json.dumps(value))
            log_artifact(tmp_path / f"{name}.json")
        log_table(trials, "trials.json")
        log_table(trials[:1], "pareto_parameters.json")
        log_table(cuts, "cuts.json")
        return mlflow.active_run().info.run_id


def test_all_that_comes_from_data_is_escaped_and_no_network_is_asked(run_id, tmp_path):
    report(run_id, str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "alert(" in page
    assert page.count("<script") == 1
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png)|https?://|url\(", page)


def test_figures_of_the_run_are_on_the_page(run_id, tmp_path):
    report(run_id, str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<b>0.625</b>test accuracy" in page
    assert re.search(r"as planned</td><td class=\"n\">1\.25</td><td class=\"n\">2\.0</td>", page)
    assert page.count("<circle") == 4
    assert page.count('class="best"') == 3  # both cuts, and the one trial of the front
    assert page.count("<polyline") == 2
    assert "trial 1, deep: 0.75, 2,000 parameters" in page


def test_the_comparison_is_shown_with_the_data(run_id):
    page = report_page(run_id, ModelVersion("colours", "2", 0))
    assert f"<pre>export MLFLOW_TRACKING_URI={mlflow.get_tracking_uri()}\nmlflow models" in page
    assert "--promote.candidate 2 --data.folder &#39;my photos&#39;\npython pipelines/roll" in page


def test_parts_that_a_run_lacks_are_named(tracking, tmp_path):
    with pipeline_run("bare", "shown", {"seed": 1}):
        run_id = mlflow.active_run().info.run_id
    report(run_id, str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text("utf-8")
    for said in (
        "Nothing was searched: there is no accuracy over depth, no Pareto front and no table",
        "there is no plan",
        "has registered no version",
    ):
        assert said in page
    assert page.count("the run has logged none") == 2
    assert "<svg" not in page


@pytest.mark.parametrize("rises", [True, False])
def test_of_very_many_trials_the_best_are_shown_and_the_rest_named(tracking, tmp_path, rises):
    numbers = np.arange(10_000)
    name, best = ("val_accuracy", 9_998) if rises else ("val_mean_absolute_error", 1)
    trials = pd.DataFrame(
        {"trial": numbers, "cut": "deep", name: numbers, "parameters": 7 + numbers}
    )
    front = trials[::-4000] if rises else trials[:1]
    with pipeline_run("a long job", "shown", {"seed": 1}):
        log_table(trials, "trials.json")
        log_table(front[::-1] if rises else front, "pareto_parameters.json")
        run_id = mlflow.active_run().info.run_id
    report(run_id, str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text("utf-8")
    shown = page.count("<title>trial ")
    assert shown == (202 if rises else 200)
    assert f"The best {shown} of 10,000 with those of the Pareto front; trials.json among" in page
    assert f"<title>trial {best}, deep" in page
    assert len(page) < 200_000


def test_a_page_that_cannot_be_written_is_one_sentence(run_id):
    with pytest.raises(ConfigError, match=r"can be written\. Received: '/dev/full': No space"):
        report(run_id, "/dev/full")


def test_what_is_no_run_of_a_pipeline_is_refused(tracking, tmp_path):
    with pipeline_run("a job", "shown", {"seed": 1}), step_run("test", "evaluation"):
        pass
    experiment = tracking.get_experiment_by_name("shown").experiment_id
    runs = tracking.search_runs([experiment], "tags.`reusekit.kind` = 'evaluation'")
    inner = runs[0].info.run_id
    for address, said in (
        ("digits", "32 hexadecimal digits"),
        ("0" * 32, "look up the run"),
        (inner, r"the run of a pipeline\. Received: .*'evaluation'"),
        ("models:/nothing@champion", "nothing"),
    ):
        with pytest.raises(TrackingError, match=said):
            report(address, str(tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()
