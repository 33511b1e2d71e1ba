"""Splits every model of `keras.applications` at every tensor and checks each split.

Each split is run against the whole model on random inputs; weights and flags are checked as well.
All 40 models take hours on two cores, so each model's row is written to a file as soon as it is
there, and a later run with the same file goes on where this one stopped.

    python scripts/verify_zoo.py                       # everything
    python scripts/verify_zoo.py --every 50            # a sample of the tensors
    python scripts/verify_zoo.py --model ResNet50 --model VGG16
"""

import reusekit  # isort: skip  # noqa: F401  (first: it starts Keras quietly)

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import keras

from reusekit.graph import read
from reusekit.surgery import CertificateError, split
from reusekit.surgery.random_inputs import random_inputs

# The smallest that a model takes, in the order in which they are tried.
SIZES = (32, 71, 75, 96, 128, 224)
COLUMNS = ("model", "size", "tensors", "tried", "split", "exact", "seconds")


def main() -> None:
    """Runs the models asked for and prints the table."""
    options = parse()
    done = json.loads(options.progress.read_text()) if options.progress.exists() else {}
    names = options.model or application_names()
    print(row({column: column for column in COLUMNS}))
    for name in names:
        key = f"{name} every {options.every}"
        if key not in done:
            done[key] = verify(name, options.every)
            options.progress.write_text(json.dumps(done, indent=1))
        print(row(done[key]), flush=True)
        for failure in done[key]["failures"]:
            print(f"    {failure}")
    rows = [done[f"{name} every {options.every}"] for name in names]
    totals = {column: sum(r[column] for r in rows) for column in COLUMNS[2:]}
    print(row({"model": f"{len(rows)} models", "size": "", **totals}))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", help="a model's name; may be given again")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth tensor only")
    parser.add_argument("--progress", type=Path, default=Path("verify_zoo.json"))
    return parser.parse_args()


def application_names() -> list[str]:
    """The models of `keras.applications`, in alphabetical order."""
    found = vars(keras.applications).items()
    return sorted(name for name, value in found if callable(value) and name[0].isupper())


def verify(name: str, every: int) -> dict:
    """Splits one model and returns its row of the table."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model, size = build(name)
    graph = read(model)
    x = random_inputs(graph, batch=1)
    expected = model(x, training=False)
    began = time.perf_counter()
    result = {
        "model": name,
        "size": size,
        "tensors": len(graph.tensors),
        "tried": 0,
        "split": 0,
        "exact": 0,
        "failures": [],
    }
    for address in [tensor.address for tensor in graph.tensors][::every]:
        result["tried"] += 1
        try:
            certificate = split(graph, address).verify(x, expected)
        except (CertificateError, ValueError, IndexError) as error:
            result["failures"].append(f"{address}: {error}")
        else:
            result["split"] += 1
            result["exact"] += certificate.exact
    result["seconds"] = round(time.perf_counter() - began, 1)
    return result


def build(name: str) -> tuple[keras.Model, int]:
    """A model with random weights, at the smallest size of image that it takes."""
    maker = getattr(keras.applications, name)
    for size in SIZES:
        try:
            return maker(weights=None, input_shape=(size, size, 3), classes=10), size
        except ValueError as error:
            refused = error
    raise refused


def row(cells: dict) -> str:
    """One line of the table."""
    return "  ".join(aligned(cells))


def aligned(cells: dict) -> Iterator[str]:
    """The cells of a line: the name to the left, numbers to the right."""
    for column in COLUMNS:
        text = str(cells[column])
        yield text.ljust(20) if column == "model" else text.rjust(8)


if __name__ == "__main__":
    main()
