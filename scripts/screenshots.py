"""Pictures of the MLflow UI on what pipelines logged: the runs page, the newest run, its models.

    python scripts/screenshots.py --uri sqlite:///mlflow.db --output screenshots

Starts `mlflow server` on a tracking database and opens its pages in a headless Chromium. A few
seconds a page.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZE = (1600, 1400)
# The server by a name that is not this machine's own: there, MLflow opens its assistant unasked.
_HOST = "tracking.test"
_PAGE_MS = 20_000  # of Chromium's own clock, which runs ahead where nothing is to be done
_SERVER_SECONDS, _PAGE_SECONDS = 120, 120


def chromium() -> str:
    """Return the browser's program.

    Raises:
        FileNotFoundError: There is none.
    """
    for name in CHROMIUMS:
        if found := shutil.which(name):
            return found
    raise FileNotFoundError(
        f"Expected one of {', '.join(CHROMIUMS)} on PATH, found none. On Debian and Ubuntu: "
        "apt-get install chromium"
    )


@contextmanager
def server(uri: str) -> Iterator[str]:
    """Run a tracking server of its own on a database while the context lasts.

    Args:
        uri: The database, such as `sqlite:///mlflow.db`.

    Yields:
        Its address.

    Raises:
        RuntimeError: It ended, or did not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", f"127.0.0.1:{port},{_HOST}:{port}"]
    command += ["--cors-allowed-origins", f"http://{_HOST}:{port}"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{port}"
            if not _answers(address, process):
                said.seek(0)
                raise RuntimeError(
                    f"mlflow server on {uri} does not answer:\n{said.read()[-2000:]}"
                )
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # its workers, too
            process.wait()


def _answers(address: str, process: subprocess.Popen) -> bool:
    end = time.monotonic() + _SERVER_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            return requests.get(f"{address}/health", timeout=5).ok
        except requests.ConnectionError:
            time.sleep(0.2)
    return False


def pages(client: MlflowClient) -> dict[str, str]:
    """Return the pages of the newest pipeline run and its results, by picture name.

    Args:
        client: Of the tracking server.

    Returns:
        The part of the address behind the server's.

    Raises:
        LookupError: No pipeline has run.
    """
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(
        experiments,
        "tags.`reusekit.kind` = 'pipeline' AND attributes.status = 'FINISHED'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if not runs:
        raise LookupError("No pipeline has finished there. Run one first, such as: make demo")
    run = runs[0].info
    of_experiment = f"/#/experiments/{run.experiment_id}"
    # Sorted by a metric, since runs sorted by time are hidden below their parents.
    trials = urlencode(
        {
            "searchFilter": "tags.`reusekit.kind` = 'trial'",
            "orderByKey": "metrics.`best_val_accuracy`",
            "orderByAsc": "false",
        },
        quote_via=quote,
    )
    found = {
        "runs": f"{of_experiment}/runs",
        "trials": f"{of_experiment}/runs?{trials}",
        "run": f"{of_experiment}/runs/{run.run_id}",
        "models": f"{of_experiment}/models",
    }
    for artifact in client.list_artifacts(run.run_id):
        if artifact.path.endswith(".png"):
            page = f"{of_experiment}/runs/{run.run_id}/artifacts/{artifact.path}"
            found[f"run_{Path(artifact.path).stem}"] = page
    evaluations = client.search_runs(
        [run.experiment_id],
        f"tags.`mlflow.parentRunId` = '{run.run_id}' AND tags.`reusekit.kind` = 'evaluation'",
        max_results=1,
        order_by=["attributes.start_time ASC"],
    )
    for evaluation in evaluations:
        page = f"{of_experiment}/runs/{evaluation.info.run_id}/artifacts/confusion.png"
        found["evaluation"] = page
    models = client.search_logged_models(
        [run.experiment_id], f"source_run_id = '{run.run_id}'", max_results=10
    )
    for model in models:
        role = model.tags.get("reusekit.role", model.name)
        found[f"model_{role}"] = f"{of_experiment}/models/{model.model_id}"
    for version in client.search_model_versions(f"run_id = '{run.run_id}'"):
        if version.tags.get("reusekit.role") == "whole":
            found["registered_model"] = f"/#/models/{version.name}"
            found["version"] = f"/#/models/{version.name}/versions/{version.version}"
    return found


def take(program: str, address: str, file: Path) -> None:
    """Write a picture of a page.

    Args:
        program: Chromium.
        address: The page.
        file: Where the PNG is written.

    Raises:
        RuntimeError: Chromium wrote none.
    """
    # MLflow has one face for models and one for chat bots, and shows the latter unless asked.
    parameters = ("&" if "?" in address else "?") + "workflowType=machine_learning"
    with tempfile.TemporaryDirectory() as profile:
        command = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            f"--host-resolver-rules=MAP {_HOST} 127.0.0.1",
            f"--user-data-dir={profile}",
            f"--window-size={SIZE[0]},{SIZE[1]}",
            f"--virtual-time-budget={_PAGE_MS}",
            f"--screenshot={file.resolve()}",
            address.replace("127.0.0.1", _HOST) + parameters,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PAGE_SECONDS)
    if not file.is_file():
        raise RuntimeError(f"Chromium wrote no picture of {address}:\n{done.stderr[-2000:]}")


def main() -> None:
    """Take a picture of every page, and print where each is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uri", default="sqlite:///mlflow.db", help="the tracking database")
    parser.add_argument("--output", type=Path, default=Path("screenshots"), help="folder for PNGs")
    parser.add_argument("--only", nargs="*", help="names of the pictures to take; all by default")
    options = parser.parse_args()
    try:
        program = chromium()
        with server(options.uri) as address:
            found = pages(MlflowClient(address))
            options.output.mkdir(parents=True, exist_ok=True)
            for name, page in found.items():
                if options.only and name not in options.only:
                    continue
                file = options.output / f"{name}.png"
                take(program, address + page, file)
                print(f"{file}  {page}")
    except (OSError, RuntimeError, LookupError, MlflowException) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
