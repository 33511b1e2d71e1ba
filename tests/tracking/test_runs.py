"""A pipeline's run among what the caller of MLflow has set: experiments, runs, autologging."""

import subprocess
import time
from pathlib import Path
from unittest.mock import Mock

import keras
import mlflow
import numpy as np
import psutil
import pytest
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from requests import ConnectionError
from small_models import X, backbone, with_head, written

import reusekit as rk
from reusekit.tracking import log_metrics, pipeline_run, send_models
from reusekit.tracking.outbox import Outbox, send_outbox
from reusekit.tracking.unfinished import process_tags


def experiment_of_a_run() -> str:
    with pipeline_run("job", None, {}):
        return mlflow.get_experiment(mlflow.active_run().info.experiment_id).name


def test_the_experiment_is_the_one_that_mlflow_was_told_of(tracking, monkeypatch):
    # pipeline B7
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    assert experiment_of_a_run() == "reusekit"
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "of the environment")
        assert experiment_of_a_run() == "of the environment"
    for unknown in ("4711", "nonsense"):
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_EXPERIMENT_ID", unknown)
            with pytest.raises(rk.TrackingError, match=r"MLFLOW_EXPERIMENT_ID .* --tracking"):
                experiment_of_a_run()
    mlflow.set_experiment("of the caller")
    assert experiment_of_a_run() == "of the caller"
    with pipeline_run("job", "named", {}):
        run = mlflow.active_run()
    assert tracking.get_experiment(run.info.experiment_id).name == "named"
    with mlflow.start_run() as after:  # the caller's choice still holds
        assert tracking.get_experiment(after.info.experiment_id).name == "of the caller"


def test_a_pipeline_within_a_run_is_nested_in_it(tracking):
    # pipeline F
    mlflow.set_experiment("outer")
    with mlflow.start_run() as outer:
        with pipeline_run("job", None, {"seed": 1}):
            inner = mlflow.active_run()
            log_metrics({"accuracy": 1.0})
        assert mlflow.active_run().info.run_id == outer.info.run_id
        mlflow.log_param("after", 1)
    inner = tracking.get_run(inner.info.run_id)
    assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert inner.info.experiment_id == outer.info.experiment_id
    assert (inner.info.status, inner.data.params) == ("FINISHED", {"seed": "1"})
    outer = tracking.get_run(outer.info.run_id)
    assert (outer.info.status, outer.data.params) == ("FINISHED", {"after": "1"})


def test_autologging_of_the_caller_is_off_inside_and_on_again_after(tracking):
    # pipeline B8
    mlflow.keras.autolog(log_models=False)
    try:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        with pipeline_run("job", "auto", {"seed": 1}):
            run = mlflow.active_run()
            model.fit(np.zeros((4, 2)), np.zeros((4, 1)), verbose=0)
        data = tracking.get_run(run.info.run_id).data
        assert (data.params, data.metrics) == ({"seed": "1"}, {})
        with mlflow.start_run() as own:
            model.fit(np.zeros((4, 2)), np.zeros((4, 1)), verbose=0)
        assert "loss" in tracking.get_run(own.info.run_id).data.metrics
    finally:
        mlflow.keras.autolog(disable=True)


@pytest.mark.parametrize("location", ["no folder", "s3://bucket/x", "gs://bucket/x", "nope://x"])
def test_an_artifact_store_that_takes_no_files_is_found_before_any_work(tracking, location):
    # pipeline D
    Path("no folder").write_text("a file")
    if location == "no folder":
        location = Path("no folder").absolute().as_uri()
    experiment = tracking.create_experiment("stuck", location)
    with (
        pytest.raises(rk.TrackingError, match=r"an artifact store that takes files"),
        pipeline_run("job", "stuck", {}, Path("outbox")),
    ):
        pytest.fail("it began to work")
    assert not tracking.search_runs([experiment])


def test_a_model_that_is_refused_at_the_last_step_is_kept_and_sent_later(
    tracking, tmp_path, monkeypatch
):
    # pipeline D: the folder of the artifacts cannot be written any more
    model = with_head(backbone(), 0)
    folder = written(tmp_path / "w", model, backbone(), "m")
    experiment = tracking.create_experiment("full", (tmp_path / "artifacts").as_uri())
    with pytest.raises(rk.TrackingError) as caught, pipeline_run("job", "full", {}, tmp_path / "o"):
        (tmp_path / "artifacts").mkdir(exist_ok=True)
        (tmp_path / "artifacts" / "models").write_text("in the way")
        send_models(folder)
    assert f"reusekit sync {tmp_path}" in str(caught.value)
    assert not folder.exists()
    (run,) = tracking.search_runs([experiment])
    assert run.info.status == "FAILED"
    (tmp_path / "artifacts" / "models").unlink()
    for write in ("finalize_logged_model", "create_model_version", "set_registered_model_alias"):
        with monkeypatch.context() as patch:  # the server goes away in between
            patch.setattr(f"mlflow.MlflowClient.{write}", Mock(side_effect=ConnectionError))
            with pytest.raises(rk.TrackingError, match="does not answer"):
                list(send_outbox(Outbox(tmp_path / "o")))
    assert list(send_outbox(Outbox(tmp_path / "o"))) == [True]
    found = rk.load_backbone("models:/m@champion").model.predict(X, verbose=0)
    assert np.array_equal(found, model.predict(X, verbose=0))


def test_runs_of_dead_processes_are_ended_and_of_no_living_one(tracking, capfd):  # faults A2
    experiment = tracking.create_experiment("shared")
    dead, living = (subprocess.Popen(["sleep", "600"]) for _ in range(2))

    def run(tags: dict[str, str], parent: str | None = None) -> str:
        nested = {} if parent is None else {MLFLOW_PARENT_RUN_ID: parent}
        return tracking.create_run(experiment, tags=tags | nested).info.run_id

    try:
        of_dead, of_living = (process_tags(psutil.Process(one.pid)) for one in (dead, living))
        (tag, value), *_ = of_living.items()
        machine, pid, started = value.split()
        left = [
            run(of_living),
            run({}),
            run({tag: f"{'0' * 16} {dead.pid} {started}"}),
            run({tag: f"{machine} nonsense"}),
        ]
        left.append(run({}, parent=left[0]))
        ended = [run(of_dead), run({tag: f"{machine} {pid} {float(started) - 60:.2f}"})]
        ended.append(run({}, parent=ended[0]))
        dead.kill()  # and not waited for: its number is still taken
        while psutil.Process(dead.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        with pipeline_run("job", "shared", {}), pipeline_run("inner", "shared", {}):
            own = mlflow.active_run().info.run_id
            assert tracking.get_run(own).info.status == "RUNNING"
    finally:
        for process in (dead, living):
            process.kill()
            process.wait()
    assert {tracking.get_run(one).info.status for one in left} == {"RUNNING"}
    assert {tracking.get_run(one).info.status for one in ended} == {"KILLED"}
    assert capfd.readouterr().err.count("was killed: it is ended as KILLED") == 2
