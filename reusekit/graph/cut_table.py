"""The cut points of a model, with the costs on each side of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, overload

import keras
from pydantic import PositiveInt

from reusekit.arguments import checked
from reusekit.errors import AddressError, SurgeryError, nearest
from reusekit.graph.flops import Flops, count_flops
from reusekit.graph.frontier import Cut, clean, cut, on_every_path
from reusekit.graph.graph import Graph, Tensor
from reusekit.graph.reader import read

_COLUMNS = ("at", "shape", "dtype", "width", "stride", "depth", "params", "bytes")
_BYTES = {"bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "bfloat16": 2}


@dataclass(frozen=True)
class CutPoint:
    """One tensor to cut a model at, with what lies on either side.

    Attributes:
        at: The address of the tensor to cut at.
        tensors: The addresses of every tensor that crosses, `at` first.
        free: Those of them, beyond `at`, that are model inputs or computed from inputs without a
            weight.
        width: The number of tensors that cross, free ones not counted; a clean cut has width 1.
        shape: Shape of the tensor cut at, batch dimension first.
        dtype: Its dtype.
        stride: The input's first spatial axis over the tensor's, rounded; None for a tensor without
            one.
        depth: The share of the model's FLOPs that lies before the cut, 0 to 1.
        params_before: Unique parameters that the bottom uses; a weight that both sides use counts
            on both.
        params_after: Unique parameters that the top uses.
        flops_before: FLOPs of the bottom for one example.
        flops_after: FLOPs of the top for one example.
        bytes: Bytes of everything that crosses, for one example.
    """

    at: str
    tensors: tuple[str, ...]
    free: tuple[str, ...]
    width: int
    shape: tuple[int | None, ...]
    dtype: str
    stride: int | None
    depth: float
    params_before: int
    params_after: int
    flops_before: int
    flops_after: int
    bytes: int

    def __post_init__(self):
        if self.width != len(self.tensors) - len(self.free) or self.width < 1:
            raise ValueError(f"A cut's width is the tensors that are not free: {self}")
        if not 0 <= self.depth <= 1:
            raise ValueError(f"A cut's depth is a share between 0 and 1: {self}")


@dataclass(frozen=True)
class CutPoints(Sequence):
    """The cut points of a model, shallow to deep; prints as a table.

    Attributes:
        points: The cut points.
        model: The model's name.
        uncounted: The classes of layers whose FLOPs are not known; they count as zero.
    """

    points: tuple[CutPoint, ...]
    model: str
    uncounted: tuple[str, ...]

    @overload
    def __getitem__(self, index: int | str) -> CutPoint: ...
    @overload
    def __getitem__(self, index: slice) -> "CutPoints": ...

    def __getitem__(self, index):
        """Return one cut point by number or address, or several by slice."""
        if isinstance(index, str):
            for point in self.points:
                if point.at == index:
                    return point
            raise AddressError(
                f"Expected the address of a cut point of {self.model!r}. Received: {index!r}. "
                f"{nearest(index, (point.at for point in self.points))}"
            )
        if isinstance(index, slice):
            return CutPoints(self.points[index], self.model, self.uncounted)
        return self.points[index]

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[CutPoint]:
        return iter(self.points)

    def to_frame(self) -> Any:
        """Return the cut points as a pandas DataFrame, one row each."""
        import pandas

        return pandas.DataFrame([asdict(point) for point in self.points])

    def _repr_html_(self) -> str:
        import pandas

        return pandas.DataFrame(self._rows(), columns=_COLUMNS).to_html(index=False)

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                point.at,
                "x".join("?" if size is None else str(size) for size in point.shape[1:]),
                point.dtype,
                str(point.width),
                "-" if point.stride is None else str(point.stride),
                f"{point.depth:.1%}",
                f"{point.params_before:,}",
                f"{point.bytes:,}",
            )
            for point in self.points
        ]

    def __str__(self) -> str:
        rows = (_COLUMNS, *self._rows())
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        if self.uncounted:
            lines.append(f"FLOPs not counted: {', '.join(self.uncounted)}")
        return "\n".join(lines)


@checked(SurgeryError)
def cut_points(model: keras.Model | Graph, max_width: PositiveInt | None = 1) -> CutPoints:
    """List where a model can be cut.

    With `max_width=1` these are the clean cuts: one tensor crosses, beside free ones such as a
    padding mask. They are found in one sweep, in time that grows linearly with the model. Any other
    `max_width` looks at each tensor by itself, which takes time that grows with the square.

    The model's inputs and outputs are listed only with `max_width=None`: cut there, nothing would
    be left on one side.

    Args:
        model: A model with a functional graph, or one that was read already.
        max_width: The widest cut to list; None lists every tensor.

    Returns:
        The cut points in topological order.

    Raises:
        NoGraphError: The model has no functional graph.

    Example:
        >>> x = keras.Input((8,), name="x")
        >>> y = keras.layers.Dense(8, name="a")(x)
        >>> y = keras.layers.Add(name="skip")([keras.layers.Dense(8, name="b")(y), y])
        >>> model = keras.Model(x, keras.layers.Dense(1, name="head")(y), name="m")
        >>> print(cut_points(model))
        at    shape  dtype    width  stride  depth  params  bytes
        a     8      float32      1       -  45.8%      72     32
        skip  8      float32      1       -  94.3%     144     32
    """
    graph = read(model)
    costs = SummedCosts(graph)
    points = _clean_points(graph, costs) if max_width == 1 else _all_points(graph, costs, max_width)
    return CutPoints(tuple(points), graph.model.name, costs.flops.uncounted)


@dataclass(frozen=True)
class Sides:
    """FLOPs (per example) and unique parameters before and after a cut.

    A weight that both sides use counts on both.
    """

    flops_before: int
    flops_after: int
    params_before: int
    params_after: int


class SummedCosts:
    """The costs of a graph, summed up along its calls so that a cut is looked up, not counted."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.flops: Flops = count_flops(graph)
        per_call = self.flops.per_call
        learned = [call.outputs[0] not in graph.free for call in graph.calls]
        self._all = list(accumulate(per_call))
        self._learned = list(
            accumulate(n if counts else 0 for n, counts in zip(per_call, learned, strict=True))
        )
        self._free = self._all[-1] - self._learned[-1]
        self._sizes: dict[int, int] = {}
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        self._used: list[list[int]] = []
        for call in graph.calls:
            used = []
            for variable in call.variables:
                key = id(variable)
                self._sizes[key] = math.prod(variable.shape)
                first.setdefault(key, call.index)
                last[key] = call.index
                used.append(key)
            self._used.append(used)
        self._begun = self._summed(first)
        self._ended = self._summed(last)
        self.params = sum(self._sizes.values())

    def _summed(self, calls: dict[int, int]) -> list[int]:
        """Return for each call the sizes of the weights that are at it or at one before it."""
        sizes = [0] * len(self.graph.calls)
        for key, call in calls.items():
            sizes[call] += self._sizes[key]
        return list(accumulate(sizes))

    def after(self, call: int, free_calls_before: bool) -> Sides:
        """Return the sides of a cut whose top is every call after one in the order.

        Args:
            call: The index of the call that makes the tensor cut at.
            free_calls_before: Whether calls whose outputs are free all count to the bottom, also
                those that come later in the order.
        """
        before = self._learned[call] + self._free if free_calls_before else self._all[call]
        return Sides(
            flops_before=before,
            flops_after=self._all[-1] - before,
            params_before=self._begun[call],
            params_after=self.params - self._ended[call],
        )

    def of(self, cut: Cut) -> Sides:
        """Return the sides of any cut."""
        flops = [0, 0]
        used: tuple[set[int], set[int]] = (set(), set())
        for call, top in zip(self.graph.calls, cut.top, strict=True):
            flops[top] += self.flops.per_call[call.index]
            used[top].update(self._used[call.index])
        before, after = (sum(self._sizes[key] for key in side) for side in used)
        return Sides(flops[0], flops[1], before, after)


