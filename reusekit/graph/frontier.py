"""The frontier of a cut: the tensors between its dependents and the rest."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reusekit.errors import CutOrderError
from reusekit.graph.graph import Call, Graph, Tensor


@dataclass(frozen=True, eq=False)
class Cut:
    """One cut through a graph.

    Attributes:
        at: The tensors that were asked for.
        frontier: Every tensor that crosses: `at` first, then, in topological order, each tensor
            that does not depend on `at` and that the top reads or the model puts out.
        free: Those of the frontier beyond `at` that are model inputs or computed from inputs
            without a weight.
        top: Whether each call of the graph depends on `at`, by index.
    """

    at: tuple[Tensor, ...]
    frontier: tuple[Tensor, ...]
    free: frozenset[Tensor]
    top: Sequence[bool]

    @property
    def width(self) -> int:
        """Return the number of crossing tensors without free ones; those asked for count."""
        return len(self.frontier) - len(self.free)


def cut(graph: Graph, at: Iterable[Tensor]) -> Cut:
    """Cut a graph at some of its tensors. One pass over the calls.

    Args:
        graph: The graph.
        at: Tensors of it, none of which may depend on another.

    Returns:
        The cut.

    Raises:
        CutOrderError: One of the tensors depends on another.
    """
    at = tuple(at)
    asked = set(at)
    top = dependents(graph, asked)
    for tensor in at:
        if top[graph.maker[tensor].index]:
            above = next(t for t in at if t is not tensor and depends(graph, tensor, t))
            raise CutOrderError(
                f"Expected tensors that do not depend on one another, received {tensor.address!r}, "
                f"which is computed from {above.address!r}. Cut at one of them, or segment the "
                "model at both."
            )
    crossing = {t for call in graph.calls if top[call.index] for t in call.reads}
    crossing.update(graph.outputs)
    others = [
        tensor
        for call in graph.calls
        if not top[call.index]
        for tensor in call.outputs
        if tensor in crossing and tensor not in asked
    ]
    free = frozenset(tensor for tensor in others if tensor in graph.free)
    return Cut(at, (*at, *others), free, top)


def dependents(graph: Graph, tensors: set[Tensor]) -> list[bool]:
    """Return, for each call by index, whether it depends on one of the tensors."""
    made: set[Tensor] = set(tensors)
    found = [False] * len(graph.calls)
    for call in graph.calls:
        if not made.isdisjoint(call.reads):
            found[call.index] = True
            made.update(call.outputs)
    return found


def depends(graph: Graph, tensor: Tensor, on: Tensor) -> bool:
    """Return whether a tensor is computed from another."""
    return dependents(graph, {on})[graph.maker[tensor].index]


def ancestors(graph: Graph, tensors: Iterable[Tensor]) -> list[Call]:
    """Return every call that the tensors are computed by, in topological order."""
    needed = set(tensors)
    found = []
    for call in reversed(graph.calls):
        if not needed.isdisjoint(call.outputs):
            found.append(call)
            needed.update(call.reads)
    found.reverse()
    return found
