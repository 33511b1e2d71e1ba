"""The ranking of cuts by stored features, before anything is trained."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
import pandas
import scipy.linalg
import scipy.stats
from annotated_types import MinLen
from pydantic import AfterValidator, Field, PositiveInt
from scipy.special import digamma
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from reusekit.arguments import checked
from reusekit.errors import ConfigError, DataError
from reusekit.search.space import BACKBONE, NamedCut, named_cut

Method = Literal["logme", "ridge", "knn", "tmi"]
"""Scores of features before training."""

# The strengths of regularisation that the probe chooses from; its features have variance 1.
_STRENGTHS = np.logspace(-2, 6, 9)

# The bounds of alpha / beta beside the features' largest square: beyond, nothing would change but
# the evidence of a target that the features contain, which has no maximum.
_RATIOS = 1e-12, 1e12
_ITERATIONS = 1000
_TINY = np.finfo(float).tiny
_NEAREST = 3  # of a class, whose distance tells how much it varies
_CLOSEST = 1e-6  # that two examples count as apart, so that equal ones have a logarithm


def logme(features: Any, labels: Any) -> float:
    """Return the log maximum evidence of the labels given the features, for one example.

    Each class, label or number is regressed on the features by a Bayesian linear model whose two
    variances (of noise and of weights) are those under which the labels are likeliest; the score is
    the logarithm of that likelihood, averaged over examples and classes. Higher is better. Only
    scores of features of the same examples compare.

    You, Liu, Wang, Long: LogME: Practical Assessment of Pre-trained Models for Transfer Learning,
    ICML 2021. The variances are found by its fixed-point iteration, on their ratio alone.

    Args:
        features: Shape (examples, channels), of any floating dtype. Constant ones count for what a
            constant explains.
        labels: A class for each example: integers or strings. A class with one example counts as
            any other. Floating numbers, and a vector for each example, are numbers to predict,
            each brought to mean 0 and variance 1.

    Raises:
        DataError: Shapes do not fit, a number is not finite, or all examples have the same label.

    Example:
        >>> numbers = np.random.default_rng(0)
        >>> labels = np.arange(60) % 3
        >>> noise = numbers.normal(size=(60, 5))
        >>> telling = noise + labels[:, None]
        >>> logme(telling, labels) > logme(noise, labels)
        True
    """
    features, labels = _checked(features, labels)
    if _are_numbers(labels):
        targets = (labels - labels.mean(axis=0)) / labels.std(axis=0)
    else:
        targets = (labels[:, None] == np.unique(labels)).astype(float)
    squares, projected = _in_singular_directions(features, targets)
    evidences = [_evidence(*each, squares) for each in zip(targets.T, projected.T, strict=True)]
    return float(np.mean(evidences)) / len(labels)


def _in_singular_directions(
    features: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the squares of the singular values, and the targets along each left singular vector.

    From the smaller of the two Gram matrices, which takes a fraction of a decomposition's time.
    Directions that rounding cannot tell from nothing are left out.
    """
    wide = features.shape[0] <= features.shape[1]
    gram = features @ features.T if wide else features.T @ features
    squares, vectors = scipy.linalg.eigh(gram)
    kept = squares > squares[-1] * max(features.shape) * np.finfo(float).eps
    squares, vectors = squares[kept], vectors[:, kept]
    if wide:
        return squares, vectors.T @ targets
    return squares, vectors.T @ (features.T @ targets) / np.sqrt(squares)[:, None]