def _clean_points(graph: Graph, costs: SummedCosts) -> Iterator[CutPoint]:
    everywhere = on_every_path(graph)
    crossing = _FreeCrossing(graph)
    for tensor in clean(graph):
        if not _is_inside(graph, tensor):
            continue
        call = graph.maker[tensor].index
        if tensor in everywhere:
            sides = costs.after(call, free_calls_before=False)
            yield _point(tensor, (), (), sides, costs)
        elif tensor not in graph.free:
            sides = costs.after(call, free_calls_before=True)
            free = crossing.after(call)
            yield _point(tensor, free, free, sides, costs)
        else:
            yield _searched(graph, costs, tensor)


def _all_points(graph: Graph, costs: SummedCosts, max_width: int | None) -> Iterator[CutPoint]:
    for tensor in graph.tensors:
        if max_width is None or _is_inside(graph, tensor):
            point = _searched(graph, costs, tensor)
            if max_width is None or point.width <= max_width:
                yield point


def _is_inside(graph: Graph, tensor: Tensor) -> bool:
    return not graph.maker[tensor].is_input and tensor not in graph.outputs


def _searched(graph: Graph, costs: SummedCosts, tensor: Tensor) -> CutPoint:
    """Return a cut point by a search through the graph, where no sum along the calls holds it."""
    found = cut(graph, [tensor])
    others = found.frontier[1:]
    free = tuple(other for other in others if other in found.free)
    return _point(tensor, others, free, costs.of(found), costs)


