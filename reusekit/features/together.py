"""The number of trials to train in one pass over the same batches."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from reusekit.arguments import checked
from reusekit.errors import ConfigError
from reusekit.features.costs import Costs

PARAMETER_BYTES = 16
"""Of a trained float32 parameter: itself, its gradient and Adam's two moments."""

_LITTLE = 0.05  # a share of a step that is not worth the memory


@checked(ConfigError)
@dataclass(frozen=True)
class Trials:
    """Trials that read the same features in batches of the same size.

    Attributes:
        at: The address of the cut: everything up to here is frozen.
        pooling: How the head's features are pooled: "avg" or "max"; None for whole maps, since what
            is trained goes on from there.
        count: How many trials.
        epochs: Of each, at most.
        batch_size: Examples a step.
        parameters: How many parameters each trains.
        flops: FLOPs of one example, forward, through what is trained.
    """

    at: str
    pooling: str | None = None
    count: PositiveInt = 1
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 32
    parameters: NonNegativeInt = 0
    flops: NonNegativeFloat = 0


@dataclass(frozen=True)
class Work:
    """All trials that can be trained on the same batches.

    Attributes:
        trials: They differ in what they train and for how long.
        activations: Bytes that one example takes in what a trial trains.
    """

    trials: tuple[Trials, ...]
    activations: int

    @property
    def count(self) -> int:
        """Return the number of trials."""
        return sum(trials.count for trials in self.trials)

    @property
    def batch_size(self) -> int:
        """Examples a step."""
        return self.trials[0].batch_size

    @property
    def bytes(self) -> int:
        """Memory that one trial takes while it is trained, the largest one."""
        parameters = max(trials.parameters for trials in self.trials)
        return PARAMETER_BYTES * parameters + self.batch_size * self.activations


@dataclass(frozen=True)
class Schedule:
    """The schedule of some work.

    Attributes:
        together: How many trials are trained in one pass.
        passes: Passes over the data in all.
        features: Seconds to read or compute the features.
        training: Seconds of the rest.
        reason: Why so many are trained in one pass.
    """

    together: int
    passes: int
    features: float
    training: float
    reason: str


def schedule(
    work: Work,
    rows: Mapping[str, int],
    train: float,
    validation: float,
    costs: Costs,
    memory: float,
    alone: bool = False,
) -> Schedule:
    """Return the number of trials to train in one pass over the same batches.

    One pass for several trials reads or computes the features once for all of them, and starts each
    step once. What each trial computes itself, and its optimizer's work, stays.

    Args:
        work: The trials.
        rows: How many examples there are to "train" and for "validation".
        train: Seconds to come by the features of one training example.
        validation: The same of one validation example.
        costs: The speeds.
        memory: Bytes for training.
        alone: Whether each is to be trained alone in any case.
    """
    size = work.batch_size
    steps = math.ceil(rows["train"] / size)
    own = sum(
        each.count
        * each.epochs
        * (
            # Backwards costs twice what forwards does.
            (3 * rows["train"] + rows["validation"]) * each.flops * costs.seconds_per_flop
            + steps * each.parameters * costs.seconds_per_parameter
        )
        for each in work.trials
    )
    epochs = max(each.epochs for each in work.trials)
    reading = rows["train"] * train + rows["validation"] * validation
    starting = (steps + math.ceil(rows["validation"] / size)) * costs.step_overhead
    share = reading + starting
    share = share / (share + own / work.count / epochs) if share else 0.0
    fit = max(1, int(memory // max(1, work.bytes)))
    if share < _LITTLE:
        # Enough to keep each core busy with one, and one more that is ready to go on.
        most = costs.cores + 1 if costs.cores > 1 else 1
        reason = f"{1 - share:.0%} of a step is each trial's own work"
        reason += ", too small for all cores" if most > 1 else ": little to share"
    else:
        most = work.count
        reason = f"{share:.0%} of a step, features and overhead, is shared"
    if alone or work.count == 1:
        together, reason = 1, "a single trial"
    else:
        together = math.ceil(work.count / math.ceil(work.count / min(fit, most, work.count)))
        if fit < min(most, work.count):
            reason += f"; memory holds {fit} of {work.bytes / 1e6:,.0f} MB each"
    passes = math.ceil(work.count / together) * epochs
    return Schedule(together, passes, passes * reading, passes * starting + own, reason)
