"""Two models on the same examples: their difference, and its interval."""

from dataclasses import dataclass

import numpy as np

from reusekit.tasks import TaskRules, resampled_sums


@dataclass(frozen=True)
class Comparison:
    """A candidate beside a champion.

    Attributes:
        measure: By which score, such as `accuracy`.
        candidate: The candidate's.
        champion: The champion's.
        difference: By how much the candidate is better.
        low: Lower end of the interval of the difference.
        high: Upper end of it.
        confidence: The share of resamples whose difference lies in it.
        examples: On how many examples.
    """

    measure: str
    candidate: float
    champion: float
    difference: float
    low: float
    high: float
    confidence: float
    examples: int

    def __str__(self) -> str:
        return (
            f"{self.measure} {self.candidate:.4f} against {self.champion:.4f}, a difference of "
            f"{self.difference:+.4f}, with {self.confidence:.0%} confidence between "
            f"{self.low:+.4f} and {self.high:+.4f}"
        )


def paired_bootstrap(
    candidate: np.ndarray,
    champion: np.ndarray,
    rules: TaskRules,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two models by resampling the examples, the same ones for both.

    Args:
        candidate: What each example adds to the candidate's measure, as `TaskRules.parts` has it,
            shape (examples, numbers).
        champion: The same of the champion, in the same order.
        rules: The rules of the task, whose measure is compared.
        confidence: Of the interval, which is that of the percentiles.
        resamples: How many are drawn.
        seed: Decides which.

    Returns:
        Both measures, how much better the candidate's is, and the interval of that.

    Example:
        >>> from reusekit.data.task import Task
        >>> from reusekit.tasks import rules_of
        >>> rules = rules_of(Task("classification", ("cat", "dog")))
        >>> champion = np.array([[1.0]] * 70 + [[0.0]] * 30)
        >>> candidate = np.array([[1.0]] * 90 + [[0.0]] * 10)
        >>> print(paired_bootstrap(candidate, champion, rules))
        accuracy 0.9000 against 0.7000, a difference of +0.2000, with 95% confidence between ...
    """
    examples, sign = len(candidate), 1 if rules.maximize else -1
    reached = [float(rules.measured(one.sum(axis=0), examples)) for one in (candidate, champion)]
    if candidate.shape[1] == 1:  # a mean, of which the differences are enough
        sums = resampled_sums(candidate - champion, resamples, seed)
        differences = sign * rules.measured(sums, examples)
    else:
        sums = resampled_sums(np.concatenate([candidate, champion], axis=1), resamples, seed)
        of_both = (rules.measured(one, examples) for one in np.split(sums, 2, axis=1))
        differences = sign * np.subtract(*of_both)
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Comparison(
        measure=rules.measure,
        candidate=reached[0],
        champion=reached[1],
        difference=sign * (reached[0] - reached[1]),
        low=float(low),
        high=float(high),
        confidence=confidence,
        examples=examples,
    )
