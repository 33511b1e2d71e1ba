"""An oracle that looks at every cut once before it goes where the gains are."""

import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from weakref import WeakMethod

import keras_tuner
import numpy as np
from keras_tuner.engine.hyperparameters import Boolean, Choice, Fixed, Float
from pydantic import PositiveInt
from scipy.linalg import solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from threadpoolctl import threadpool_limits

from reusekit.arguments import checked
from reusekit.errors import ConfigError
from reusekit.search.space import BACKBONE, CUT, NamedCut, choice_of, named_cut

# Trials asked for at once after the first pass: they are trained in little more than the time of
# one, and the Gaussian process allows for those whose results are not there yet.
_AT_A_TIME = 4
# What a Gaussian process costs grows with the cube of what it learns from, so that it sees these
# many trials at most. When it has them, it chooses one of so many, and further ones are at random.
_LEARNED = 128
_ONE_OF = 8
# Combinations asked for at once, in whole groups, so that few are on the way at any time.
_OF_A_GRID = 1024

_Item = TypeVar("_Item")


class CutSweepOracle(keras_tuner.oracles.BayesianOptimizationOracle):
    """Tries each cut once with the default head, then goes on by Bayesian optimisation.

    The first pass gives accuracy over depth at equal settings, which is what a person wants to see;
    the Gaussian process then starts from it. With fewer trials than cuts, the pass takes cuts
    spread evenly from the shallowest to the deepest. A search that goes on with more trials than
    before takes first what its pass has left out. From trial 128 on the Gaussian process learns
    from the best 64 and the latest 64 and chooses each eighth trial, and the others are drawn at
    random, so that thousands of trials take no longer each than the first ones.

    Args:
        cuts: Addresses, shallow to deep; of several backbones pairs of the backbone's name and the
            address.
        max_trials: The number of trials in all.
        best: Values with which a cut is tried first, in the place of defaults, by cut; cuts that
            have some come first, in this order. Values that are no choice are passed over.
        **kwargs: Further arguments of `keras_tuner.oracles.BayesianOptimizationOracle`.
    """

    trials: dict[str, Any]

    @checked(ConfigError)
    def __init__(
        self,
        cuts: Sequence[NamedCut],
        max_trials: PositiveInt,
        best: Mapping[NamedCut, Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self._best = {one: values for one, values in (best or {}).items() if one in cuts}
        self._swept: float = math.inf  # the first trial after the first pass
        first = list(self._best)[:max_trials]
        others = [cut for cut in cuts if cut not in self._best]
        left = max_trials - len(first)
        self.sweep = [*first, *(evenly(others, left) if left else [])]
        super().__init__(
            max_trials=max_trials, num_initial_points=max(len(self.sweep), 1), **kwargs
        )
        self._use_quick_gaussian_process()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; see `keras_tuner.Oracle.set_state`."""
        super().set_state(state)
        self._use_quick_gaussian_process()

    def _use_quick_gaussian_process(self) -> None:
        self.gpr: Any = QuickGaussianProcess(**self.gpr.get_params(deep=False))

    def at_a_time(self) -> int:
        """Return the number of trials to ask for now: the rest of the first pass, then a few."""
        most = _AT_A_TIME if len(self.trials) < _LEARNED else _AT_A_TIME * _ONE_OF
        return max(len(self._left(len(self.trials))), most)

    def _left(self, number: int) -> list[NamedCut]:
        """Return the cuts of the first pass that no trial before this one has tried."""
        if number >= self._swept:
            return []
        before = (t for trial_id, t in self.trials.items() if int(trial_id) < number)
        values = [trial.hyperparameters.values for trial in before]
        tried = {
            named_cut(one.get(choice_of(CUT, one.get(BACKBONE))), one.get(BACKBONE))
            for one in values
        }
        left = [cut for cut in self.sweep if cut not in tried]
        if not left:
            self._swept = number
        return left

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return the values of the next trial; see `keras_tuner.Oracle.populate_space`."""
        number = int(trial_id)
        left = self._left(number)
        if not left:
            if number >= _LEARNED and number % _ONE_OF:
                return self._random_populate_space()
            # Of its own for each trial, so that a search that goes on after a kill is the same.
            self._random_state = np.random.RandomState([self.seed, number])
            # Its matrices are tiny: threads would cost more than they gain.
            with threadpool_limits(1), warnings.catch_warnings():
                # About keras-tuner's own choice of kernel bounds; nothing a user could act on.
                warnings.simplefilter("ignore", ConvergenceWarning)
                return super().populate_space(trial_id)
        space, first = self.get_space(), left[0]
        where = {CUT: first}
        if not isinstance(first, str):
            backbone, at = first
            where = {BACKBONE: backbone, choice_of(CUT, backbone): at}
        space.values = where  # by which it knows what is a choice here
        active = [hp for hp in space.space if space.is_active(hp)]
        values = {hp.name: hp.default for hp in active}
        known = self._best.get(first, {})
        values |= {hp.name: known[hp.name] for hp in active if _may_be(hp, known.get(hp.name))}
        return {"status": "RUNNING", "values": values | where}

    def _vectorize_trials(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what the Gaussian process learns from, of which there is not too much."""
        every = self.trials
        going_on = {one.trial_id for one in self.ongoing_trials.values()}
        done = [number for number, one in every.items() if one.status == "COMPLETED"]
        half = _LEARNED // 2
        if len(done) > _LEARNED:
            sign = -1 if self.objective.direction == "max" else 1
            best = sorted(done, key=lambda number: sign * every[number].score)[:half]
            chosen = {*best, *done[-half:], *going_on}
            self.trials = {number: one for number, one in every.items() if number in chosen}
        try:
            return super()._vectorize_trials()
        finally:
            self.trials = every


def _may_be(hp: Any, value: Any) -> bool:
    """Return whether a hyperparameter can have a value."""
    if isinstance(hp, Float):
        return isinstance(value, float) and hp.min_value <= value <= hp.max_value
    return value is not None and value in getattr(hp, "values", ())


class CutGridOracle(keras_tuner.Oracle):
    """Every combination of choices, in order, the cut varying slowest.

    keras-tuner's own grid waits for each trial before it names the next; this one names them all,
    so that they can be trained together.

    Args:
        meaning: The trial that a combination comes to; of those that come to the same only the
            first is tried. None takes all combinations for different.
        **kwargs: Arguments of `keras_tuner.Oracle`; `max_trials` of None tries all of them.
    """

    @checked(ConfigError)
    def __init__(
        self,
        meaning: Callable[[keras_tuner.HyperParameters], Hashable] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # keras-tuner keeps every oracle for as long as the process lives, beside its lock; what a
        # method belongs to (a hypermodel, with all features) is not to live as long.
        self._meaning = WeakMethod(meaning) if inspect.ismethod(meaning) else lambda: meaning
        self._found: list[dict[str, Any]] = []
        self._further: Iterator[dict[str, Any]] | None = None

    def at_a_time(self) -> int:
        """Return all that are left, as far as they are not too many."""
        every = (math.prod(len(values) for _, values in choices) for choices in self._choices())
        return min(sum(every), _OF_A_GRID)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return the values of the next trial; see `keras_tuner.Oracle.populate_space`."""
        self._further = self._further or self._combinations()
        missing = int(trial_id) + 1 - len(self._found)
        self._found += itertools.islice(self._further, max(missing, 0))
        values = self._found[int(trial_id)] if int(trial_id) < len(self._found) else None
        return {"status": "STOPPED" if values is None else "RUNNING", "values": values}

    def _combinations(self) -> Iterator[dict[str, Any]]:
        """Yield the combinations to try, in order."""
        seen = set()
        every = (
            dict(zip([name for name, _ in choices], combination, strict=True))
            for choices in self._choices()
            for combination in itertools.product(*(values for _, values in choices))
        )
        for values in every:
            if (known := self._meaning()) is not None:
                hyperparameters = self.get_space()
                hyperparameters.values = dict(values)
                meaning = known(hyperparameters)
                if meaning in seen:
                    continue
                seen.add(meaning)
            yield values

    def _choices(self) -> Iterator[list[tuple[str, list[Any]]]]:
        """Yield what there is to choose of each backbone."""
        space = self.get_space()
        for hp in space.space:
            if not isinstance(hp, Fixed | Choice | Boolean):
                raise ConfigError(
                    f"Expected choices to try all combinations of. Received: {hp.name!r}, a range. "
                    "Give a list, such as learning_rates=[1e-3, 1e-2]."
                )
        backbones = next((hp.values for hp in space.space if hp.name == BACKBONE), [None])
        for backbone in backbones:
            if backbone is not None:
                space.values = {BACKBONE: backbone}
            choices = {hp.name: list(hp.values) for hp in space.space if space.is_active(hp)} | (
                {} if backbone is None else {BACKBONE: [backbone]}
            )
            yield list(choices.items())


def evenly(items: Sequence[_Item], most: int | None) -> list[_Item]:
    """Return at most so many items (None: all), spread evenly, the last among them.

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


class QuickGaussianProcess(GaussianProcessRegressor):
    """scikit-learn's Gaussian process, asked about one point at a time.

    It predicts the same, to the last bit, without looking at its input. Where Bayesian optimisation
    looks for its next point, it asks thousands of times about one, and four fifths of the time
    would go into checks of the array that is given. For one target.

    Example:
        >>> x, y = np.array([[0.0], [1.0]]), np.array([1.0, 3.0])
        >>> mean, std = QuickGaussianProcess(normalize_y=True).fit(x, y).predict(x, return_std=True)
        >>> mean.round(3).tolist()
        [1.0, 3.0]
    """

    def fit(self, X: np.ndarray, y: np.ndarray) -> "QuickGaussianProcess":
        """Fit to examples; see `GaussianProcessRegressor.fit`."""
        super().fit(X, y)
        self._mean, self._std = 0.0, 1.0
        if self.normalize_y:
            self._mean, self._std = y.mean(), y.std()
            if self._std <= 10 * np.finfo(np.result_type(self._std)).eps:  # as scikit-learn has it
                self._std = 1.0
        return self

    def predict(self, X: np.ndarray, **which: bool) -> Any:
        """Predict at finite float64 points; see `GaussianProcessRegressor.predict`."""
        if which != {"return_std": True} or not hasattr(self, "X_train_"):
            return super().predict(X, **which)
        kernel = self.kernel_(X, self.X_train_)
        mean = self._std * (kernel @ self.alpha_) + self._mean
        explained = solve_triangular(self.L_, kernel.T, lower=True, check_finite=False)
        variance = self.kernel_.diag(X) - np.einsum("ij,ji->i", explained.T, explained)
        variance[variance < 0] = 0.0  # by rounding
        return mean, np.sqrt(variance * self._std**2)
