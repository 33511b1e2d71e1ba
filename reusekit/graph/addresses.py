"""Addresses, and the tensors that they mean in a graph."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import keras
from pydantic import AfterValidator, Field

from reusekit.arguments import checked
from reusekit.errors import (
    AddressError,
    AmbiguousAddressError,
    ForeignTensorError,
    SurgeryError,
    UnknownAddressError,
    nearest,
)
from reusekit.graph import keras_internals
from reusekit.graph.graph import Graph, Tensor
from reusekit.graph.reader import read

At = Annotated[Any, Field(description="an address, a CutPoint, a Keras tensor, or a list of these")]
"""What a user writes for tensors of a model; `resolve` refuses all else, with the model at hand."""


def _kind(value: Any) -> Any:
    kinds = list(value) if isinstance(value, Sequence) else [value]
    classes = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, keras.Layer)]
    is_function = callable(value) and not isinstance(value, type | keras.Layer)
    if not kinds or (len(classes) < len(kinds) and not is_function):
        raise ValueError("no kind of layer")
    return value


Kind = Annotated[
    Any,
    AfterValidator(_kind),
    Field(description="a layer class, a list of these, or a function that says yes to a layer"),
]
"""Which layers are meant."""

_NEEDLESS = re.compile(r"[@:]0(?=[@:/]|$)")


def resolve(graph: Graph, at: At) -> list[Tensor]:
    """Return the tensors that `at` means, in its order, each once.

    Args:
        graph: A model that was read.
        at: An address, a Keras tensor, a `CutPoint`, or a list of them (nested structures are
            flattened).

    Returns:
        At least one tensor.

    Raises:
        AddressError: Nothing, several things, or something foreign is meant; the message names the
            candidates or the nearest addresses.

    Example:
        >>> from reusekit.graph import read
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(1, name="head")(x), name="m")
        >>> [tensor.address for tensor in resolve(read(model), ["head"])]
        ['head']
        >>> resolve(read(model), "haed")
        Traceback (most recent call last):
        reusekit.errors.UnknownAddressError: Expected an address in model 'm'. Received:
        'haed'. Did you mean 'head'?
    """
    leaves = keras.tree.flatten(at)
    if not leaves:
        raise AddressError(
            f"Expected at least one address in model {graph.model.name!r}. Received: {at!r}."
        )
    return list(dict.fromkeys(resolve_one(graph, leaf) for leaf in leaves))


def resolve_one(graph: Graph, leaf: Any) -> Tensor:
    """Return the tensor that one leaf of an `at` means. Errors as for `resolve`."""
    if isinstance(leaf, str):
        return _by_address(graph, leaf)
    if isinstance(leaf, keras.KerasTensor):
        return _by_keras_tensor(graph, leaf)
    if isinstance(leaf, Tensor):
        return leaf if leaf in graph.maker else _by_address(graph, leaf.address)
    address = getattr(leaf, "at", None)
    if isinstance(address, str):
        return _by_address(graph, address)
    raise AddressError(
        "Expected an address, a CutPoint or a Keras tensor. Received: "
        f"{type(leaf).__name__}: {leaf!r}"
    )


def _by_address(graph: Graph, address: str) -> Tensor:
    if address in graph.names:
        return graph.names[address]
    # `layer@0` and `layer:0` say in full what `layer` says where there is one call or output.
    plain = _NEEDLESS.sub("", address)
    candidates = graph.ambiguous.get(address) or graph.ambiguous.get(plain)
    if candidates:
        listed = ", ".join(repr(candidate) for candidate in candidates)
        raise AmbiguousAddressError(
            f"Expected the address of one tensor in model {graph.model.name!r}. Received: "
            f"{address!r}, which may mean {listed}."
        )
    if plain in graph.names:
        return graph.names[plain]
    raise UnknownAddressError(
        f"Expected an address in model {graph.model.name!r}. Received: {address!r}. "
        f"{nearest(address, graph.names)}"
    )


def _by_keras_tensor(graph: Graph, given: keras.KerasTensor) -> Tensor:
    found = graph.by_keras_tensor.get(id(given), ())
    if len(found) == 1:
        return found[0]
    if found:
        raise AmbiguousAddressError(
            f"Expected a tensor that model {graph.model.name!r} makes once. Received: one it makes "
            f"{len(found)} times: {', '.join(repr(tensor.address) for tensor in found)}."
        )
    raise ForeignTensorError(
        f"Expected a tensor of model {graph.model.name!r}. Received: a Keras tensor of shape "
        f"{given.shape} ({given.name!r}) that is not part of it.{_same_layer(graph, given)}"
    )


def _same_layer(graph: Graph, given: keras.KerasTensor) -> str:
    """Return a hint where the tensor is of a layer that the model calls too, on other tensors."""
    if not keras_internals.has_history(given):
        return ""
    layer = keras_internals.producer_key(given)[0]
    calls = [call.address for call in graph.calls if id(call.operation) == layer]
    return f" Name one of the calls of its layer: {', '.join(map(repr, calls))}." if calls else ""


def without_call_number(address: str) -> str:
    """Return a call's layer address, without the `@` and number of one of several calls.

    Example:
        >>> without_call_number("outer/layer@2"), without_call_number("layer")
        ('outer/layer', 'layer')
    """
    stem, _, number = address.rpartition("@")
    return stem if stem and number.isdecimal() else address


@checked(SurgeryError)
def find_layers(model: keras.Model | Graph, kind: Kind) -> tuple[str, ...]:
    """List the addresses of the layers of a kind, those inside nested models among them.

    Layers inside composite layers, such as the layer that `TimeDistributed` wraps, have no address;
    `reusekit.surgery.expand` opens some of them. Input layers and nested models are layers, too.

    Args:
        model: A model with a functional graph, or one that was read already.
        kind: A layer class, with its subclasses; a tuple of them; or a function that is given each
            layer and says whether it is meant.

    Returns:
        One address for each call, which `rk.edit` and others take, in topological order: a layer
        that is called twice is there twice, a nested model comes before what is in it.

    Raises:
        SurgeryError: `kind` is none of these.
        NoGraphError: The model has no functional graph.

    Example:
        >>> import reusekit as rk
        >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a"),
        ...                           keras.layers.ReLU(name="relu")], name="inner")
        >>> model = keras.Sequential([keras.Input((4,)), inner, keras.layers.ReLU(name="last")])
        >>> found = find_layers(model, keras.layers.ReLU)
        >>> found
        ('inner/relu', 'last')
        >>> edits = [rk.Replace(at, keras.layers.ELU(name=f"elu{i}"))
        ...          for i, at in enumerate(found)]
        >>> find_layers(rk.edit(model, *edits).model, lambda layer: layer.name.startswith("elu"))
        ('elu0', 'elu1')
    """
    kinds = tuple(kind) if isinstance(kind, Sequence) else kind
    is_meant = kinds if not isinstance(kinds, type | tuple) else lambda x: isinstance(x, kinds)
    steps = dict.fromkeys(step for call in read(model).calls for step in call.path)
    return tuple(
        step.address
        for step in steps
        if isinstance(step.operation, keras.Layer) and is_meant(step.operation)
    )
