"""FLOPs and unique parameters on each side of a cut."""

import math
from dataclasses import dataclass
from itertools import accumulate

from reusekit.graph.flops import Flops, count_flops
from reusekit.graph.frontier import Cut
from reusekit.graph.graph import Graph


@dataclass(frozen=True)
class Sides:
    """FLOPs (per example) and unique parameters before and after a cut.

    A weight that both sides use counts on both.
    """

    flops_before: int
    flops_after: int
    params_before: int
    params_after: int


class Costs:
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
        self._begun = self._per_place(first)
        self._ended = self._per_place(last)
        self.params = sum(self._sizes.values())

    def _per_place(self, places: dict[int, int]) -> list[int]:
        sizes = [0] * len(self.graph.calls)
        for key, place in places.items():
            sizes[place] += self._sizes[key]
        return list(accumulate(sizes))

    def after_place(self, place: int, free_calls_before: bool) -> Sides:
        """Return the sides of a cut whose top is every call after one place in the order.

        Args:
            place: The index of the call that makes the tensor cut at.
            free_calls_before: Whether calls whose outputs are free all count to the bottom, also
                those that come later in the order.
        """
        before = self._learned[place] + self._free if free_calls_before else self._all[place]
        return Sides(
            flops_before=before,
            flops_after=self._all[-1] - before,
            params_before=self._begun[place],
            params_after=self.params - self._ended[place],
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
