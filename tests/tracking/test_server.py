"""The tracker is checked before anything depends on it."""

import mlflow
import pytest

import reusekit as rk
from reusekit.tracking import connect, ui_command


def test_a_database_file_serves(tracking):
    uri = connect("sqlite:///mlflow.db", "an experiment")
    assert mlflow.get_experiment_by_name("an experiment")
    assert ui_command(uri) == "mlflow ui --backend-store-uri sqlite:///mlflow.db"


def test_a_server_that_does_not_answer_is_named_with_what_to_do(tracking):
    with pytest.raises(rk.TrackingError) as caught:
        connect("http://127.0.0.1:9", "x")
    assert "http://127.0.0.1:9 does not answer" in str(caught.value)
    assert "mlflow server" in str(caught.value)


@pytest.mark.parametrize("uri", ["sqlite:///no/such/folder/mlflow.db", "nonsense://x"])
def test_what_cannot_be_used_is_refused(tracking, uri):
    with pytest.raises(rk.TrackingError) as caught:
        connect(uri, "x")
    assert uri in str(caught.value)
