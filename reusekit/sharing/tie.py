"""Making two weights of a model one."""

from typing import Any, Literal, NamedTuple

import keras

from reusekit.arguments import checked
from reusekit.errors import TieError
from reusekit.graph import keras_internals, read
from reusekit.sharing import tied_source
from reusekit.sharing.settings import differences
from reusekit.sharing.tied_dense import TiedDense
from reusekit.sharing.weight_addresses import Weight, find_weight
from reusekit.surgery import clone
from reusekit.surgery.building import leaves
from reusekit.surgery.certificate import prove_copy
from reusekit.surgery.substitute import substitute


class _Plan(NamedTuple):
    """The layer that keeps its weight, and the one that gives its own up."""

    source: Weight
    replaced: Weight
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
        keep: Which value the shared weight begins with: that of "a" or that of "b".

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
    first, second = find_weight(graph, a), find_weight(graph, b)
    _check(first, second, transform)
    plan = _plan(first, second, transform)
    _check_owners(model, plan.replaced)

    twin = clone(model)
    layers = (keras_internals.all_layers(each) for each in (model, twin))
    copies = {id(old): new for old, new in zip(*layers, strict=True)}
    source, replaced = (copies[id(weight.layer)] for weight in (plan.source, plan.replaced))
    replacement = source if plan.merged else _tied(source, replaced, transform)
    exchanged = {
        layer: layer.tied_to(source, turned=transform == "transpose")
        for layer in leaves(twin)
        if _is_tied_to(layer, replaced)
    }
    tied = substitute(twin, {replaced: replacement, **exchanged})
    if not plan.merged and replaced.bias is not None:
        replacement.bias.assign(replaced.bias)  # type: ignore[union-attr]
    kept, other = (first, second) if keep == "a" else (second, first)
    value = keras.ops.copy(kept.variable.value)
    turned = keras.ops.reshape(value, kept.shape)
    turned = keras.ops.transpose(turned) if transform else turned
    turned = keras.ops.reshape(turned, other.variable.shape)
    target = source.weights[_place(plan.source)]
    target.assign(value if kept is plan.source else turned)
    both = [(kept.variable, value), (other.variable, turned)]
    prove_copy(model, tied, source_state=both)
    return tied


def _check(first: Weight, second: Weight, transform: str | None) -> None:
    if first.variable is second.variable:
        raise TieError(f"Expected two weights, received one: {first.address!r} is tied already.")
    for weight in (first, second):
        layer = weight.layer
        if layer.quantization_mode or getattr(layer, "lora_enabled", False):
            raise TieError(
                f"Expected layers in floating point and without LoRA, received {layer.name!r}. "
                "Tie first, then quantise or enable LoRA."
            )
    one, other = first.shape, second.shape
    if one != (other[::-1] if transform else other):
        turned = one == (other if transform else other[::-1])
        hint = f" They would with transform={None if transform else 'transpose'!r}."
        raise TieError(
            f"Expected weights whose shapes agree{' once transposed' if transform else ''}, "
            f"received {first.address!r} {one} and {second.address!r} {other}."
            f"{hint if turned else ''}"
        )


def _plan(a: Weight, b: Weight, transform: str | None) -> _Plan:
    for source, replaced in ((a, b), (b, a)):
        if _can_replace(source, replaced, transform):
            return _Plan(source, replaced, merged=False)
    hint = ""
    if transform is None and len(a.layer.weights) == 1 and type(a.layer) is type(b.layer):
        differing = differences(a.layer, b.layer)
        if not differing:
            return _Plan(a, b, merged=True)
        hint = f" The two differ in {', '.join(differing)}."
    raise TieError(
        "Expected a Dense, an EinsumDense or a convolution of size and stride 1 together with "
        "another layer that multiplies with a matrix over the same axes, or two layers of equal "
        f"configuration with one weight each; received {a.address!r} of {type(a.layer).__name__} "
        f"and {b.address!r} of {type(b.layer).__name__}.{hint}"
    )


def _check_owners(model: keras.Model, replaced: Weight) -> None:
    """Raise TieError where a layer would keep the weight that is given up."""
    for layer in leaves(model):
        if not isinstance(layer, keras.Layer) or _is_tied_to(layer, replaced.layer):
            continue
        if replaced.layer in keras_internals.all_layers(layer)[1:]:
            raise TieError(
                f"Expected to give up a weight that no other layer holds, received "
                f"{replaced.address!r}, which {layer.name!r} of {type(layer).__name__} would keep. "
                "Name it as a, so that its layer stays."
            )


def _is_tied_to(layer: Any, source: keras.Layer) -> bool:
    return isinstance(layer, TiedDense) and layer.source is source


def _can_replace(source: Weight, replaced: Weight, transform: str | None) -> bool:
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


def _place(weight: Weight) -> int:
    return [id(variable) for variable in weight.layer.weights].index(id(weight.variable))
