"""Measure how memory, bytes and seconds grow with the number of examples, and with that of trials.

    python scripts/benchmark_scale.py                                  # some minutes
    python scripts/benchmark_scale.py --examples 1000 10000 --trials 3 30

For each number of examples a process of its own stores the features of generated data, passes over
them in shuffled order beside gathering the same rows from the mapped files alone, and trains two
trials on all of them. For each number of trials another one searches that many learning rates on
2,000 examples. Prints a line of JSON for each, and how each figure grew. Ends with status 1 where a
peak grew by more than a tenth, or where the store holds other bytes than were planned.
"""

import reusekit as rk  # isort: skip  (first: it starts Keras quietly)

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reusekit.data import DataSplit, Task
from reusekit.features import Extraction, FeatureStore
from reusekit.planning import Resources, Trials, obtain, plan

WIDTH, FEATURES, CLASSES = 16, 64, 10
BATCH = 256
BLOCK = 8192  # examples that are made at a time
LIMIT = 1.10  # of the peak of the first
SEARCHED = 2_000  # examples of a search of many trials
MEMORY = 32 << 20  # bytes that a plan may take: less than the features, so that they stay mapped


def made(examples: int, name: str) -> DataSplit:
    """Return generated examples, none of which is held."""

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, examples, BLOCK):
            count = min(BLOCK, examples - start)
            numbers = np.random.default_rng((len(name), start))
            labels = numbers.integers(0, CLASSES, count)
            yield numbers.normal(size=(count, WIDTH)).astype("float32") + labels[:, None], labels

    spec = (tf.TensorSpec((None, WIDTH), tf.float32), tf.TensorSpec((None,), tf.int64))
    rows = tf.data.Dataset.from_generator(blocks, output_signature=spec).unbatch()
    rows = rows.apply(tf.data.experimental.assert_cardinality(examples))
    task = Task("classification", tuple(map(str, range(CLASSES))))
    return DataSplit("made:1.0.0", name, rows, examples, task, f"{name}{examples}")


def backbone() -> keras.Model:
    """Return a small network with one cut."""
    keras.utils.set_random_seed(0)
    x = keras.Input((WIDTH,))
    y = keras.layers.Dense(FEATURES, activation="relu", name="features")(x)
    return keras.Model(x, keras.layers.Dense(FEATURES, activation="relu", name="last")(y))


class Watch(Thread):
    """Looks at this process's own memory, without mapped files, fifty times a second (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._over = 0, Event()
        self.start()

    def run(self) -> None:
        """Look until told to stop."""
        while not self._over.is_set():
            lines = Path("/proc/self/status").read_text().splitlines()
            kilobytes = next(line for line in lines if line.startswith("RssAnon:")).split()[1]
            self.peak = max(self.peak, int(kilobytes) * 1024)
            self._over.wait(0.02)

    def stop(self) -> int:
        """Return the peak in bytes."""
        self._over.set()
        self.join()
        return self.peak


def measured_examples(examples: int, folder: Path) -> dict[str, Any]:
    """Store, read and search; return the figures of one number of examples."""
    model, store = backbone(), FeatureStore(folder / "features")
    train, validation = made(examples, "train"), made(SEARCHED // 4, "validation")
    watch = Watch()
    start = perf_counter()
    asked = [Trials("features", None, count=1, batch_size=BATCH)]
    how, room = Extraction(batch_size=BATCH), Resources(memory=MEMORY)
    planned = plan(model, asked, train, validation, store, how, room)
    (source,) = obtain(planned, model, store, train, training=True).values()
    obtain(planned, model, store, validation)
    extracted = perf_counter() - start
    seconds = []
    for epoch in range(2):  # the first one may not find the files in the system's cache
        start = perf_counter()
        count = sum(len(labels) for _, labels in source.batches(BATCH, seed=epoch))
        seconds.append(perf_counter() - start)
    if count != examples:
        raise RuntimeError(f"Expected an epoch of {examples} examples. Received: {count}.")
    start = perf_counter()
    order = np.random.default_rng(0).permutation(examples)
    (stored,) = source.stored.values()
    for low in range(0, examples, BATCH):
        stored[order[low : low + BATCH]]
    gathered = perf_counter() - start
    held, features_peak = sum(one.bytes for one in store.entries()), watch.stop()
    watch = Watch()
    searched = search_seconds(folder, store, train, validation, trials=2)
    return {
        "examples": examples,
        "features_peak_bytes": features_peak,
        "search_peak_bytes": watch.stop(),
        "planned_bytes": planned.bytes,
        "stored_bytes": held,
        "extract_s": extracted,
        "epoch_s": min(seconds),
        "gather_s": gathered,
        "search_s": searched,
    }


def measured_trials(trials: int, folder: Path) -> dict[str, Any]:
    """Search on few examples; return the figures of one number of trials."""
    train, validation = made(SEARCHED, "train"), made(SEARCHED // 4, "validation")
    watch, store = Watch(), FeatureStore(folder / "features")
    seconds = search_seconds(folder, store, train, validation, trials)
    return {"trials": trials, "search_peak_bytes": watch.stop(), "search_s": seconds}


def search_seconds(
    folder: Path, store: FeatureStore, train: DataSplit, validation: DataSplit, trials: int
) -> float:
    """Return the seconds of a search of so many learning rates, for one epoch each."""
    start = perf_counter()
    rates = np.geomspace(1e-4, 1e-2, trials).tolist()
    space = rk.SearchSpace(
        ["features"], units=[0], dropout=[0.0], learning_rates=rates, batch_sizes=[BATCH]
    )
    config = rk.SearchConfig(epochs=1, patience=1, memory=MEMORY)
    rk.CutSearch(
        backbone(), train, validation, space, config, folder=folder / "trials", store=store
    ).run()
    return perf_counter() - start


def growth(rows: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return how many times as much each row has of each figure as the first."""
    return [{name: row[name] / rows[0][name] for name in rows[0]} for row in rows]


def grown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the peaks of which some row has more than a tenth above the first."""
    peaks = [name for name in rows[0] if name.endswith("peak_bytes")]
    return [name for name in peaks if any(row[name] > LIMIT * rows[0][name] for row in rows)]


def measure(kind: str, number: int, folder: Path | None) -> dict[str, Any]:
    """Return the figures of one number, measured in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, __file__, "--measure", kind, "--folder", scratch]
        command += [f"--{kind}", str(number)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


MEASURED: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "examples": measured_examples,
    "trials": measured_trials,
}


def main() -> None:
    """Measure each number, and print the growth."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--trials", type=int, nargs="*", default=[10, 100, 1_000])
    parser.add_argument("--folder", type=Path, help="scratch folder; a temporary one by default")
    parser.add_argument("--measure", choices=list(MEASURED), help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # of many models, each traced
    if options.measure:
        (number,) = getattr(options, options.measure)
        print(json.dumps(MEASURED[options.measure](number, options.folder)))
        return
    wrong = []
    for kind in MEASURED:
        rows = []
        for number in getattr(options, kind):
            rows.append(measure(kind, number, options.folder))
            print(json.dumps(rows[-1]), flush=True)
        for row in growth(rows) if rows else ():
            print(f"growth  {'  '.join(f'{name} {value:.2f}' for name, value in row.items())}")
        for name in grown(rows) if rows else ():
            wrong.append(f"{name} grows with the number of {kind}.")
        if any(row.get("planned_bytes") != row.get("stored_bytes") for row in rows):
            wrong.append("The store holds other bytes than were planned.")
    print(*wrong or ["Memory is flat, and bytes are as planned."], sep="\n")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
