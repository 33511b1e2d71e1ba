"""Ties: weights that have more than one owner, listed and made."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import keras

from reusekit.arguments import checked
from reusekit.errors import TieError, nearest
from reusekit.graph import Graph, keras_internals, read
from reusekit.graph.addresses import without_call_number
from reusekit.sharing import tied_source
from reusekit.sharing.tied_dense import TiedDense
from reusekit.surgery import clone
from reusekit.surgery.certificate import prove_copy
from reusekit.surgery.copies import leaves, substitute


@dataclass(frozen=True)
class Tie:
    """One weight that several layers own.

    Attributes:
        owners: The addresses of the layers, in the order of the model.
        name: The weight's own name, such as `embeddings`.
        shape: Its shape.
        parameters: The number of its scalars.
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
            f"Expected a model that is built. Received: {model!r}. Call it on data or give it an "
            "Input first."
        )
    paths: dict[int, list[tuple[keras.Layer, ...]]] = {}
    for path in _paths((model,)):
        for variable in keras_internals.own_variables(path[-1]):
            paths.setdefault(id(variable), []).append(path[1:])
    users = _users(model)
    ties = []
    for variable in model.weights:
        owners = _owners(paths.get(id(variable), []), users.get(id(variable), ()))
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


# --- made ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Weight:
    """One weight of one layer.

    Attributes:
        address: The address of the layer and the name of the weight, `outer/layer/kernel`.
        layer: The layer; that which a `TiedDense` is tied to, where the weight is of that one.
        variable: The weight.
    """

    address: str
    layer: keras.Layer
    variable: keras.Variable

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; a convolution's of size 1 without the axes of the image."""
        shape = tuple(self.variable.shape)
        return shape[-2:] if set(shape[:-2]) == {1} else shape

    @property
    def is_matrix(self) -> bool:
        """Return whether it is what the layer multiplies with."""
        return self.variable is tied_source.matrix(self.layer)


class _Union(NamedTuple):
    """The layer that keeps its weight, and the one that gives its own up."""

    source: _Weight
    replaced: _Weight
    merged: bool  # whether calls of the source itself take the place of the other layer's


@checked(TieError)
def tie(
    model: keras.Model,
    a: str | keras.Variable,
    b: str | keras.Variable,
    transform: Literal["transpose"] | None = None,
    keep: Literal["a", "b"] = "a",
) -> keras.Model:
    """Make two weights of a model one, in a new model with weights of its own.

    A dense layer (or a convolution that is one) whose kernel becomes another layer's weight comes
    back as `rk.layers.TiedDense` of the same name, with its own bias. Two layers with no other
    weight and equal configurations become one layer that is called twice. Initialiser, regulariser,
    constraint and trainable flag of the weight are those of the layer that stays: `a` if possible.
    A `TiedDense` that was tied to the layer that goes is tied to the one that stays.

    Args:
        model: A model with a functional graph. It is not changed.
        a: The first weight: `layer/weight`, just `layer` for its kernel or embeddings, or a
            `keras.Variable` of the model.
        b: The second, likewise.
        transform: "transpose" where one is the other transposed; None where they are the same.
        keep: The weight whose value the shared one begins with: "a" or "b".

    Returns:
        The new model.

    Raises:
        TieError: A weight that is not there, shapes that do not fit, or layers that cannot share.
        NoGraphError: The model has no functional graph.

    Example:
        >>> tokens = keras.Input((7,), dtype="int32", name="tokens")
        >>> hidden = keras.layers.Embedding(50, 4, name="embedding")(tokens)
        >>> model = keras.Model(tokens, keras.layers.Dense(50, name="logits")(hidden))
        >>> tied = tie(model, "embedding", "logits", transform="transpose")
        >>> model.count_params(), tied.count_params()
        (450, 250)
    """
    graph = read(model)
    first, second = _find_weight(graph, a), _find_weight(graph, b)
    _check(first, second, transform)
    union = _union(first, second, transform)
    _check_owners(model, union.replaced)

    twin = clone(model)
    layers = (keras_internals.all_layers(each) for each in (model, twin))
    copies = {id(old): new for old, new in zip(*layers, strict=True)}
    source, replaced = (copies[id(weight.layer)] for weight in (union.source, union.replaced))
    replacement = source if union.merged else _tied(source, replaced, transform)
    exchanged = {
        layer: layer.tied_to(source, turned=transform == "transpose")
        for layer in leaves(twin)
        if _is_tied_to(layer, replaced)
    }
    tied = substitute(twin, {replaced: replacement, **exchanged})
    if not union.merged and replaced.bias is not None:
        replacement.bias.assign(replaced.bias)  # type: ignore[union-attr]  # with a bias, too
    kept, other = (first, second) if keep == "a" else (second, first)
    value = keras.ops.copy(kept.variable.value)
    turned = keras.ops.reshape(value, kept.shape)
    turned = keras.ops.transpose(turned) if transform else turned
    turned = keras.ops.reshape(turned, other.variable.shape)
    target = source.weights[_place(union.source)]
    target.assign(value if kept is union.source else turned)
    both = [(kept.variable, value), (other.variable, turned)]
    prove_copy(model, tied, original_state=both)
    return tied


