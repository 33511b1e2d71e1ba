"""Randomness in a frozen bottom, so that nothing random is stored as constant."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import keras
import tensorflow as tf

from reusekit.errors import ConfigError
from reusekit.graph import Call, Graph, Tensor, ancestors, keras_internals, resolve
from reusekit.surgery import rates

# Parts of the names of TensorFlow's operations that draw random numbers.
_DRAWING = ("Random", "Multinomial", "TruncatedNormal", "StatefulUniform", "StatefulStandardNormal")

_known: WeakKeyDictionary[Graph, dict[tuple[Call, bool], bool]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Randomness:
    """The calls before a cut that draw random numbers, by address, in the order of the graph.

    A layer that holds layers of several kinds is named under each.

    Attributes:
        augmenting: Those that vary the data in training: `RandomFlip`, `RandAugment`, `MixUp`, and
            any layer that draws random numbers and is told no rate. In inference they do nothing.
        silenced: Those that drop values or add noise in training, and nothing in inference.
        always: Those that are random in inference as well.
        unseeded: Those of the augmenting and the always random ones that hold no generator, so
            that what they draw cannot be repeated.
    """

    augmenting: tuple[str, ...]
    silenced: tuple[str, ...]
    always: tuple[str, ...]
    unseeded: tuple[str, ...] = ()


def random_before(graph: Graph, at: Any) -> Randomness:
    """Return the randomness of all calls that the tensors at a cut depend on.

    Nested models are looked into, and so are layers that hold other layers (`Pipeline`,
    `Bidirectional`, a user's own). A call that was made with `training=False`, or that is part of a
    model called so, is not random; of a layer whose `call` says `training=False` itself, that
    cannot be known.

    A layer is known to be random by the `keras.random.SeedGenerator` that it holds, or by the rate
    of one of Keras's or KerasHub's layers (`rates`). A user's layer that has neither is traced, not
    run; one that cannot be traced is not found out.

    Example:
        >>> from reusekit.graph import read
        >>> x = keras.Input((8, 8, 3), name="x")
        >>> y = keras.layers.RandomFlip(name="flip")(x)
        >>> y = keras.layers.Dropout(0.5, name="drop")(y)
        >>> model = keras.Model(x, keras.layers.Flatten(name="flat")(y))
        >>> random_before(read(model), "flat")
        Randomness(augmenting=('flip',), silenced=('drop',), always=(), unseeded=())
    """
    calls = [call for call in ancestors(graph, resolve(graph, at)) if _may_be_random(call)]
    always = [call for call in calls if _draws_unseeded(graph, call, training=False)]
    unseeded = [call for call in calls if _draws_unseeded(graph, call, training=True)]
    varying = [call for call in unseeded if call not in always]
    return Randomness(
        augmenting=_addresses(c for c in calls if c in varying or _holds(c, is_augmenting)),
        silenced=_addresses(c for c in calls if _holds(c, rates.drops)),
        always=_addresses(c for c in calls if c in always or _holds(c, _is_always_random)),
        unseeded=_addresses(unseeded),
    )


def refuse_mixing(graph: Graph, at: Any) -> None:
    """Raise ConfigError for a `MixUp` or `CutMix` before a cut: it cannot mix the labels."""
    mixing = (keras.layers.MixUp, keras.layers.CutMix)
    for call in ancestors(graph, resolve(graph, at)):
        if not _may_be_random(call):
            continue
        parts = keras_internals.all_layers(call.operation)
        names = [type(layer).__name__ for layer in parts if isinstance(layer, mixing)]
        if names:
            kind = type(call.operation).__name__
            raise ConfigError(
                f"Expected augmentation that leaves labels as they are. Received: the layer "
                f"{call.address!r}, a {kind}, which in the graph of a model mixes pictures and not "
                f"their labels. Take it out, rk.remove(model, {call.address!r}), and have training "
                f"examples augmented with their labels: augment: [{', '.join(names)}] under data: "
                f"in a configuration, train.augmented({names}) in Python."
            )


def refuse_stateful(graph: Graph, at: Any) -> None:
    """Raise ConfigError for a stateful RNN before a cut: what it gives follows from its last batch.

    Example:
        >>> from reusekit.graph import read
        >>> x = keras.Input(batch_shape=(2, 3, 4))
        >>> graph = read(keras.Model(x, keras.layers.GRU(5, stateful=True, name="gru")(x)))
        >>> refuse_stateful(graph, "gru")
        Traceback (most recent call last):
        reusekit.errors.ConfigError: Expected layers that give the same for an example, whatever
        came before it. Received: the layer 'gru', which is stateful. Set its stateful to False, and
        take rk.clone(model).
    """
    for call in ancestors(graph, resolve(graph, at)):
        if not isinstance(call.operation, keras.Layer):
            continue
        parts = keras_internals.all_layers(call.operation)
        if any(isinstance(part, keras.layers.RNN) and part.stateful for part in parts):
            raise ConfigError(
                "Expected layers that give the same for an example, whatever came before it. "
                f"Received: the layer {call.address!r}, which is stateful. Set its stateful to "
                "False, and take rk.clone(model)."
            )


def is_augmenting(layer: keras.Layer) -> bool:
    """Return whether a layer itself, not a part of it, varies the data in training only."""
    return _draws(layer) and keras_internals.takes(layer, "training")


def _is_always_random(layer: keras.Layer) -> bool:
    return _draws(layer) and not keras_internals.takes(layer, "training")


def _draws(layer: keras.Layer) -> bool:
    """Return whether a layer holds a random generator, and is told no rate by which it drops."""
    return keras_internals.has_generator(layer) and not rates.rates(layer)


def _may_be_random(call: Call) -> bool:
    """Return whether a call may be random, by its record and the models around it."""
    if call.is_input or not isinstance(call.operation, keras.Layer):
        return False
    if any(scope.kwargs.get("training") is False for scope in call.scopes):
        return False
    # Keras records the default of the layer's `call` where the caller said nothing.
    training = inspect.signature(call.operation.call).parameters.get("training")
    said = training is not None and training.default is not False
    return not (said and call.kwargs.get("training") is False)


def _holds(call: Call, wanted: Callable[[keras.Layer], bool]) -> bool:
    """Return whether the layer that is called is, or holds, what is wanted."""
    return any(map(wanted, keras_internals.all_layers(call.operation)))


def _addresses(calls: Iterable[Call]) -> tuple[str, ...]:
    return tuple(call.address for call in calls)


def _draws_unseeded(graph: Graph, call: Call, training: bool) -> bool:
    """Return whether a user's layer draws random numbers, though nothing in it holds a generator.

    Such a layer calls `tf.random`, or `keras.random` without a seed.
    """
    known = _known.setdefault(graph, {})
    if (call, training) not in known:
        parts = keras_internals.all_layers(call.operation)
        # Keras's and KerasHub's layers draw from generators that they hold.
        held = (part for part in parts if keras_internals.has_generator(part))
        may_draw = all(map(rates.rates, held)) and not all(map(rates.is_stock, parts))
        known[call, training] = may_draw and _draws_when_traced(call, training)
    return known[call, training]


def _draws_when_traced(call: Call, training: bool) -> bool:
    def run(*values: tf.Tensor) -> Any:
        fed = dict(zip(call.inputs, values, strict=True))
        args, kwargs = keras.tree.map_structure(
            lambda leaf: fed[leaf] if isinstance(leaf, Tensor) else leaf, (call.args, call.kwargs)
        )
        if keras_internals.takes(call.operation, "training"):
            kwargs = {**kwargs, "training": training}
        return call.operation(*args, **kwargs)

    try:
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in call.inputs]
        with rates.at_zero(keras_internals.all_layers(call.operation)):
            traced = tf.function(run).get_concrete_function(*specs).graph.as_graph_def()
    except Exception:  # whatever a user's code raises
        return False
    nodes = [*traced.node, *(node for each in traced.library.function for node in each.node_def)]
    return any(name in node.op for node in nodes for name in _DRAWING)
