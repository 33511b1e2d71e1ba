"""What a cut search found, as data."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reusekit.training.fit import Fit


@dataclass(frozen=True)
class TrialRecord:
    """One finished trial.

    Attributes:
        number: Its number, from 0.
        cut: The address it cut at.
        values: All of its hyperparameters.
        fit: Its training.
        head_parameters: How many parameters its head has.
    """

    number: int
    cut: str
    values: dict[str, Any]
    fit: Fit
    head_parameters: int

    @property
    def accuracy(self) -> float:
        """Validation accuracy at the best epoch."""
        return self.fit.metrics["val_accuracy"]

    @property
    def loss(self) -> float:
        """Validation loss at the best epoch."""
        return self.fit.metrics["val_loss"]


@dataclass(frozen=True)
class CutResult:
    """The trials of one cut.

    Attributes:
        at: Its address.
        depth: The share of the backbone's FLOPs before it, from 0 to 1.
        bottom_parameters: Parameters of the bottom that ends there.
        trials: Its trials, best first.
    """

    at: str
    depth: float
    bottom_parameters: int
    trials: tuple[TrialRecord, ...]

    @property
    def best(self) -> TrialRecord:
        """Its best trial."""
        return self.trials[0]

    @property
    def parameters(self) -> int:
        """Parameters of its bottom with the head of its best trial."""
        return self.bottom_parameters + self.best.head_parameters

    @property
    def seconds(self) -> float:
        """What its trials took together."""
        return sum(trial.fit.seconds for trial in self.trials)


@dataclass(frozen=True)
class SearchResult:
    """All trials of a search.

    Attributes:
        cuts: One result for each cut that was tried, shallow to deep.
    """

    cuts: tuple[CutResult, ...]

    @property
    def best(self) -> TrialRecord:
        """The trial with the highest validation accuracy; of equals, the lowest loss."""
        return ranked(trial for cut in self.cuts for trial in cut.trials)[0]

    def to_frame(self) -> pd.DataFrame:
        """The cuts as a table, one row each, shallow to deep."""
        return pd.DataFrame(
            {
                "cut": cut.at,
                "depth": cut.depth,
                "validation_accuracy": cut.best.accuracy,
                "validation_loss": cut.best.loss,
                "parameters": cut.parameters,
                "trials": len(cut.trials),
                "seconds": cut.seconds,
            }
            for cut in self.cuts
        )

    def trials_frame(self) -> pd.DataFrame:
        """The trials as a table, one row each, in the order they ran."""
        trials = sorted((t for cut in self.cuts for t in cut.trials), key=lambda t: t.number)
        return pd.DataFrame(
            {
                "trial": trial.number,
                **trial.values,
                "validation_accuracy": trial.accuracy,
                "validation_loss": trial.loss,
                "best_epoch": trial.fit.best_epoch,
                "seconds": trial.fit.seconds,
            }
            for trial in trials
        )


def ranked(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Trials by validation accuracy, best first; of equals, the one with the lower loss first."""
    return sorted(trials, key=lambda trial: (-trial.accuracy, trial.loss))
