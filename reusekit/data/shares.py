"""Shares of a data set that has no splits of its own, and the parts that they draw."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import Field, model_validator
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from reusekit.arguments import Seed, Settings, Share
from reusekit.errors import ConfigError, DataError, nearest

PARTS = ("train", "validation", "test")


class Shares(Settings):
    """Shares of examples to train on, to choose by, and to test on."""

    train: Share = Field(0.7, description="Share to train on.")
    validation: Share = Field(0.15, description="Share by which everything is chosen.")
    test: Share = Field(0.15, description="Share that is looked at once, at the end.")
    seed: Seed = Field(0, description="Decides which examples go where.")
    group: str | None = Field(
        None,
        description="Column whose equal values stay on one side, such as patient_id; null: none.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        given = [getattr(self, part) for part in PARTS]
        if abs(sum(given) - 1) > 1e-6:
            raise ConfigError(
                f"Expected shares of train, validation and test that add up to 1. Received: "
                f"{' + '.join(f'{share:g}' for share in given)} = {sum(given):g}."
            )
        return self


@dataclass(frozen=True)
class Parts:
    """The examples of each part, none of them in two.

    Attributes:
        positions: Positions of the examples by part, ascending.
        duplicates: The number of examples whose content an earlier one has.
    """

    positions: dict[str, np.ndarray]
    duplicates: int

    def of(self, part: str) -> np.ndarray:
        """Return the positions of a part.

        Raises:
            DataError: There is none of this name, or its share is 0.
        """
        if part not in self.positions:
            raise DataError(
                f"Expected a part that the shares draw. Received: {part!r}. "
                f"{nearest(part, self.positions)}"
            )
        return self.positions[part]


def draw_parts(
    contents: Sequence[str] | np.ndarray,
    shares: Shares,
    classes: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Parts:
    """Draw parts of a data set by shares, each class in proportion.

    Examples of equal content or of one group go to the same part. Which part an example goes to
    follows from what is in the data set, and not from its order.

    scikit-learn's splitters promise less: those that stratify refuse a class of one example and
    know no groups, `StratifiedGroupKFold` knows no shares, and all of them follow the order.

    Args:
        contents: A digest of the content of each example, as text or a number.
        shares: The shares and their seed.
        classes: The class of each example, or a row of 0 and 1 for several labels; None where there
            are no classes.
        groups: The group of each example; None for no groups.

    Raises:
        DataError: A part would be empty.

    Example:
        >>> parts = draw_parts(["a", "b", "c", "d", "a"], Shares(train=0.5, validation=0.25,
        ...                                                      test=0.25))
        >>> {part: len(positions) for part, positions in parts.positions.items()}
        {'train': 3, 'validation': 1, 'test': 1}
        >>> parts.duplicates
        1
    """
    wanted = [part for part in PARTS if getattr(shares, part)]
    names, content = np.unique(_numbers(contents), return_inverse=True)
    units, unit_of = len(names), content
    if groups is not None:
        units, unit_of = _connected(content, units, groups)
    name = np.full(units, np.iinfo(np.uint64).max)
    np.minimum.at(name, unit_of, names[content])
    sizes = np.bincount(unit_of, minlength=units)
    order = np.lexsort((_mixed(name, shares.seed), -sizes))  # small ones last even out the rest
    side = np.empty(units, np.int8)
    side[order] = _balanced(
        _counts(unit_of, units, classes)[order], [getattr(shares, part) for part in wanted]
    )
    side = side[unit_of]
    positions = {part: np.flatnonzero(side == number) for number, part in enumerate(wanted)}
    empty = [part for part, found in positions.items() if not len(found)]
    if empty:
        what = "different examples" if groups is None else "groups of different examples"
        raise DataError(
            f"Expected examples for each part. Received: {units:,} {what}, too few for "
            f"{empty[0]}={getattr(shares, empty[0]):g}."
        )
    return Parts(positions, len(content) - len(names))


def _numbers(contents: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return digests as whole numbers of 64 bits."""
    if isinstance(contents, np.ndarray) and contents.dtype == np.uint64:
        return contents
    texts = (hashlib.blake2b(str(one).encode(), digest_size=8).digest() for one in contents)
    return np.fromiter((int.from_bytes(one) for one in texts), np.uint64, len(contents))


def _mixed(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Mix each number with the seed, so that sorting by the result shuffles them (SplitMix64)."""
    mixed = numbers + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _connected(content: np.ndarray, size: int, groups: np.ndarray) -> tuple[int, np.ndarray]:
    """Join examples that share content or group, directly or through others."""
    _, group = np.unique(groups, return_inverse=True)
    nodes = size + int(group.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(group), bool), (content, size + group)), (nodes, nodes))
    _, found = connected_components(edges, directed=False)
    units, unit_of = np.unique(found[content], return_inverse=True)
    return len(units), unit_of


def _counts(unit_of: np.ndarray, units: int, classes: np.ndarray | None) -> csr_array:
    """Count the examples of each class in each unit; the last column counts all of them."""
    rows, columns = unit_of, np.zeros(len(unit_of), np.int32)
    if classes is not None and classes.ndim == 1:
        values, found = np.unique(classes, return_inverse=True)
        rows, columns = np.tile(unit_of, 2), np.append(found, columns + len(values))
    elif classes is not None:
        examples, labels = np.nonzero(classes)
        rows, columns = (
            np.append(unit_of[examples], unit_of),
            np.append(labels, columns + classes.shape[1]),
        )
    shape = (units, int(columns.max(initial=0)) + 1)
    return coo_array((np.ones(len(rows)), (rows, columns)), shape).tocsr()


def _balanced(counts: csr_array, shares: Sequence[float]) -> np.ndarray:
    """Give each unit to the part that lacks most of its classes among the units so far.

    That is the choice by which the squares of what the parts lack grow least. Rare classes weigh
    more, so that a class of few examples is in proportion before the whole is.
    """
    totals = np.maximum(counts.sum(axis=0), 1)
    weights = (totals[-1] / (max(len(totals) - 1, 1) * totals)).tolist()
    weights[-1] = 1.0
    lacking = [[0.0] * len(shares) for _ in weights]
    sides = np.empty(counts.shape[0], np.int8)
    for start in range(0, len(sides), 65_536):  # lists of numbers are fast and large
        block = counts[start : start + 65_536]
        ends, columns, numbers = (
            part.tolist() for part in (block.indptr, block.indices, block.data)
        )
        for row in range(block.shape[0]):
            score = [0.0] * len(shares)
            found = [
                (lacking[columns[at]], numbers[at], weights[columns[at]])
                for at in range(ends[row], ends[row + 1])
            ]
            for lacks, number, weight in found:
                for part, share in enumerate(shares):
                    lacks[part] += number * share
                    score[part] += number * weight * lacks[part]
            best = score.index(max(score))
            sides[start + row] = best
            for lacks, number, _ in found:
                lacks[best] -= number
    return sides