def _check(first: _Weight, second: _Weight, transform: str | None) -> None:
    if first.variable is second.variable:
        raise TieError(
            f"Expected two weights. Received: one, {first.address!r}, which is tied already."
        )
    for weight in (first, second):
        layer = weight.layer
        if layer.quantization_mode or getattr(layer, "lora_enabled", False):
            raise TieError(
                f"Expected layers in floating point and without LoRA. Received: {layer.name!r}. "
                "Tie first, then quantise or enable LoRA."
            )
    one, other = first.shape, second.shape
    if one != (other[::-1] if transform else other):
        turned = one == (other if transform else other[::-1])
        hint = f" Pass transform={None if transform else 'transpose'!r}."
        raise TieError(
            f"Expected weights whose shapes agree{' once transposed' if transform else ''}. "
            f"Received: {first.address!r} {one} and {second.address!r} {other}."
            f"{hint if turned else ''}"
        )


def _union(a: _Weight, b: _Weight, transform: str | None) -> _Union:
    for source, replaced in ((a, b), (b, a)):
        if _can_replace(source, replaced, transform):
            return _Union(source, replaced, merged=False)
    hint = ""
    if transform is None and len(a.layer.weights) == 1 and type(a.layer) is type(b.layer):
        differing = differences(a.layer, b.layer)
        if not differing:
            return _Union(a, b, merged=True)
        hint = f", which differ in {', '.join(differing)}"
    raise TieError(
        "Expected a Dense, an EinsumDense or a convolution of size and stride 1 together with "
        "another layer that multiplies with a matrix over the same axes, or two layers of equal "
        f"configuration with one weight each. Received: {a.address!r} of {type(a.layer).__name__} "
        f"and {b.address!r} of {type(b.layer).__name__}{hint}."
    )


def _check_owners(model: keras.Model, replaced: _Weight) -> None:
    """Raise TieError where a layer would keep the weight that is given up."""
    for layer in leaves(model):
        if not isinstance(layer, keras.Layer) or _is_tied_to(layer, replaced.layer):
            continue
        if replaced.layer in keras_internals.all_layers(layer)[1:]:
            raise TieError(
                f"Expected to give up a weight that no other layer holds. Received: "
                f"{replaced.address!r}, which {layer.name!r} of {type(layer).__name__} would keep. "
                "Name it as a, so that its layer stays."
            )


def _is_tied_to(layer: Any, source: keras.Layer) -> bool:
    return isinstance(layer, TiedDense) and layer.source is source


def _can_replace(source: _Weight, replaced: _Weight, transform: str | None) -> bool:
    """Return whether the one layer, with the weight of the other, would be a TiedDense."""
    if not (source.is_matrix and replaced.is_matrix and tied_source.multiplies(replaced.layer)):
        return False
    try:
        tied_source.check_source(source.layer)
    except TieError:
        return False
    equation = tied_source.equation(source.layer)
    if transform:
        equation = equation.transposed._replace(kernel=equation.kernel[::-1])
    return equation.canonical == tied_source.equation(replaced.layer).canonical


def _tied(source: keras.Layer, replaced: keras.Layer, transform: str | None) -> TiedDense:
    return TiedDense(
        source,
        transpose=transform == "transpose",
        use_bias=replaced.bias is not None,
        activation=replaced.activation,
        bias_initializer=replaced.bias_initializer,
        bias_regularizer=replaced.bias_regularizer,
        bias_constraint=replaced.bias_constraint,
        activity_regularizer=replaced.activity_regularizer,
        dtype=replaced.dtype_policy,
        trainable=replaced.trainable,
        name=replaced.name,
    )


def _place(weight: _Weight) -> int:
    return [id(variable) for variable in weight.layer.weights].index(id(weight.variable))


def differences(a: keras.Layer, b: keras.Layer, besides: tuple[str, ...] = ("name",)) -> list[str]:
    """Return the settings in which two layers of one class differ.

    Args:
        a: A layer.
        b: Another.
        besides: Settings that may differ.

    Example:
        >>> a, b = keras.layers.Dense(3, name="a"), keras.layers.Dense(4, name="b", use_bias=False)
        >>> differences(a, b)
        ['units', 'use_bias']
    """
    one, other = a.get_config(), b.get_config()
    return [key for key in one if key not in besides and one[key] != other.get(key)]


def _find_weight(graph: Graph, at: Any) -> _Weight:
    """Find a weight by the layer's address and its name, or as a variable.

    Args:
        graph: A model that was read.
        at: `layer/weight`, just `layer` for its kernel, its embeddings or its only weight, or a
            variable.

    Raises:
        TieError: There is no such weight, or several are meant.
    """
    found = _weights(graph)
    if isinstance(at, keras.Variable):
        for weight in found.values():
            if weight.variable is at:
                return weight
        raise TieError(f"Expected a weight of model {graph.model.name!r}. Received: {at!r}.")
    if at in found:
        return found[at]
    of_layer = [weight for name, weight in found.items() if name.rpartition("/")[0] == at]
    meant = [weight for weight in of_layer if weight.is_matrix] or of_layer
    if len(meant) == 1:
        return meant[0]
    choices = [weight.address for weight in meant] or found
    raise TieError(
        f"Expected the address of a weight of model {graph.model.name!r}. Received: {at!r}. "
        f"{nearest(str(at), choices)}"
    )


def _weights(graph: Graph) -> dict[str, _Weight]:
    found: dict[str, _Weight] = {}
    for call in graph.calls:
        layer = without_call_number(call.address)
        for variable in call.variables:
            address = f"{layer}/{variable.name}"
            found.setdefault(address, _Weight(address, _owner(call.operation, variable), variable))
    return found


def _owner(layer: keras.Layer, variable: keras.Variable) -> keras.Layer:
    if not isinstance(layer, TiedDense):
        return layer
    own = {id(each) for each in keras_internals.own_variables(layer)}
    return layer if id(variable) in own else layer.source
