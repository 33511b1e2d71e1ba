"""Nothing is lost and nothing is twice, whatever happens to the server while a job runs."""

import time

import mlflow
import pytest
from tracking.small_job import run_job, what_is_there

import reusekit as rk
from reusekit.tracking import (
    log_metrics,
    log_params,
    pipeline_run,
    recorder,
    step_run,
)
from reusekit.tracking.outbox import Outbox, send_outbox


def sync(folder, uri=None) -> None:
    assert all(send_outbox(Outbox(folder), uri))


def at(moments: dict[str, object], proxy):
    """Set the fault of a proxy at moments of the job."""

    def happens(moment: str) -> None:
        if moment in moments:
            proxy.fault = moments[moment]

    return happens


def test_every_store_gets_the_same_without_a_file_in_between(
    store, everything, experiment, tmp_path
):
    run_job(tmp_path / "outbox", experiment=experiment)
    assert store() == everything
    assert not (tmp_path / "outbox").exists()
    assert mlflow.active_run() is None


def test_what_could_not_be_sent_is_sent_later(there, remote, everything, experiment, tmp_path):
    run_job(tmp_path / "outbox", at({"begun": "away"}, remote), experiment)
    assert Outbox(tmp_path / "outbox").records()
    remote.fault = None
    sync(tmp_path / "outbox")
    assert there() == everything
    assert not (tmp_path / "outbox").exists()


def test_a_server_that_comes_back_gets_it_while_the_job_runs(
    there, remote, everything, experiment, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(recorder, "pause_after", lambda seconds: 0.0)
    waiting = {}

    def happens(moment: str) -> None:
        waiting[moment] = len(Outbox(tmp_path / "outbox").records())
        at({"epoch 0": "away", "epoch 2": None, "files": "fail", "end": None}, remote)(moment)

    run_job(tmp_path / "outbox", happens, experiment)
    assert waiting["epoch 2"] == 2
    assert waiting["trials"] == 0
    assert waiting["end"] > 0
    assert there() == everything
    assert not (tmp_path / "outbox").exists()
    said = capfd.readouterr().err
    assert said.count("warning:") == 2
    assert said.count("answers again") == 2


def test_a_lost_answer_makes_nothing_twice(
    there, remote, everything, experiment, tmp_path, monkeypatch
):
    monkeypatch.setattr(recorder, "pause_after", lambda seconds: 0.0)
    remote.fault = "lose"
    run_job(tmp_path / "outbox", experiment=experiment)
    assert remote.lost.total() > 10
    remote.fault = None
    if (tmp_path / "outbox").exists():
        sync(tmp_path / "outbox")
    assert there() == everything


def test_a_server_that_was_killed_and_started_again_gets_everything(
    there, server, everything, experiment, tmp_path
):
    mlflow.set_tracking_uri(server.uri)
    try:
        run_job(
            tmp_path / "outbox",
            lambda moment: server.kill() if moment == "epoch 1" else None,
            experiment,
        )
    finally:
        server.kill()
        server.start()
    sync(tmp_path / "outbox")
    assert there() == everything
    mlflow.set_tracking_uri(None)


def test_a_slow_server_costs_seconds_and_is_asked_seldom(
    remote, experiment, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    began = time.monotonic()
    run_job(tmp_path / "outbox", at({"begun": "slow"}, remote), experiment)
    assert time.monotonic() - began < 15
    said = capfd.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("warning:")]) == 1
    waiting = len(Outbox(tmp_path / "outbox").records())
    assert f"{waiting} records wait in {tmp_path / 'outbox'}" in said[-1]
    assert f"reusekit sync {tmp_path}" in said[-1]
    asked = remote.requests
    assert asked < waiting


def test_a_server_that_was_never_there_gets_everything_later(there, remote, experiment, tmp_path):
    remote.fault = "away"
    with pipeline_run("job", experiment, {"a": 1}, tmp_path / "outbox"), step_run("one", "trial"):
        assert mlflow.active_run() is None
        log_metrics({"loss": 1.0})
    remote.fault = None
    sync(tmp_path / "outbox")
    parent, step = there()
    assert (parent["status"], parent["params"]) == ("FINISHED", {"a": "1"})
    assert (step["parent"], step["metrics"]) == ("job", {"loss": [(0, "1.0")]})


