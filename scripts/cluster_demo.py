"""The demo on one machine and on two nodes, one of which is killed: the champion is the same.

    python scripts/cluster_demo.py

Both runs, with an MLflow database each, are kept in `runs/cluster_demo`. The network from scratch,
a rival that changes nothing about the champion, is left out.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from time import sleep

from local_nodes import Nodes

ROOT = Path(__file__).resolve().parent.parent


def command(folder: Path, *more: str) -> list[str]:
    """Return the demo's command, with all that it keeps in a folder."""
    search = [sys.executable, "pipelines/cut_search.py", "--config", "configs/digits.yaml"]
    search += ["--baselines.from_scratch", "false"]
    kept = ["--output", str(folder), "--search.store", str(folder / "store")]
    return [*search, *kept, "--tracking.uri", f"sqlite:///{folder}/mlflow.db", *more]


def start(told: list[str]) -> subprocess.Popen:
    """Start a command, and say which."""
    print(f"  {shlex.join(told)}", flush=True)
    return subprocess.Popen(told, cwd=ROOT, stdout=subprocess.DEVNULL)


def finished(process: subprocess.Popen) -> None:
    """Wait for a command that has to succeed."""
    if process.wait():
        sys.exit(f"Expected {process.args} to succeed. Received: exit code {process.returncode}.")


def champion(folder: Path) -> str:
    """Return a digest of the weights of the model that was registered."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import mlflow

    from reusekit.digests import digest

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    model = mlflow.keras.load_model("models:/digits@champion")  # type: ignore[attr-defined]
    return digest([value.tobytes().hex() for value in model.get_weights()])


def main() -> None:
    """Run the demo twice, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="runs/cluster_demo")
    parser.add_argument("more", nargs="*", help="further options of the pipeline, after --")
    options = parser.parse_args()
    output = Path(options.output).resolve()
    alone, together = output / "one_machine", output / "two_nodes"
    for folder in (alone, together):
        folder.mkdir(parents=True, exist_ok=True)
    cores = os.cpu_count() or 1

    print("1. The demo on this machine alone.", flush=True)
    finished(start(command(alone, "--fresh", "true", *options.more)))

    print("2. Two nodes of Ray start on this machine, with a worker each.", flush=True)
    with Nodes(2, cores) as nodes:
        print("3. The same demo on these nodes.", flush=True)
        cluster = ["--cluster.address", nodes.address, "--cluster.cpus", str(cores)]
        process = start(command(together, *cluster, "--fresh", "true", *options.more))
        before = {file: file.stat().st_mtime_ns for file in together.glob("searches/*/state.json")}
        while process.poll() is None:
            files = together.glob("searches/*/state.json")
            if any(file.stat().st_mtime_ns != before.get(file) for file in files):
                print("4. Trials have ended; a node is killed, as by kill -9.", flush=True)
                nodes.kill_one()
                nodes.add_one()
                break
            sleep(0.05)
        finished(process)

    print("5. The demo has ended all the same; the two champions are compared.", flush=True)
    digests = [champion(folder) for folder in (alone, together)]
    for name, found in zip(("one machine", "two nodes"), digests, strict=True):
        print(f"  {name}: {found}")
    if digests[0] != digests[1]:
        sys.exit("Expected the same champion on one machine and on two nodes. Received: another.")
    print("They are the same, to the last bit of every weight.")


if __name__ == "__main__":
    main()
