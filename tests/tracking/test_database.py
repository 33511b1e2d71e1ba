"""A new database is there as a whole or not at all, whenever its maker is killed."""

import sqlite3
from pathlib import Path

import alembic.op
import mlflow
import pytest
from tracking.servers import kill_myself, killed

import reusekit as rk
from reusekit.tracking import connect
from reusekit.tracking.server import make_database


def killed_among_its_tables(work):
    """Do some work in a process that kills itself while MLflow makes its tables."""

    def die() -> None:
        create_table = alembic.op.create_table

        def watched(name, *columns, **options) -> None:
            create_table(name, *columns, **options)
            if name == "secrets":  # one of the last
                kill_myself()

        alembic.op.create_table = watched
        work()

    killed(die)


def test_a_maker_that_is_killed_leaves_nothing(tracking, tmp_path):  # faults A1
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    killed_among_its_tables(lambda: connect(uri, "a model"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("new")] == []
    assert connect(uri, "a model") == uri
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("new")] == ["new.db"]
    (experiment,) = mlflow.MlflowClient(uri).search_experiments()
    assert Path(experiment.artifact_location) == tmp_path / "mlruns" / "0"


def test_what_mlflow_left_half_made_is_named(tracking, tmp_path):  # faults A1
    uri = f"sqlite:///{tmp_path / 'half.db'}"
    killed_among_its_tables(lambda: mlflow.MlflowClient(uri).search_experiments())
    with pytest.raises(rk.TrackingError, match=r"Delete .*half\.db"):
        connect(uri, "a model")


def test_a_database_that_is_there_is_left_alone(tracking, tmp_path):
    before = (tmp_path / "mlflow.db").read_bytes()
    make_database(f"sqlite:///{tmp_path / 'mlflow.db'}")
    make_database("sqlite:///:memory:")
    make_database("http://localhost:5000")
    make_database(f"sqlite:///{tmp_path / 'no' / 'folder.db'}")
    assert (tmp_path / "mlflow.db").read_bytes() == before
    assert sqlite3.connect(tmp_path / "mlflow.db").execute("PRAGMA integrity_check").fetchone()
    assert not (tmp_path / "no").exists()
