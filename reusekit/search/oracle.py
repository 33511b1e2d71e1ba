"""An oracle that looks at every cut once before it goes where the gains are."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras_tuner
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from reusekit.search.space import CUT


class CutSweepOracle(keras_tuner.oracles.BayesianOptimizationOracle):
    """Tries each cut once with the default head, then goes on by Bayesian optimisation.

    The first pass gives accuracy over depth at equal settings, which is what a person wants to see;
    the Gaussian process then starts from it. With fewer trials than cuts, the pass takes cuts
    spread evenly from the shallowest to the deepest.

    Args:
        cuts: Addresses, shallow to deep.
        max_trials: How many trials there are in all.
        **kwargs: Further arguments of `keras_tuner.oracles.BayesianOptimizationOracle`.
    """

    def __init__(self, cuts: Sequence[str], max_trials: int, **kwargs: Any) -> None:
        self.sweep = evenly(cuts, max_trials)
        super().__init__(
            max_trials=max_trials, num_initial_points=max(len(self.sweep), 1), **kwargs
        )

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """The values of the next trial; see `keras_tuner.Oracle.populate_space`."""
        number = int(trial_id)
        if number >= len(self.sweep):
            # Its matrices are tiny: threads would cost more than they gain.
            with threadpool_limits(1), warnings.catch_warnings():
                # About keras-tuner's own choice of kernel bounds; nothing a user could act on.
                warnings.simplefilter("ignore", ConvergenceWarning)
                return super().populate_space(trial_id)
        values = {hp.name: hp.default for hp in self.get_space().space}
        return {"status": "RUNNING", "values": values | {CUT: self.sweep[number]}}


def evenly(items: Sequence[str], most: int | None) -> list[str]:
    """At most that many of the items (None: all), spread evenly, the last one among them.

    Example:
        >>> evenly(["a", "b", "c", "d", "e"], 3)
        ['a', 'c', 'e']
        >>> evenly(["a", "b"], 1)
        ['b']
    """
    if most is None or len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
