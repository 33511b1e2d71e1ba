"""Splits every model of `keras.applications` at every tensor and checks each split.

Each split is run against the whole model on random inputs; weights and flags are checked as well.
All 40 models take a few hours on two cores. Each model keeps its progress in a file, so that the
same command goes on where it was stopped, in the middle of a model as well.

    python scripts/verify_zoo.py                       # everything
    python scripts/verify_zoo.py --every 50            # a sample of the tensors
    python scripts/verify_zoo.py --model ResNet50 --model VGG16
"""

import reusekit  # isort: skip  # noqa: F401  (first: it starts Keras quietly)

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import keras
from rich.progress import Progress

from reusekit.errors import CertificateError
from reusekit.graph import read
from reusekit.progress import bars_wanted, console
from reusekit.surgery import split
from reusekit.surgery.certificate import random_inputs

# The smallest that a model takes, in the order in which they are tried.
SIZES = (32, 71, 75, 96, 128, 224)
COLUMNS = ("model", "size", "tensors", "tried", "split", "exact", "seconds")


def main() -> None:
    """Run the models asked for and print the table, a row as soon as it is there."""
    options = parse()
    names = options.model or application_names()
    options.progress.mkdir(parents=True, exist_ok=True)
    # Each process has a core to itself; its images are too small to share out.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, os.cpu_count() // options.jobs)))
    print(line({column: column for column in COLUMNS}), flush=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keras"])
    # A process for each model, since what compiled convolutions take is not given back.
    with ProcessPoolExecutor(options.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {
            name: pool.submit(
                verify, name, options.every, options.progress / f"{name}.json", options.save
            )
            for name in names
        }
        with Progress(console=console, disable=not bars_wanted(), transient=True) as bars:
            rows = list(finished(futures, options.progress, bars))
    totals = {column: sum(row[column] for row in rows) for column in COLUMNS[2:]}
    print(line({"model": f"{len(rows)} models", "size": "", **totals}))


def parse() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", action="append", choices=application_names(), metavar="NAME",
        help="a model of keras.applications; may be given again",
    )  # fmt: skip
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth tensor only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="models at the same time")
    parser.add_argument("--progress", type=Path, default=Path("verify_zoo"), metavar="FOLDER")
    parser.add_argument(
        "--save", type=float, default=2, metavar="SECONDS", help="how long between two saves"
    )  # fmt: skip
    return parser.parse_args()


def application_names() -> list[str]:
    """Return the models of `keras.applications`, in alphabetical order."""
    found = vars(keras.applications).items()
    return sorted(name for name, value in found if callable(value) and name[0].isupper())


def finished(futures: dict[str, Future], folder: Path, bars: Progress) -> Iterator[dict]:
    """Yield the rows in order, printed as they come, with bars for models at work."""
    tasks = {}
    for future in futures.values():
        while not future.done():
            for other in (n for n, f in futures.items() if f.running() or n in tasks):
                row = load(folder / f"{other}.json")
                if row:
                    if other not in tasks:
                        tasks[other] = bars.add_task(other)
                    bars.update(tasks[other], completed=row["tried"], total=row["to_try"])
            time.sleep(0.5)
        row = future.result()
        print(line(row), flush=True)
        for failure in row["failures"]:
            print(f"    {failure}", flush=True)
        yield row


def verify(name: str, every: int, file: Path, seconds_between_saves: float = 2) -> dict:
    """Split one model at its tensors, from where its file says, and return its row."""
    conditions = {"every": every, "keras": keras.version(), "backend": keras.backend.backend()}
    row = load(file)
    if row.get("conditions") != conditions:
        row = {"model": name, "conditions": conditions, "tried": 0, "split": 0, "exact": 0}
        row |= {"seconds": 0, "failures": [], "to_try": None}
    if row["tried"] == row["to_try"]:
        return row
    began, before = time.perf_counter(), row["seconds"]
    saved = began
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model, row["size"] = build(name)
    graph = read(model)
    x = random_inputs(graph, batch=1)
    expected = model(x, training=False)
    addresses = [tensor.address for tensor in graph.tensors]
    row["tensors"] = len(addresses)
    addresses = addresses[::every]
    row["to_try"] = len(addresses)
    for address in addresses[row["tried"] :]:
        try:
            certificate = split(graph, address).verify(x, expected)
        except (CertificateError, ValueError, IndexError) as error:
            row["failures"].append(f"{address}: {error}")
        else:
            row["split"] += 1
            row["exact"] += certificate.exact
        row["tried"] += 1
        now = time.perf_counter()
        row["seconds"] = round(before + now - began, 1)
        if now - saved > seconds_between_saves or row["tried"] == row["to_try"]:
            save(row, file)
            saved = now
    return row


def build(name: str) -> tuple[keras.Model, int]:
    """Return a model with random weights, at the smallest size of image that it takes."""
    maker = getattr(keras.applications, name)
    for size in SIZES:
        try:
            return maker(weights=None, input_shape=(size, size, 3), classes=10), size
        except ValueError as error:
            refused = error
    raise refused


def load(file: Path) -> dict:
    """Return the row as it was saved last; empty where there is none."""
    return json.loads(file.read_text()) if file.exists() else {}


def save(row: dict, file: Path) -> None:
    """Write a row beside its file and rename it, so that no kill leaves half of one."""
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(row, indent=1))
    beside.replace(file)


def line(cells: dict) -> str:
    """Return one line of the table: the name to the left, numbers to the right."""
    texts = (str(cells[column]) for column in COLUMNS)
    return "  ".join(t.rjust(8) if place else t.ljust(20) for place, t in enumerate(texts))


if __name__ == "__main__":
    main()
