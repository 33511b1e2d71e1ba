"""Clean cuts, all in one sweep.

A tensor is a clean cut if every path that carries something learned passes through it. Lay the
calls out in topological order: a tensor lies on every path exactly if no edge jumps over its place.
Edges are swept once, with the farthest reach seen so far, so that time grows linearly with the
graph and not, as with one search for each tensor, with its square.
"""

from collections.abc import Callable

from reusekit.graph.graph import Call, Graph, Tensor


def clean(graph: Graph) -> list[Tensor]:
    """Return the tensors at which a cut has width one, in topological order.

    Free tensors (model inputs and what is computed from them without a weight) may cross beside a
    clean cut; see `reusekit.graph.frontier`.
    """
    learned = _on_every_path(graph, lambda call: call.outputs[0] not in graph.free)
    first = _reaching_all_that_is_learned(graph)
    return [tensor for tensor in graph.tensors if tensor in learned or tensor in first]


def on_every_path(graph: Graph) -> set[Tensor]:
    """Return the tensors through which every path passes, free ones included.

    What depends on such a tensor is exactly what comes after it in `graph.calls`.
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
        # Nothing else spans this place, and the call itself puts out one tensor that is read.
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