def _evidence(target: np.ndarray, projected: np.ndarray, squares: np.ndarray) -> float:
    """Return the log maximum evidence of the labels given the features, for one example.

    With noise of variance 1 / beta and weights of variance 1 / alpha, the target is normal with
    covariance (I + F F' / ratio) / beta, where ratio = alpha / beta. Given the ratio, the best beta
    has a closed form; the best ratio is a fixed point.

    Args:
        target: A number for each example, its square not zero.
        projected: The target along each left singular vector of the features F.
        squares: The squares of their singular values, rising, none of them zero.
    """
    size, explained = len(target), projected**2
    outside = max(target @ target - explained.sum(), 0.0)
    # Features that say nothing lead to infinity, those that say all to zero.
    low, high = (ratio * squares[-1:].sum() for ratio in _RATIOS)
    ratio = math.sqrt(low * high)
    for _ in range(_ITERATIONS if squares.size else 0):
        known = (squares / (ratio + squares)).sum()
        weights = (explained * squares / (ratio + squares) ** 2).sum()
        residual = (explained * (ratio / (ratio + squares)) ** 2).sum() + outside
        before = ratio
        ratio = np.clip(known * residual / max(weights * (size - known), _TINY), low, high)
        if abs(ratio - before) <= 1e-8 * before:
            break
    left = (explained / (1 + squares / ratio)).sum() + outside
    return (
        size * (math.log(size / left) - math.log(2 * math.pi) - 1) - np.log1p(squares / ratio).sum()
    ) / 2


@checked(ConfigError)
def ridge_probe(features: Any, labels: Any, folds: Annotated[int, Field(ge=2)] = 5) -> float:
    """Return the accuracy of a ridge classifier on examples that it was not fitted to.

    The classifier is solved in closed form; features are scaled to variance 1, and the strength of
    regularisation is chosen within the examples it is fitted to. Folds are drawn by a fixed seed
    and keep the shares of the classes. For numbers it is a ridge regression, and the share of their
    variance that it explains.

    Args:
        features: Shape (examples, channels), of any floating dtype.
        labels: A class for each example: integers or strings. A class that has fewer examples than
            there are folds is missing from some; one with a single example is never recognised.
            Or numbers, as for `logme`.
        folds: The number of parts of the examples; each is predicted from the others.

    Returns:
        The share of all examples that are predicted rightly; of numbers R squared, all alike.

    Raises:
        DataError: As for `logme`, or no class has as many examples as there are folds, or a fold
            leaves one class only.

    Example:
        >>> labels = np.arange(40) % 2
        >>> ridge_probe(labels[:, None] + np.zeros((40, 3)), labels)
        1.0
    """
    features, labels = _checked(features, labels)
    if _are_numbers(labels):
        if not 2 <= folds <= len(labels):
            raise DataError(
                f"Expected from 2 to {len(labels)} folds, as there are examples. Received: {folds}."
            )
        probe = make_pipeline(StandardScaler(), RidgeCV(_STRENGTHS))
        parts = KFold(folds, shuffle=True, random_state=0)
        return float(r2_score(labels, cross_val_predict(probe, features, labels, cv=parts)))
    sizes = np.sort(np.unique(labels, return_counts=True)[1])[::-1]
    if folds < 2 or sizes[0] < folds or sizes[1] < 2:
        raise DataError(
            f"Expected at least 2 folds, a class with at least as many examples, and a second one "
            f"with at least 2. Received: {folds} folds and classes of {', '.join(map(str, sizes))}."
        )
    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(_STRENGTHS))
    shares = StratifiedKFold(folds, shuffle=True, random_state=0)
    with warnings.catch_warnings():  # of classes smaller than the folds, which is said above
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        predicted = cross_val_predict(classifier, features, labels, cv=shares)
    return float(np.mean(predicted == labels))


@checked(ConfigError)
def knn_probe(features: Any, labels: Any, neighbours: PositiveInt = 5) -> float:
    """Return how well each example is told by those whose features point the same way.

    Each is left out once, and told by the nearest others by the cosine of their features: its class
    by their votes, numbers by their mean.

    Args:
        features: Shape (examples, channels), of any floating dtype.
        labels: As for `ridge_probe`.
        neighbours: The number of others that tell an example; all others where there are fewer.

    Returns:
        The share of all examples that are told rightly; of numbers R squared, all alike.

    Raises:
        DataError: As for `logme`, or there is one example alone.

    Example:
        >>> labels = np.arange(40) % 2
        >>> knn_probe(np.stack([labels, 1 - labels], axis=1), labels)
        1.0
    """
    features, labels = _checked(features, labels)
    if len(labels) < 2:
        raise DataError("Expected at least 2 examples, each told by others. Received: 1.")
    numbers = _are_numbers(labels)
    model = KNeighborsRegressor if numbers else KNeighborsClassifier
    nearest = model(min(neighbours, len(labels) - 1), metric="cosine").fit(features, labels)
    told = nearest.predict(None)  # each without itself
    return float(r2_score(labels, told) if numbers else np.mean(told == labels))