class _FreeCrossing:
    """The free tensors that cross beside a clean cut at a learned tensor.

    All that is learned and comes later depends on such a cut, and nothing free does.
    """

    def __init__(self, graph: Graph):
        last = {tensor: len(graph.calls) for tensor in graph.outputs if tensor in graph.free}
        for call in graph.calls:
            if call.outputs[0] not in graph.free:
                for tensor in call.reads:
                    if tensor in graph.free:
                        last[tensor] = max(last.get(tensor, -1), call.index)
        self._order = {tensor: number for number, tensor in enumerate(graph.tensors)}
        self._by_last = sorted(last.items(), key=lambda item: -item[1])

    def after(self, call: int) -> tuple[Tensor, ...]:
        """Return the free tensors that a call after this one reads, in topological order."""
        found = []
        for tensor, last in self._by_last:
            if last <= call:
                break
            found.append(tensor)
        return tuple(sorted(found, key=self._order.__getitem__))


def _point(
    tensor: Tensor,
    others: tuple[Tensor, ...],
    free: tuple[Tensor, ...],
    sides: Sides,
    costs: SummedCosts,
) -> CutPoint:
    total = sides.flops_before + sides.flops_after
    tensors = (tensor, *others)
    stride = costs.flops.stride[tensor]
    return CutPoint(
        at=tensor.address,
        tensors=tuple(t.address for t in tensors),
        free=tuple(t.address for t in free),
        width=len(tensors) - len(free),
        shape=tensor.shape,
        dtype=tensor.dtype,
        stride=max(1, round(stride)) if len(tensor.shape) > 2 else None,
        depth=sides.flops_before / total if total else 0.0,
        params_before=sides.params_before,
        params_after=sides.params_after,
        flops_before=sides.flops_before,
        flops_after=sides.flops_after,
        bytes=sum(math.prod(costs.flops.shapes[t]) * _item_size(t.dtype) for t in tensors),
    )


def _item_size(dtype: str) -> int:
    """Return the bytes of one element."""
    if dtype in _BYTES:
        return _BYTES[dtype]
    digits = "".join(c for c in dtype if c.isdecimal())
    return max(1, int(digits) // 8) if digits else 1
