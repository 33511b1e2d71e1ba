"""Two classifiers on the same examples: how much better one is, and how sure that is."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Comparison:
    """A candidate beside a champion.

    Attributes:
        candidate: Its accuracy.
        champion: Its accuracy.
        low: Lower end of the interval of the difference.
        high: Upper end of it.
        confidence: The share of resamples whose difference lies in it.
        examples: On how many examples.
    """

    candidate: float
    champion: float
    low: float
    high: float
    confidence: float
    examples: int

    @property
    def difference(self) -> float:
        """The candidate's accuracy less the champion's."""
        return self.candidate - self.champion

    def __str__(self) -> str:
        return (
            f"accuracy {self.candidate:.4f} against {self.champion:.4f}, a difference of "
            f"{self.difference:+.4f}, with {self.confidence:.0%} confidence between "
            f"{self.low:+.4f} and {self.high:+.4f}"
        )


def paired_bootstrap(
    candidate: np.ndarray,
    champion: np.ndarray,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two classifiers by resampling the examples, the same ones for both.

    Resampling n examples with replacement decides nothing about the mean of their differences but
    how often each of the three values (candidate alone right, champion alone right, neither alone)
    is drawn, and these counts have a multinomial distribution. So that is what is drawn: the same
    interval, whatever the number of examples costs.

    Args:
        candidate: Whether the candidate is right about each example; bool, shape (examples,).
        champion: The same of the champion, in the same order.
        confidence: Of the interval, which is that of the percentiles.
        resamples: How many are drawn.
        seed: Decides which.

    Returns:
        Both accuracies and the interval of their difference.

    Example:
        >>> champion = np.array([True] * 70 + [False] * 30)
        >>> candidate = np.array([True] * 90 + [False] * 10)
        >>> print(paired_bootstrap(candidate, champion))
        accuracy 0.9000 against 0.7000, a difference of +0.2000, with 95% confidence between ...
    """
    examples = len(candidate)
    gained = np.count_nonzero(candidate & ~champion)
    lost = np.count_nonzero(champion & ~candidate)
    drawn = np.random.default_rng(seed).multinomial(
        examples, np.array([gained, lost, examples - gained - lost]) / examples, size=resamples
    )
    differences = (drawn[:, 0] - drawn[:, 1]) / examples
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Comparison(
        candidate=float(candidate.mean()),
        champion=float(champion.mean()),
        low=float(low),
        high=float(high),
        confidence=confidence,
        examples=examples,
    )