def tmi(features: Any, labels: Any) -> float:
    """Return the entropy of the features given the class: how much they vary within each.

    Features that a pretraining has pressed together for each class are harder to bend to another
    task. The entropy is estimated from the distance of each example to the third nearest of its
    class, in the largest channel (Kozachenko and Leonenko). It grows with the number of channels
    and with their scale.

    Xu, Kang: Fast and Accurate Transferability Measurement by Evaluating Intra-class Feature
    Variance, ICCV 2023.

    Args:
        features: Shape (examples, channels), of any floating dtype.
        labels: A class for each example: integers or strings. Of a class with a single example
            nothing is known, and it counts as 0.

    Raises:
        DataError: As for `logme`, or labels are no classes.

    Example:
        >>> labels = np.arange(60) % 3
        >>> noise = np.random.default_rng(0).normal(size=(60, 4))
        >>> tmi(2 * noise, labels) > tmi(noise, labels)
        True
    """
    features, labels = _checked(features, labels)
    if _are_numbers(labels):
        raise DataError(
            "Expected classes as labels, within which features vary. Received: numbers."
        )
    found = 0.0
    for one in np.unique(labels):
        own = features[labels == one]
        size, channels = own.shape
        if size < 2:
            continue
        nearest = min(_NEAREST, size - 1)
        apart = NearestNeighbors(n_neighbors=nearest, metric="chebyshev").fit(own).kneighbors()[0]
        logs = np.log(2 * np.maximum(apart[:, -1], _CLOSEST))
        entropy = digamma(size) - digamma(nearest) + channels * logs.mean()
        found += size / len(labels) * entropy
    return float(found)


_METHODS: Mapping[str, Callable[[Any, Any], float]] = {
    "logme": logme,
    "ridge": ridge_probe,
    "knn": knn_probe,
    "tmi": tmi,
}


@checked(ConfigError)
def rank_cuts(
    features: Annotated[Mapping[str, Any], MinLen(1)],
    labels: Any,
    method: Method = "ridge",
) -> pandas.DataFrame:
    """Rank cuts by what could be made of their features.

    Args:
        features: From each cut to its pooled features, of shape (examples, channels). Of several
            backbones from the name of each to such, of the same examples: all cuts are ranked
            among each other.
        labels: A class for each example, or numbers, as for `logme`.
        method: "logme", "ridge", "knn" or "tmi"; see `logme`, `ridge_probe`, `knn_probe` and `tmi`.

    Returns:
        The best first: `backbone` where there are several, `cut`, `score` (higher is better),
        `rank` (from 1; equal scores share the better one) and `seconds`.

    Raises:
        ConfigError: An unknown method, or no cut.
        DataError: As for those.

    Example:
        >>> labels = np.arange(40) % 2
        >>> noise = np.random.default_rng(0).normal(size=(40, 3))
        >>> ranked = rank_cuts({"early": noise, "late": noise + labels[:, None]}, labels)
        >>> ranked["cut"].tolist(), ranked["rank"].tolist()
        (['late', 'early'], [1, 2])
    """
    several = all(isinstance(values, Mapping) for values in features.values())
    rows = []
    for name, cuts in features.items() if several else ((None, features),):
        for cut, values in cuts.items():
            start = perf_counter()
            score = _METHODS[method](values, labels)
            row = {"backbone": name} if several else {}
            rows.append(row | {"cut": cut, "score": score, "seconds": perf_counter() - start})
    return in_order(rows)


