"""Shares of a data set that has no splits of its own, and the parts that they draw."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Self

import numpy as np
from pydantic import Field, model_validator
from scipy.sparse import coo_array
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
    content = content.astype(np.int32)
    duplicates = len(content) - len(names)
    units, unit_of = len(names), content
    if groups is not None:
        units, unit_of = _connected(content, units, groups)
    name = np.full(units, np.iinfo(np.uint64).max)
    np.minimum.at(name, unit_of, names[content])
    del names, content
    sizes = np.bincount(unit_of, minlength=units)
    mixed = _mixed(name, shares.seed)
    order = np.lexsort((mixed, -sizes)).astype(np.int32)  # small ones last even out the rest
    del name, sizes, mixed
    side = _balanced(unit_of, order, classes, [getattr(shares, part) for part in wanted])
    positions = {part: np.flatnonzero(side == number) for number, part in enumerate(wanted)}
    empty = [part for part, found in positions.items() if not len(found)]
    if empty:
        what = "different examples" if groups is None else "groups of different examples"
        raise DataError(
            f"Expected examples for each part. Received: {units:,} {what}, too few for "
            f"{empty[0]}={getattr(shares, empty[0]):g}."
        )
    return Parts(positions, duplicates)


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
    return len(units), unit_of.astype(np.int32)


def _balanced(
    unit_of: np.ndarray, order: np.ndarray, classes: np.ndarray | None, shares: Sequence[float]
) -> np.ndarray:
    """Give each unit, in order, to the part that lacks most of its classes so far.

    That is the choice by which the squares of what the parts lack grow least. Rare classes weigh
    more, so that a class of few examples is in proportion before the whole is.

    Returns:
        The number of the part of each example.
    """
    codes, totals = _coded(classes, len(unit_of))
    weights = (len(unit_of) / (len(totals) * np.maximum(totals, 1))).tolist()
    lacking = [[0.0] * len(shares) for _ in weights]
    of_all = [0.0] * len(shares)
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    # Within a unit by class: sums of floats follow the order.
    of_one = codes[None] if codes.ndim == 1 else np.packbits(codes, axis=1).T
    rows = np.lexsort((*of_one, place[unit_of])).astype(np.int32)
    del place
    sides = np.empty(len(order), np.int8)
    for unit, members in groupby(_members(rows, unit_of, codes), itemgetter(0)):
        score, found = [0.0] * len(shares), []
        for _, row_codes in members:
            found += [(of_all, 1.0), *((lacking[code], weights[code]) for code in row_codes)]
        for lacks, _ in found:
            for part, share in enumerate(shares):
                lacks[part] += share
        for lacks, weight in found:
            for part in range(len(shares)):
                score[part] += weight * lacks[part]
        best = score.index(max(score))
        for lacks, _ in found:
            lacks[best] -= 1
        sides[unit] = best
    return sides[unit_of]


def _coded(classes: np.ndarray | None, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes of each example as numbers, or as rows of 0 and 1, and their totals."""
    if classes is None:
        return np.zeros((size, 0), bool), np.zeros(0)
    if classes.ndim == 1:
        _, codes, totals = np.unique(classes, return_inverse=True, return_counts=True)
        return codes.astype(np.int32), totals
    return classes > 0, (classes > 0).sum(axis=0)


def _members(
    rows: np.ndarray, unit_of: np.ndarray, codes: np.ndarray
) -> Iterator[tuple[int, list[int]]]:
    """Yield the unit and the classes of each row; in blocks, since lists of numbers are large."""
    for start in range(0, len(rows), 8_192):
        block = rows[start : start + 8_192]
        if codes.ndim == 1:
            found = [[code] for code in codes[block].tolist()]
        else:
            found = [np.flatnonzero(row).tolist() for row in codes[block]]
        yield from zip(unit_of[block].tolist(), found, strict=True)
