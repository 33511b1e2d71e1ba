"""The ledger of shared weights: every variable that has more than one owner."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import keras

from reusekit.errors import TieError
from reusekit.graph import keras_internals, read
from reusekit.graph.addresses import without_call_number


@dataclass(frozen=True)
class Tie:
    """One weight that several layers own.

    Attributes:
        owners: The addresses of the layers, in the order of the model.
        name: The weight's own name, such as `embeddings`.
        shape: Its shape.
        parameters: How many scalars it holds.
        variable: The weight.
    """

    owners: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    parameters: int
    variable: keras.Variable = field(repr=False, compare=False)


def tied_weights(model: keras.Model) -> list[Tie]:
    """Find every weight of a model that has more than one owner, by identity and not by name.

    An owner is a layer that holds the weight itself or in a layer inside it, or an operation of the
    graph that takes the weight as an argument. A layer that stands
    both in a nested model and outside it has two addresses and counts as two owners. A layer that
    is merely called several times is one. Where all owners are inside one layer that is not itself
    a functional model, such as an encoder block, their addresses lead into it.

    Args:
        model: A built model of any kind; it need not have a functional graph.

    Returns:
        The ties, in the order of the model's weights.

    Raises:
        TieError: That is no model, or it has no weights yet.

    Example:
        >>> from reusekit.sharing.layers import TiedDense
        >>> tokens = keras.Input((7,), dtype="int32", name="tokens")
        >>> embedding = keras.layers.Embedding(50, 4, name="embedding")
        >>> logits = TiedDense(embedding, name="logits")(embedding(tokens))
        >>> tied_weights(keras.Model(tokens, logits))
        [Tie(owners=('embedding', 'logits'), name='embeddings', shape=(50, 4), parameters=200)]
    """
    if not isinstance(model, keras.Layer) or not model.built:
        raise TieError(
            f"Expected a model that is built, received {model!r}. Call it on data or give it an "
            "Input first."
        )
    places: dict[int, list[tuple[keras.Layer, ...]]] = {}
    for path in _paths((model,)):
        for variable in keras_internals.own_variables(path[-1]):
            places.setdefault(id(variable), []).append(path[1:])
    users = _users(model)
    ties = []
    for variable in model.weights:
        owners = _owners(places.get(id(variable), []), users.get(id(variable), ()))
        if len(owners) > 1:
            shape = tuple(variable.shape)
            ties.append(Tie(owners, variable.name, shape, math.prod(shape), variable))
    return ties


def _paths(path: tuple[keras.Layer, ...]) -> Iterator[tuple[keras.Layer, ...]]:
    """Yield every way to go from a layer down to itself and the layers in it."""
    yield path
    for layer in keras_internals.direct_layers(path[-1]):
        yield from _paths((*path, layer))


def _users(model: keras.Model) -> dict[int, dict[str, None]]:
    """Map the id of each weight to the addresses of the operations that take it."""
    users: dict[int, dict[str, None]] = {}
    for call in read(model).calls if keras_internals.runs_its_graph(model) else ():
        for variable in call.given:
            users.setdefault(id(variable), {})[without_call_number(call.address)] = None
    return users


def _owners(paths: list[tuple[keras.Layer, ...]], users: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses of some owners, no deeper than it takes to tell them apart."""
    short = tuple(dict.fromkeys([*(_named(_reachable(path)) for path in paths), *users]))
    return short if len(short) > 1 else tuple(dict.fromkeys(map(_named, paths)))


def _reachable(path: tuple[keras.Layer, ...]) -> tuple[keras.Layer, ...]:
    """Return the part of a path that an address can name: nested models and one layer."""
    for depth, layer in enumerate(path, start=1):
        if not keras_internals.runs_its_graph(layer):
            return path[:depth]
    return path


def _named(path: tuple[keras.Layer, ...]) -> str:
    return "/".join(layer.name for layer in path)
