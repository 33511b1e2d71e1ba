"""Texts by length: a pass over a bottom that does not compute what is filled up."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reusekit.features.frontiers import Frontier
from reusekit.progress import say
from reusekit.signals import raise_if_interrupted
from reusekit.surgery import extract

SIZES = 8
"""Texts are filled up to one of so many lengths, evenly apart, so that few shapes are traced."""

WINDOW_BATCHES = 32
"""Texts of so many batches are sorted at a time, and their features held meanwhile."""

WINDOW_BYTES = 64 << 20
"""At most so many bytes of features are held; at least a batch is."""

TOLERANCE = 1e-5
"""Of the largest feature, and of 1 at least, by which one may differ from that at full length."""

_COMPARED = 2  # examples for each length

Run = Callable[[Any], list[dict[str, Any]]]
"""A function from a batch of inputs to what is stored of each cut, by address."""


@dataclass(frozen=True, eq=False)
class Lengths:
    """The lengths of texts, as the masks tell them under which their features are pooled.

    `masks` is the model from the inputs to these; features of an example take `row_bytes`.
    """

    masks: keras.Model = field(repr=False)
    row_bytes: int

    def of(self, inputs: Any) -> tuple[np.ndarray, int]:
        """Return the length that each example needs, one of a few, and the length it has."""
        counts, whole = self._counts(inputs)
        return _rounded(counts, whole), whole

    def _counts(self, inputs: Any) -> tuple[np.ndarray, int]:
        """Return how many positions each example needs, and the length it has.

        An example keeps whatever a mask counts, and whatever differs from its own last position
        in any input, so that a second text, of which these masks do not tell, is never cut. One
        that is all filling keeps its length.
        """
        parts = [np.asarray(part) for part in keras.tree.flatten(inputs)]
        rows, whole = len(parts[0]), parts[0].shape[1] if parts[0].ndim > 1 else 1
        told = keras.tree.flatten(self.masks(inputs, training=False))
        seen = [keras.ops.convert_to_numpy(mask) != 0 for mask in told]
        needed = np.full(rows, whole)
        if any(one.shape[:2] != (rows, whole) for one in (*parts, *seen)):
            return needed, whole
        for part in parts:
            flat = part.reshape(rows, whole, -1)
            seen.append((flat != flat[:, -1:]).any(axis=2))
        counts = np.any(seen, axis=0)
        needed -= np.argmax(counts[:, ::-1], axis=1)
        needed[~counts.any(axis=1)] = whole
        return needed, whole

    def window(self, batch_size: int) -> int:
        """Return how many examples are sorted at a time."""
        held = WINDOW_BYTES // (self.row_bytes * batch_size)
        return batch_size * max(1, min(WINDOW_BATCHES, held))

    def share(self, batches: Sequence[Any]) -> float:
        """Return the share of all positions that a pass computes, its texts sorted by length."""
        needed, whole = self.of(_joined(batches))
        size = len(keras.tree.flatten(batches[0])[0])
        computed = sum(needed[rows].max() * len(rows) for rows in _parts(needed, size * whole))
        return float(computed / (whole * len(needed)))

    def computed(
        self,
        map_windows: Callable[[Iterable["Window"]], Iterator["Window"]],
        batches: Iterable[tuple[int, Any]],
        batch_size: int,
    ) -> Iterator[list[dict[str, np.ndarray]]]:
        """Yield the features of each batch, in order.

        Texts are sorted by length in windows. Each batch of them is as long as its longest, and has
        as many positions as one of texts at full length.
        Some of the first that are shortened are computed at full length, too. Where that gives
        something else, a line says so, and all texts keep their length.

        Args:
            map_windows: Runs the bottom over windows, in order, as `run` does.
            batches: The number and the inputs of each, in the data set's order and of one length.
            batch_size: The examples of each, but perhaps the last.
        """
        batches, apart = iter(batches), None

        def windows() -> Iterator[Window]:
            while found := list(islice(batches, self.window(batch_size) // batch_size)):
                inputs = [one for _, one in found]
                rows = tuple(len(keras.tree.flatten(one)[0]) for one in inputs)
                yield Window(_joined(inputs), rows, apart)

        coming = windows()
        while apart is None and (window := next(coming, None)) is not None:
            (made,) = map_windows([window])  # which may tell how those after it are to be computed
            apart = made.apart
            if apart is not None and apart > TOLERANCE:
                differ = f"differ by {apart:.1g}" if apart < math.inf else "cannot be computed"
                say(
                    "warning: texts are computed at their full length, since features "
                    f"{differ} where what is filled up is left out."
                )
            yield from made.batches()
        for made in map_windows(coming):
            yield from made.batches()

    def run(self, bottom: Run, window: "Window", batch_size: int) -> "Window":
        """Return a window with the features of its texts, sorted by length meanwhile."""
        inputs, apart = window.inputs, window.apart
        counts, whole = self._counts(inputs)
        needed = _rounded(counts, whole)
        if apart is None and needed.min() < whole:
            apart = _apart(bottom, inputs, counts, whole)
        if apart is not None and apart > TOLERANCE:
            needed[:] = whole
        held: list[dict[str, np.ndarray]] = []
        for rows in _parts(needed, batch_size * whole):
            raise_if_interrupted()
            made = _run(bottom, inputs, rows, int(needed[rows].max()))
            held = held or [
                {n: np.empty((len(needed), *v.shape[1:]), v.dtype) for n, v in one.items()}
                for one in made
            ]
            for into, one in zip(held, made, strict=True):
                for name, values in one.items():
                    into[name][rows] = values
        return Window(None, window.rows, apart, held)


@dataclass(frozen=True, eq=False)
class Window:
    """Texts that are sorted among each other: their inputs, or else their features, in `held`.

    Its batches have so many `rows` each. Features are so far `apart` where what is filled up is
    left out; None where no text was shortened yet.
    """

    inputs: Any
    rows: tuple[int, ...]
    apart: float | None
    held: Sequence[dict[str, np.ndarray]] = ()

    def batches(self) -> Iterator[list[dict[str, np.ndarray]]]:
        """Yield the features of each batch."""
        low = 0
        for rows in self.rows:
            yield [{n: v[low : low + rows] for n, v in one.items()} for one in self.held]
            low += rows


def frontier_lengths(frontiers: Sequence[Frontier]) -> Lengths | None:
    """Return the lengths of what some cuts of one model are computed from, if texts may be shorter.

    They may where all features are pooled under a mask, and where the model takes any length. Whole
    maps keep the positions that are filled up, and so their length.
    """
    masks = {one.mask.address for one in frontiers if one.pooling and one.mask is not None}
    pooled = [tensor for one in frontiers for tensor in one.crossing]
    if not frontiers or not all(one.pooling and one.mask is not None for one in frontiers):
        return None
    graph = frontiers[0].graph
    shapes = [tensor.shape for tensor in (*graph.inputs, *pooled)]
    if any(len(s) < 2 or s[1] is not None or None in s[2:] for s in shapes):
        return None
    row_bytes = sum(4 * math.prod(s or 1 for s in tensor.shape[2:]) for tensor in pooled)
    return Lengths(extract(graph, sorted(masks)), row_bytes)


def _joined(batches: Sequence[Any]) -> Any:
    """Return the inputs of several batches as one, as arrays of NumPy."""
    return keras.tree.map_structure(
        lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *batches
    )


def _parts(needed: np.ndarray, most: int) -> list[np.ndarray]:
    """Return the numbers of examples in batches, by length, each of so many positions at most.

    The shorter texts are, the more of them are in a batch, so that none is little work.
    """
    order, parts = np.argsort(needed, kind="stable"), []
    while len(order):
        positions = needed[order] * np.arange(1, len(order) + 1)  # up to each, filled up to it
        size = max(1, int(np.searchsorted(positions, most, side="right")))
        parts.append(order[:size])
        order = order[size:]
    return parts


def _run(run: Run, inputs: Any, rows: np.ndarray, length: int) -> list[dict[str, np.ndarray]]:
    """Return the features of some examples, cut to a length."""
    made = run(keras.tree.map_structure(lambda part: part[rows, :length], inputs))
    return [{n: keras.ops.convert_to_numpy(v) for n, v in one.items()} for one in made]


def _rounded(counts: np.ndarray, whole: int) -> np.ndarray:
    """Return the lengths at which examples are computed that need so many positions."""
    step = math.ceil(whole / SIZES)
    return np.minimum(whole, -(-counts // step) * step)


def _apart(run: Run, inputs: Any, counts: np.ndarray, whole: int) -> float:
    """Return how much features of a few examples differ from those at full length.

    For each length the longest that fit are compared, at that length and at their own: there a
    layer shows that reads a little of what is filled up, such as a convolution. The difference is
    relative to the largest feature of a cut, and to 1 at least; infinite where one is not finite,
    or where a length cannot be computed, as of a layer that halves it.
    """
    apart, by_count = [0.0], np.argsort(counts, kind="stable")
    shortest = int(_rounded(counts, whole).min())
    for length in range(shortest, whole, math.ceil(whole / SIZES)):
        rows = by_count[counts[by_count] <= length][-_COMPARED:]
        wanted = _run(run, inputs, rows, whole)
        for cut_to in {length, int(counts[rows].max())}:
            try:
                made = _run(run, inputs, rows, cut_to)
            except tf.errors.OpError:
                return math.inf
            for full, found in zip(wanted, made, strict=True):
                for name, values in full.items():
                    values = values.astype("float64")
                    difference = np.abs(found[name].astype("float64") - values).max()
                    apart.append(float(difference / max(1.0, np.abs(values).max())))
    return max(apart) if np.isfinite(apart).all() else math.inf
