"""The frontier of a cut: the tensors between its dependents and the rest; clean cuts."""

from collections.abc import Callable, Iterable, Sequence
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
                "Expected tensors that do not depend on one another. Received: "
                f"{tensor.address!r}, which is computed from {above.address!r}. Cut at one of "
                "them, or segment the model at both."
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


def ancestors(graph: Graph, tensors: Iterable[Tensor], given: Iterable[Tensor] = ()) -> list[Call]:
    """Return every call that tensors are computed by, from given ones, in topological order."""
    given = set(given)
    needed = set(tensors) - given
    found = []
    for call in reversed(graph.calls):
        if not needed.isdisjoint(call.outputs):
            found.append(call)
            needed.update(call.reads)
            needed -= given
    found.reverse()
    return found


def clean(graph: Graph) -> list[Tensor]:
    """Return the tensors at which a cut has width one, in topological order: the clean cuts.

    A tensor is one if every path that carries something learned passes through it; free tensors may
    cross beside it. All are found in one sweep: with the calls in topological order, a tensor lies
    on every path exactly if no edge jumps over it. So time grows linearly with the graph and
    not, as with one search for each tensor, with its square.
    """
    learned = _on_every_path(graph, lambda call: call.outputs[0] not in graph.free)
    first = _reaching_all_that_is_learned(graph)
    return [tensor for tensor in graph.tensors if tensor in learned or tensor in first]


def on_every_path(graph: Graph) -> set[Tensor]:
    """Return the tensors through which every path passes, free ones included.

    Exactly the calls after such a tensor in `graph.calls` depend on it.
    """
    return _on_every_path(graph, lambda call: True)


def _on_every_path(graph: Graph, counts: Callable[[Call], bool]) -> set[Tensor]:
    """Sweep the calls that count, and find the tensors that no edge between them skips."""
    end = len(graph.calls)
    last_read = dict.fromkeys(graph.outputs, end)
    for call in graph.calls:
        if counts(call):
            for tensor in call.reads:
                last_read[tensor] = max(last_read.get(tensor, -1), call.index)
    # A path that starts behind a tensor jumps over it; the first call that counts starts them all.
    starts = [
        call.index
        for call in graph.calls
        if counts(call) and not any(counts(graph.maker[tensor]) for tensor in call.reads)
    ]
    reach = max(starts, default=-1)
    found: set[Tensor] = set()
    for call in graph.calls:
        if not counts(call):
            continue
        outputs = [tensor for tensor in call.outputs if tensor in last_read]
        # No tensor spans this call, and the call itself puts out one that is read.
        if reach <= call.index and len(outputs) == 1:
            found.add(outputs[0])
        for tensor in outputs:
            reach = max(reach, last_read[tensor])
    return found


def _reaching_all_that_is_learned(graph: Graph) -> set[Tensor]:
    """Return the free tensors that everything learned depends on, such as a rescaled image.

    Each call that is the first to bring in weights is one bit; a tensor holds the bits of the calls
    that depend on it. There are few such calls, so that the sets are small.
    """
    bit: dict[Call, int] = {}
    for call in graph.calls:
        learned = call.outputs[0] not in graph.free
        if learned and all(tensor in graph.free for tensor in call.reads):
            bit[call] = 1 << len(bit)
    everything = (1 << len(bit)) - 1
    reached: dict[Tensor, int] = {}
    for call in reversed(graph.calls):
        if call.outputs[0] in graph.free:
            bits = 0
            for tensor in call.outputs:
                bits |= reached.get(tensor, 0)
        else:
            bits = bit.get(call, 0)
        if bits:
            for tensor in call.reads:
                if tensor in graph.free:
                    reached[tensor] = reached.get(tensor, 0) | bits
    return {
        tensor
        for tensor in graph.tensors
        if tensor in graph.free and reached.get(tensor, 0) == everything
    }
