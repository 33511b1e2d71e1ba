"""Cuts that are worth offering: clean ones, before what a backbone itself ends in."""

import keras

from reusekit.graph import Call, CutPoint, Graph, Tensor, cut_points, keras_internals, read

_ENDING = (keras.activations.softmax, keras.activations.sigmoid, keras.activations.log_softmax)


def clean_cuts(model: keras.Model | Graph) -> dict[str, CutPoint]:
    """Return every clean cut with a weight before it, by address, shallow to deep."""
    # All tensors, since `cut_points` leaves out the model's output, and the output of a backbone
    # without its classifier is the deepest cut there is.
    every = cut_points(model, max_width=None)
    return {p.at: p for p in every if p.tensors and p.width == 1 and p.params_before}


def feature_cuts(
    model: keras.Model | Graph, classes: int | None = None, head: str | None = None
) -> dict[str, CutPoint]:
    """Return the clean cuts at features, without those in the end of a classifier.

    Probabilities say what a model was trained to tell apart, and little else: a softmax or sigmoid
    that no weight follows, what comes after it, and the scores that go into it are left out. The
    tensor just before is among the cuts. So are all where nothing else would be left.

    Args:
        model: A model, or one that was read already.
        classes: Leave out vectors of that many channels or fewer, too.
        head: Leave out everything behind that address, too, if there is a tensor of that address.

    Example:
        >>> x = keras.Input((8,), name="x")
        >>> y = keras.layers.Dense(6, activation="relu", name="features")(x)
        >>> y = keras.layers.Dense(3, activation="softmax", name="old")(y)
        >>> list(feature_cuts(keras.Model(x, y)))
        ['features']
    """
    graph = read(model)
    clean, end = clean_cuts(graph), _classifier_end(graph, graph.names.get(head or ""))
    kept = {
        at: point
        for at, point in clean.items()
        if graph.names[at] not in end
        and not (classes and len(point.shape) == 2 and (point.shape[-1] or 0) <= classes)
    }
    return kept or clean


def _classifier_end(graph: Graph, before: Tensor | None) -> set[Tensor]:
    """Return the tensors behind another, and the end from the scores of the last softmax on."""
    followed: dict[Call, bool] = {}  # by a weight
    for call in reversed(graph.calls):
        readers = [reader for tensor in call.outputs for reader in graph.readers[tensor]]
        followed[call] = any(reader.variables or followed[reader] for reader in readers)
    end: set[Tensor] = set()
    for call in graph.calls:
        if any(tensor in end or tensor is before for tensor in call.reads):
            end.update(call.outputs)
        elif _is_ending(call) and not followed[call]:
            end.update(call.outputs)
            end.update(_scores(graph, call))
    return end


def _is_ending(call: Call) -> bool:
    operation = call.operation
    return getattr(operation, "activation", None) in _ENDING or isinstance(
        operation, (keras.layers.Softmax, *keras_internals.ENDING_OPERATIONS)
    )


def _scores(graph: Graph, call: Call) -> list[Tensor]:
    """Return the inputs of a weightless softmax, back to the layer that has weights."""
    found: list[Tensor] = []
    while not call.variables and len(call.inputs) == 1:
        (tensor,) = call.inputs
        call = graph.maker[tensor]
        if call.is_input:
            break
        found.append(tensor)
    return found