def test_what_the_server_refuses_is_an_error_at_once(store, experiment, tmp_path):
    with (
        pytest.raises(rk.TrackingError, match="a refusal of"),
        pipeline_run("job", experiment, {"a": 1}, tmp_path / "outbox"),
    ):
        log_params({"a": 2})
    assert not (tmp_path / "outbox").exists()
    assert mlflow.active_run() is None
    (run,) = store()
    assert (run["status"], run["params"]) == ("FAILED", {"a": "1"})


def test_without_an_outbox_a_server_that_is_away_is_an_error(remote, experiment):
    with (
        pytest.raises(rk.TrackingError, match="does not answer"),
        pipeline_run("job", experiment, {}),
    ):
        remote.fault = "away"
        log_metrics({"a": 1.0})
    assert mlflow.active_run() is None


def test_a_disk_that_takes_nothing_is_an_error_that_says_so(remote, experiment, tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "outbox").write_text("no folder")
    with (
        pytest.raises(rk.TrackingError, match="job/outbox to keep what the tracking server"),
        pipeline_run("job", experiment, {}, tmp_path / "job" / "outbox"),
    ):
        remote.fault = "away"
        log_metrics({"a": 1.0})


def test_an_outbox_that_is_not_empty_is_refused(remote, experiment, tmp_path):
    with pipeline_run("job", experiment, {}, tmp_path / "outbox"):
        remote.fault = "away"
    with (
        pytest.raises(rk.TrackingError, match="reusekit sync"),
        pipeline_run("job", experiment, {}, tmp_path / "outbox"),
    ):
        raise AssertionError("it was opened")


def test_mlflows_own_functions_write_to_the_parent(tracking, experiment):
    with pipeline_run("job", experiment, {}), step_run("inner", "phase"):
        mlflow.log_metric("own", 1.0)
        log_metrics({"ours": 2.0})
    inner, parent = what_is_there(tracking, experiment)
    assert (parent["name"], list(parent["metrics"])) == ("job", ["own"])
    assert (inner["name"], list(inner["metrics"])) == ("inner", ["ours"])


def test_a_run_that_mlflow_has_opened_is_the_parent(tracking, experiment, monkeypatch):
    opened = tracking.create_run(tracking.create_experiment(experiment), tags={"mine": "1"})
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    with pipeline_run("job", "another name", {"seed": 1}), step_run("inner", "phase"):
        log_metrics({"ours": 2.0})
    assert tracking.get_experiment_by_name("another name") is None
    inner, parent = tracking.search_runs(
        [opened.info.experiment_id], order_by=["attributes.run_name"]
    )
    assert parent.info.run_id == inner.data.tags["mlflow.parentRunId"] == opened.info.run_id
    assert parent.info.run_name == "job"
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["mine"] == "1"
    assert parent.data.params == {"seed": "1"}


def test_steps_can_be_written_in_any_run_of_mlflow(tracking):
    with mlflow.start_run() as run, step_run("inner", "phase", {"rate": 1}):
        log_metrics({"ours": 2.0}, step=3)
    log_metrics({"late": 1.0})  # as MLflow does: in a run of its own
    started = mlflow.active_run().info.run_id
    mlflow.end_run()
    assert tracking.get_run(started).data.metrics == {"late": 1.0}
    (inner,) = tracking.search_runs(
        [run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'"
    )
    assert inner.data.params == {"rate": "1"}
    assert tracking.get_metric_history(inner.info.run_id, "ours")[0].step == 3


def test_a_deleted_experiment_is_refused(tracking, experiment):
    tracking.delete_experiment(tracking.create_experiment(experiment))
    with (
        pytest.raises(rk.TrackingError, match="has been deleted"),
        pipeline_run("job", experiment, {}),
    ):
        raise AssertionError("it was opened")
