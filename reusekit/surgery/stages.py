"""Cutting a graph at one or several places into stages that follow one another."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from reusekit.errors import CutOrderError
from reusekit.graph import Call, Cut, Graph, Tensor


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a graph between two cuts.

    Attributes:
        fed: The tensors it is fed: the model's inputs for the first stage.
        calls: The calls it makes, in order.
        passed: The tensors it hands on to the next: the model's outputs for the last stage.
    """

    fed: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    passed: tuple[Tensor, ...]


def stages(graph: Graph, cuts: Sequence[Cut]) -> list[Stage]:
    """Return the stages of a graph that is cut at several places, shallow to deep.

    A tensor that an early stage makes and a late one reads is passed on by all stages between.

    Args:
        graph: The graph.
        cuts: Cuts of it; each must lie before the next.

    Returns:
        One stage more than there are cuts.

    Raises:
        CutOrderError: A cut does not lie before the next one.
    """
    for earlier, later in pairwise(cuts):
        if any(top and not above for above, top in zip(earlier.top, later.top, strict=True)) or (
            set(later.at) & set(earlier.at)
        ):
            raise CutOrderError(
                f"Expected cuts from shallow to deep, each depending on the one before, received "
                f"{[t.address for t in earlier.at]} before {[t.address for t in later.at]}."
            )
    # How many cuts a call depends on is the stage it belongs to.
    places = [sum(tops) for tops in zip(*(cut.top for cut in cuts), strict=True)]
    last_read = dict.fromkeys(graph.outputs, len(cuts))
    for call in graph.calls:
        for tensor in call.reads:
            last_read[tensor] = max(last_read.get(tensor, 0), places[call.index])
    borders = [graph.inputs]
    for number, cut in enumerate(cuts, start=1):
        crossing = [
            tensor
            for call in graph.calls
            if places[call.index] < number
            for tensor in call.outputs
            if last_read.get(tensor, 0) >= number
        ]
        borders.append(tuple(dict.fromkeys((*cut.at, *crossing))))
    borders.append(graph.outputs)
    return [
        Stage(
            borders[number],
            tuple(call for call in graph.calls if places[call.index] == number),
            borders[number + 1],
        )
        for number in range(len(cuts) + 1)
    ]
