"""Seconds of the driver for each trial of a long search, whose trials themselves cost nothing.

    python scripts/benchmark_trials.py                    # 1,000 trials of each oracle
    python scripts/benchmark_trials.py --trials 10000     # a few minutes

Everything is real but the training: keras-tuner's oracle, and our state and weights on the disk.
The milliseconds of each tenth of the trials are printed: a search of any length stays usable where
they do not grow.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import keras_tuner
import numpy as np

from reusekit.data.task import Task
from reusekit.search import (
    CutGridOracle,
    CutHyperModel,
    CutSweepOracle,
    CutTuner,
    SearchConfig,
    SearchSpace,
    TrialData,
)
from reusekit.search import tuner as tuner_module
from reusekit.search.execution import GroupTrainer, Outcome, QueuedTrial
from reusekit.training.fit import Fit

CUTS = ("shallow", "middle", "deep")
EPOCHS = 5
ORACLES: dict[str, Callable[[int], keras_tuner.Oracle]] = {
    "random": lambda trials: keras_tuner.oracles.RandomSearchOracle("val_accuracy", trials, seed=1),
    "grid": lambda trials: CutGridOracle(objective="val_accuracy", max_trials=trials),
    "sweep": lambda trials: CutSweepOracle(CUTS, trials, objective="val_accuracy", seed=1),
}


def hypermodel(trials: int) -> CutHyperModel:
    """Return heads on small features, with as many combinations of choices as there are trials."""
    features = {cut: np.eye(8, dtype="float32") for cut in CUTS}
    labels = np.arange(8) % 2
    task = Task("classification", ("even", "odd"))
    data = TrialData.of_arrays(features, labels, features, labels, task)
    most = 1 + round((trials / len(CUTS)) ** (1 / 3))
    rates, dropout = np.geomspace(1e-4, 1.0, most).tolist(), np.linspace(0.0, 0.8, most).tolist()
    space = SearchSpace(
        CUTS, units=list(range(most)), dropout=dropout, learning_rates=rates, batch_sizes=[8, 16]
    )
    return CutHyperModel(data, space, SearchConfig(epochs=EPOCHS))


class Untrained(GroupTrainer):
    """Ends trials at once, with results that follow from what they are."""

    def __call__(self, group: Sequence[QueuedTrial]) -> Iterator[Outcome]:
        """Return the outcomes of a group."""
        for trial in group:
            accuracy = CUTS.index(trial.spec.cut) / 4 + trial.spec.learning_rate / 10
            told = {"loss": 1 - accuracy, "accuracy": accuracy}
            history = {
                f"{part}{name}": [value] * EPOCHS
                for part in ("", "val_")
                for name, value in told.items()
            }
            yield Outcome(trial.number, Fit(history, EPOCHS - 1, 0.0), [np.full(2, accuracy)])


@contextmanager
def untrained() -> Iterator[None]:
    """Have no trial of a tuner be trained."""
    before = tuner_module.GroupTrainer
    tuner_module.GroupTrainer = Untrained  # type: ignore[misc]
    try:
        yield
    finally:
        tuner_module.GroupTrainer = before  # type: ignore[misc]


def seconds(name: str, trials: int, report: Callable[[Any], None] = lambda record: None):
    """Return the driver's processor seconds for each trial, of each tenth of the trials."""
    own = hypermodel(trials)
    ended = [process_time()]

    def told(record: Any) -> None:
        report(record)
        ended.append(process_time())

    with tempfile.TemporaryDirectory() as folder, untrained():
        CutTuner(own, ORACLES[name](trials), Path(folder)).search(told)
    marks = np.linspace(0, len(ended) - 1, 11).astype(int)
    return [(ended[b] - ended[a]) / (b - a) for a, b in pairwise(marks)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--oracles", nargs="+", default=list(ORACLES), choices=list(ORACLES))
    options = parser.parse_args()
    for name in options.oracles:
        print(
            name, [round(float(1e3 * one), 2) for one in seconds(name, options.trials)], flush=True
        )
