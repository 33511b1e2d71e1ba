"""A job whose tracking server goes away for good ends well, and loses nothing."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from reusekit.cli import sync
from reusekit.launch import launch_one_of


@pytest.fixture
def last_words():
    """The address of a server that is well, knows no model, and then answers nothing any more."""

    class Server(BaseHTTPRequestHandler):
        gone = False

        def do_GET(self) -> None:
            if Server.gone:
                return
            found = self.path == "/health"
            Server.gone = not found
            body = b"OK" if found else b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}'
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_job_outlives_its_server(run_pipeline, tracking, last_words, digits, capfd):
    here = mlflow.get_tracking_uri()
    run_pipeline(
        "finetune",
        "--data.name=sklearn_digits",
        "--cut=block2_out",
        "--data.examples_per_class=5",
        "--head.epochs=2",
        "--finetune.share=0",
        f"--tracking.uri={last_words}",
        "--tracking.model=late",
    )
    out, err = capfd.readouterr()
    assert "Cut at block2_out" in out
    assert "is not registered yet" in out
    assert len([line for line in err.splitlines() if line.startswith("warning:")]) == 1
    (job,) = Path("runs").iterdir()
    assert f"reusekit sync {job}" in err
    assert list(job.glob("outbox/*.carried/*/*/data/model.keras"))

    launch_one_of({"sync": sync}, ["sync", f"--uri={here}"])
    assert "refused 0, left 0" in capfd.readouterr().out
    mlflow.set_tracking_uri(here)
    experiment = tracking.get_experiment_by_name("reusekit")
    runs = tracking.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.data.tags["reusekit.kind"] == "pipeline")
    assert parent.info.status == "FINISHED"
    assert parent.data.params["data.examples_per_class"] == "5"
    assert {run.info.status for run in runs} == {"FINISHED"}
    model = mlflow.keras.load_model("models:/late@champion")
    assert "block2_out" in [layer.name for layer in model.layers]
