"""A job of more than one machine: runs in PostgreSQL; files, features and the search in S3."""

import contextlib
import io
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from repository import ROOT
from storage import BUCKET
from tracking.postgresql import postgresql_server

import reusekit as rk
from reusekit import progress
from reusekit.tracking import connect, pipeline_run
from reusekit.tracking.registry import logged_model_id

JOB = [
    f"--config={ROOT / 'configs' / 'digits.yaml'}",
    "--data.examples_per_class=5",
    "--search.max_trials=4",
    "--search.max_cuts=2",
    "--search.epochs=6",
    "--finetune.epochs=1",
    "--baselines.from_scratch=false",
    "--baselines.linear=false",
    f"--search.store=s3://{BUCKET}/features",
    f"--search.folder=s3://{BUCKET}/search",
]


@pytest.fixture(scope="module")
def database():
    with postgresql_server() as address:
        yield address


@pytest.fixture(scope="module")
def finished(s3, database, run_pipeline, tmp_path_factory):
    """The job on one machine and then on another: what each printed, and a client."""
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        for machine in ("one", "other"):
            folder = tmp_path_factory.mktemp(machine)
            patch.chdir(folder)
            patch.setenv("XDG_CACHE_HOME", str(folder / "caches"))
            if machine == "one":
                client = mlflow.MlflowClient(connect(database, "digits"))
                client.create_experiment("digits", f"s3://{BUCKET}/artifacts")
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out):
                run_pipeline("cut_search", *JOB, f"--tracking.uri={database}")
            printed.append((folder, out.getvalue() + err.getvalue()))
        yield printed, client
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


def jobs(client):
    """The runs of the two jobs, each with its nested runs."""
    (experiment,) = client.search_experiments(filter_string="name = 'digits'")
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])
    parents = [one for one in runs if one.data.tags["reusekit.kind"] == "pipeline"]
    return [
        (one, [r for r in runs if r.data.tags.get("mlflow.parentRunId") == one.info.run_id])
        for one in parents
    ]


def test_runs_are_in_the_database(finished):
    first, second = jobs(finished[1])
    for parent, nested in (first, second):
        trials = [one for one in nested if one.data.tags["reusekit.kind"] == "trial"]
        assert len(trials) == 4
        assert {one.info.status for one in [parent, *nested]} == {"FINISHED"}
    # The other machine trained none of them again.
    assert f"The search is kept in s3://{BUCKET}/search;" in finished[0][0][1]
    resumed = [parent.data.metrics["search_resumed_trials"] for parent, _ in (first, second)]
    assert resumed == [0, 4]
    values = [
        sorted(r.data.metrics["val_accuracy"] for r in nested if "trial" in r.info.run_name)
        for _, nested in (first, second)
    ]
    assert values[0] == values[1]


def test_files_are_in_the_storage_byte_for_byte(finished, s3):
    ((folder, _), _), client = finished
    (parent, _), _ = jobs(client)
    assert parent.info.artifact_uri.startswith(f"s3://{BUCKET}/artifacts/")
    prefix = parent.info.artifact_uri.removeprefix(f"s3://{BUCKET}/")
    stored = {key.removeprefix(f"{prefix}/"): one for key, one in s3.objects(prefix).items()}
    local = {path.name: path for path in folder.glob("runs/*/*") if path.is_file()}
    same = set(stored) & set(local)
    assert same >= {"plan.json", "accuracy_over_depth.png", "report.html"}
    for name in same:
        assert stored[name] == local[name].read_bytes(), name
        there = client.download_artifacts(parent.info.run_id, name)
        assert Path(there).read_bytes() == stored[name]
    assert not (folder / "mlruns").exists()


def test_models_are_registered_and_load_back(finished, s3):
    client = finished[1]
    version = client.get_model_version_by_alias("digits", "champion")
    assert int(version.version) == 1  # the second did not take its place
    folder = client.get_logged_model(logged_model_id(version)).artifact_location
    stored = s3.objects(folder.removeprefix(f"s3://{BUCKET}/"))
    assert any(key.endswith("MLmodel") for key in stored)
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 1)).astype("float32")
    whole = mlflow.keras.load_model("models:/digits@champion")(images)
    assert keras.ops.shape(whole) == (4, 10)
    again = rk.load_backbone("models:/digits@champion").model(images)
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (whole, again)))
    names = {one.name for one in client.search_registered_models()}
    assert {"digits", "digits-top"} < names and len(names) == 3, names


def test_features_came_from_the_storage(finished, s3):
    (_, (folder, _)), _ = finished
    stored = s3.objects("features/entries")
    fetched = list((folder / "caches" / "reusekit" / "features" / "entries").iterdir())
    assert {f"features/entries/{one.name}.json" for one in fetched} <= set(stored)
    leases = [content for key, content in s3.objects("search").items() if "lease" in key]
    assert leases == [b""]  # one, given up


def test_the_password_is_shown_nowhere(finished, s3):
    for folder, printed in finished[0]:
        assert "secret-of-mlflow" not in printed
        for file in folder.glob("runs/**/*"):
            assert not file.is_file() or b"secret-of-mlflow" not in file.read_bytes(), file
    for key, content in s3.objects("artifacts").items():
        assert b"secret-of-mlflow" not in content, key


def test_files_in_a_folder_of_one_machine_are_warned_of(finished, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    monkeypatch.setattr(progress.console, "_file", printed)  # .file would not be undone
    connect(database.replace("127.0.0.1", "127.1"), "digits")  # as a machine of another name
    for experiment, warned in (("elsewhere", True), ("digits", False)):
        printed.truncate(0)
        with pipeline_run("job", experiment, {}, tmp_path / experiment):
            pass
        assert ("others that use postgresql" in printed.getvalue()) == warned
        assert "secret-of-mlflow" not in printed.getvalue()
