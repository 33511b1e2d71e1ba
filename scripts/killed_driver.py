"""The demo's pipeline on nodes of this machine, small, as a process that is killed."""

import shlex
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import mlflow

from reusekit.digests import digest

ROOT = Path(__file__).resolve().parent.parent
NAME = "killed"
"""The name of the registered model."""


def run(address: str, folder: Path, epochs: int, killed: float | None = None) -> float:
    """Run it, and return its seconds.

    Args:
        address: That of the cluster.
        folder: Where all is kept. The same one goes on with what lies there.
        epochs: Of a trial.
        killed: Seconds after which it is killed, as by `kill -9`.

    Raises:
        RuntimeError: It failed by itself.
    """
    command = [sys.executable, ROOT / "pipelines" / "cut_search.py"]
    command += ["--config", ROOT / "configs" / "digits.yaml", "--cluster.address", address]
    command += ["--output", folder, "--search.store", folder / "store", "--finetune.epochs", "1"]
    command += ["--baselines.from_scratch", "false", "--baselines.linear", "false"]
    command += ["--search.max_trials", "8", "--search.ask", "4", "--search.epochs", epochs]
    command += ["--tracking.uri", f"sqlite:///{folder}/mlflow.db", "--tracking.model", NAME]
    folder.mkdir(exist_ok=True)
    began = perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        _, said = process.communicate(timeout=killed)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return perf_counter() - began
    if process.returncode:
        told = shlex.join(map(str, command))
        raise RuntimeError(f"Expected {told} to succeed. Received: {said.decode()[-2000:]}")
    return perf_counter() - began


def registered(folder: Path) -> tuple[str, bool]:
    """Return a digest of the newest model, and whether a run has a trial twice."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    version = max(client.search_model_versions(f"name = '{NAME}'"), key=lambda v: int(v.version))
    parent = client.get_run(version.run_id)
    query = f"tags.mlflow.parentRunId = '{version.run_id}'"
    runs = client.search_runs([parent.info.experiment_id], query)
    names = [run.info.run_name for run in runs]
    model: Any = mlflow.keras.load_model(f"models:/{NAME}/{version.version}")  # type: ignore[attr-defined]
    weights = [value.tobytes().hex() for value in model.get_weights()]
    return digest(weights), len({*names}) != len(names)