def in_order(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return scored cuts as a table, the best first; see `rank_cuts`.

    Args:
        rows: `backbone` where there are several, `cut`, `score` and `seconds` of each.
    """
    frame = pandas.DataFrame(rows)
    frame["rank"] = frame["score"].rank(ascending=False, method="min").astype(int)
    frame = frame.sort_values("rank", kind="stable", ignore_index=True)
    first = ["backbone"] if "backbone" in frame else []
    return frame[[*first, "cut", "score", "rank", "seconds"]]


def scores_by_cut(ranking: pandas.DataFrame) -> dict[NamedCut, float]:
    """Return the score of each cut of a ranking, the best first."""
    ranked = ranking.sort_values("rank")
    names = ranked[BACKBONE] if BACKBONE in ranked else [None] * len(ranked)
    rows = zip(ranked["cut"], names, ranked["score"], strict=True)
    return {named_cut(at, name): score for at, name, score in rows}


def _numbers(values: Any) -> Any:
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iuf":
        raise ValueError("no numbers")
    return values


Numbers = Annotated[Any, AfterValidator(_numbers), Field(description="a list of numbers")]


@dataclass(frozen=True)
class RankCorrelation:
    """The agreement of two orders, from -1 (reversed) to 1 (equal); NaN if one is constant.

    Attributes:
        spearman: Spearman's rho.
        kendall: Kendall's tau-b: of pairs in the same order, less those in the other one.
        weighted: The same with more weight on pairs near the top, as SciPy's `weightedtau` has it.
    """

    spearman: float
    kendall: float
    weighted: float = math.nan


@checked(DataError)
def rank_correlation(scores: Numbers, results: Numbers) -> RankCorrelation:
    """Return the agreement of scores before training with the order of the results.

    Args:
        scores: A score for each cut.
        results: The result of each cut when it was trained, in the same order; higher is better.

    Raises:
        DataError: The two differ in length, or there are fewer than two.

    Example:
        >>> rank_correlation([0.1, 0.2, 0.9], [0.5, 0.7, 0.6]).spearman
        0.5
    """
    if len(scores) != len(results) or len(scores) < 2:
        raise DataError(
            f"Expected as many scores as results, and at least 2 of each. Received: {len(scores)} "
            f"and {len(results)}."
        )
    if len(set(scores)) == 1 or len(set(results)) == 1:
        return RankCorrelation(float("nan"), float("nan"))
    spearman = scipy.stats.spearmanr(scores, results).statistic
    kendall = scipy.stats.kendalltau(scores, results).statistic
    weighted = scipy.stats.weightedtau(scores, results).statistic
    return RankCorrelation(float(spearman), float(kendall), float(weighted))


def _checked(features: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    try:
        features, labels = np.asarray(features), np.asarray(labels)
    except ValueError as error:
        raise DataError(
            f"Expected features and labels as arrays. Received: {type(features).__name__} and "
            f"{type(labels).__name__}."
        ) from error
    if features.ndim != 2 or not features.size or labels.shape[:1] != features.shape[:1]:
        raise DataError(
            "Expected features of shape (examples, channels) and a label for each example. "
            f"Received: shapes {features.shape} and {labels.shape}. Pool feature maps first."
        )
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise DataError("Expected finite features. Received: infinite ones, or NaN.")
    if _are_numbers(labels):
        return features, _varying(labels)
    if labels.dtype.kind not in "iubUSO":
        raise DataError(
            "Expected classes as labels, integers or strings, or numbers. Received: "
            f"{labels.dtype.name}."
        )
    if len(np.unique(labels)) < 2:
        raise DataError(f"Expected at least two classes. Received: one: {labels[0]!r}.")
    return features, labels


def _are_numbers(labels: np.ndarray) -> bool:
    """Return whether labels are numbers to predict, or 0 and 1 for several labels."""
    return labels.dtype.kind == "f" or (labels.ndim == 2 and labels.dtype.kind in "iub")


def _varying(labels: np.ndarray) -> np.ndarray:
    """Return the numbers that are not the same for all examples, shape (examples, numbers)."""
    numbers = labels.reshape(len(labels), -1).astype(float)
    if not np.isfinite(numbers).all():
        raise DataError("Expected finite numbers as labels. Received: infinite ones, or NaN.")
    varying = numbers[:, np.ptp(numbers, axis=0) > 0]
    if not varying.size:
        raise DataError(
            f"Expected labels that are not the same for all examples. Received: {labels[0]} alone."
        )
    return varying
