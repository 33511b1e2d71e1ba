"""Putting the two parts of a model together again, ties between them included."""

from collections.abc import Iterable
from typing import Literal

import keras
import numpy as np

from reusekit.errors import TieError
from reusekit.sharing.tied_dense import TiedDense
from reusekit.surgery import prepend
from reusekit.surgery.building import leaves
from reusekit.surgery.substitute import substitute


def join(
    bottom: keras.Model,
    top: keras.Model,
    shared: Iterable[str] | None = None,
    keep: Literal["bottom", "top"] | None = None,
    name: str | None = None,
) -> keras.Model:
    """Joins a bottom and a top that were saved apart, so that a weight of both is one again.

    A layer is in both parts where a cut parted its calls, or where a `TiedDense` in one part is
    tied to it. Loaded separately, each part has a layer of that name with weights of its own. The
    two become one if `shared` names one of their weights. Without `shared` this is done for
    the layers that a `TiedDense` brought along, and refused where other layers look like one.

    Args:
        bottom: From inputs to the frontier.
        top: From the frontier to outputs.
        shared: The weights that are to be one, as `Split.shared` lists them: paths that end in
            `layer/weight`. An empty list joins without sharing anything. None decides as above.
        keep: Whose values count where the parts were trained apart: those of the "bottom" or of
            the "top". None expects them to be equal.
        name: The name of the result; the top's by default.

    Returns:
        The whole model. Its weights are those of the parts, which are not changed; of a weight that
        both parts had, it is the one of the part that `keep` names, or else of the bottom.

    Raises:
        TieError: A name in `shared` means no layer of both parts, the values differ and `keep` does
            not say which count, or `shared` is needed.
        ShapeError: The bottom's outputs do not fit the top's inputs.

    Example:
        >>> from reusekit.sharing.layers import TiedDense
        >>> from reusekit.surgery import clone, split
        >>> tokens = keras.Input((7,), dtype="int32", name="tokens")
        >>> embedding = keras.layers.Embedding(50, 4, name="embedding")
        >>> hidden = keras.layers.Dense(4, name="hidden")(embedding(tokens))
        >>> model = keras.Model(tokens, TiedDense(embedding, name="logits")(hidden))
        >>> apart = [clone(part) for part in split(model, "hidden")]
        >>> sum(part.count_params() for part in apart), join(*apart).count_params()
        (470, 270)
    """
    if keep not in (None, "bottom", "top"):
        raise TieError(f"Expected keep None, 'bottom' or 'top', received {keep!r}.")
    pairs = _pairs(bottom, top, shared)
    if keep is None:
        _check_equal(pairs)
    if keep == "top":
        bottom = _with_layers(bottom, {id(low): high for low, high in pairs})
    else:
        top = _with_layers(top, {id(high): low for low, high in pairs})
    return prepend(top, bottom, name)


def _pairs(
    bottom: keras.Model, top: keras.Model, shared: Iterable[str] | None
) -> list[tuple[keras.Layer, keras.Layer]]:
    """Layers of the bottom and of the top that are to be one."""
    low, high = _layers(bottom), _layers(top)
    alike = [
        (low[name], high[name])
        for name in low
        if name in high and low[name] is not high[name] and _alike(low[name], high[name])
    ]
    if shared is None:
        brought = {id(layer) for part in (bottom, top) for layer in _brought_along(part)}
        unsure = [a.name for a, b in alike if not brought & {id(a), id(b)} and _equal(a, b)]
        if unsure:
            raise TieError(
                f"Expected shared= to say whether {', '.join(map(repr, unsure))} of {bottom.name!r}"
                f" and of {top.name!r}, which have equal weights, are one layer each: pass "
                f"shared={[f'{name}/{low[name].weights[0].name}' for name in unsure]} to join "
                "them, shared=[] to keep two."
            )
        return [pair for pair in alike if brought & {id(layer) for layer in pair}]
    wanted = list(shared)
    found = {}
    for a, b in alike:
        names = [path for path in wanted for v in b.weights if _names(path, b, v)]
        found |= dict.fromkeys(names, (a, b))
    lost = [path for path in wanted if path not in found]
    if lost:
        raise TieError(
            f"Expected weights of layers that {bottom.name!r} and {top.name!r} both have, with "
            f"equal configurations, received {', '.join(map(repr, lost))}. Layers of both: "
            f"{', '.join(repr(a.name) for a, _ in alike) or 'none'}."
        )
    return list({id(b): (a, b) for a, b in found.values()}.values())


def _names(path: str, layer: keras.Layer, variable: keras.Variable) -> bool:
    return f"/{path}".endswith(f"/{layer.name}/{variable.name}")


def _layers(part: keras.Model) -> dict[str, keras.Layer]:
    """The layers with weights that may be exchanged, by name: a model's own and tied sources."""
    own = [layer for layer in leaves(part) if getattr(layer, "weights", None)]
    return {layer.name: layer for layer in [*_brought_along(part), *own]}


def _brought_along(part: keras.Model) -> list[keras.Layer]:
    """The sources of tied layers that the part does not call itself."""
    own = leaves(part)
    called = {id(layer) for layer in own}
    sources = [layer.source for layer in own if isinstance(layer, TiedDense)]
    return [source for source in sources if id(source) not in called]


def _alike(a: keras.Layer, b: keras.Layer) -> bool:
    shapes = [[tuple(v.shape) for v in layer.weights] for layer in (a, b)]
    return type(a) is type(b) and shapes[0] == shapes[1] and a.get_config() == b.get_config()


def _equal(a: keras.Layer, b: keras.Layer) -> bool:
    return all(map(np.array_equal, a.get_weights(), b.get_weights()))


def _check_equal(pairs: Iterable[tuple[keras.Layer, keras.Layer]]) -> None:
    differing = [a.name for a, b in pairs if not _equal(a, b)]
    if differing:
        raise TieError(
            f"Expected the weights of {', '.join(map(repr, differing))} to be equal in both parts, "
            "but they were trained apart. Say which count with keep='bottom' or keep='top'."
        )


def _with_layers(part: keras.Model, exchanged: dict[int, keras.Layer]) -> keras.Model:
    """A part with other layers in the place of some, also of those that layers are tied to."""
    new = {}
    for layer in leaves(part):
        if id(layer) in exchanged:
            new[layer] = exchanged[id(layer)]
        elif isinstance(layer, TiedDense) and id(layer.source) in exchanged:
            new[layer] = layer.tied_to(exchanged[id(layer.source)])
    return substitute(part, new) if new else part
