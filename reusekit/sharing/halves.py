"""The two halves of a model, joined again with the ties between them."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

import keras
import numpy as np

from reusekit.arguments import Name, checked
from reusekit.errors import TieError
from reusekit.graph import keras_internals
from reusekit.sharing import tied_source
from reusekit.sharing.tied_dense import TiedDense
from reusekit.sharing.ties import differences
from reusekit.surgery import prepend
from reusekit.surgery.copies import leaves, substitute


@checked(TieError)
def join(
    bottom: keras.Model,
    top: keras.Model,
    shared: Iterable[str] | None = None,
    keep: Literal["bottom", "top"] | None = None,
    name: Name | None = None,
) -> keras.Model:
    """Join a bottom and a top that were saved apart, so that a weight of both is one again.

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
    """Return the pairs of layers of bottom and top that are to be one."""
    alike = [(a, b) for a, b in _namesakes(_layers(bottom), _layers(top)) if _alike(a, b)]
    if shared is None:
        brought = {id(layer) for part in (bottom, top) for layer in _brought_along(part)}
        unsure = [(a, b) for a, b in alike if not brought & {id(a), id(b)} and _equal(a, b)]
        if unsure:
            names = ", ".join(repr(a.name) for a, _ in unsure)
            raise TieError(
                f"Expected shared= to say whether {names} of {bottom.name!r} and of {top.name!r}, "
                "which have equal weights, are one layer each. Received: None. Pass "
                f"shared={[f'{a.name}/{a.weights[0].name}' for a, _ in unsure]} to join them, "
                "shared=[] to keep two."
            )
        chosen = [pair for pair in alike if brought & {id(layer) for layer in pair}]
        _check_reachable(bottom, top, alike)
    else:
        wanted = list(shared)
        named = {path: [pair for pair in alike if _names(path, pair[1])] for path in wanted}
        lost = [path for path in wanted if not named[path]]
        if lost:
            raise TieError(
                f"Expected weights of layers that {bottom.name!r} and {top.name!r} both have, with "
                f"equal configurations. Received: {', '.join(map(repr, lost))}. Name layers of "
                f"both: {', '.join(repr(a.name) for a, _ in alike) or 'none'}."
            )
        chosen = [pair for pair in alike if any(pair in pairs for pairs in named.values())]
    counts = Counter(a.name for a, _ in chosen)
    several = [name for name, count in counts.items() if count > 1]
    if several:
        raise TieError(
            f"Expected one layer of each name in {bottom.name!r} and {top.name!r} to join. "
            f"Received: several that are called {', '.join(map(repr, several))}."
        )
    return chosen


def _names(path: str, layer: keras.Layer) -> bool:
    """Return whether a path, as `Split.shared` has it, means a weight of the layer."""
    return any(f"/{path}".endswith(f"/{layer.name}/{v.name}") for v in layer.weights)


def _namesakes(
    low: Iterable[keras.Layer], high: Iterable[keras.Layer]
) -> Iterator[tuple[keras.Layer, keras.Layer]]:
    """Return the pairs of layers, one of either part, that have the same name."""
    named = defaultdict(list)
    for layer in high:
        named[layer.name].append(layer)
    return ((a, b) for a in low for b in named[a.name] if a is not b)


def _layers(part: keras.Model) -> list[keras.Layer]:
    """Return the layers with weights that may be exchanged: a model's own and tied sources."""
    own = [layer for layer in leaves(part) if getattr(layer, "weights", None)]
    return [*_brought_along(part), *own]


def _brought_along(part: keras.Model) -> list[keras.Layer]:
    """Return the sources of tied layers that the part does not call itself."""
    own = leaves(part)
    called = {id(layer) for layer in own}
    sources = [layer.source for layer in own if isinstance(layer, TiedDense)]
    return list({id(each): each for each in sources if id(each) not in called}.values())


def _check_reachable(
    bottom: keras.Model, top: keras.Model, alike: list[tuple[keras.Layer, keras.Layer]]
) -> None:
    """Raise TieError where the ends of a parted tie cannot be joined, for whatever reason."""
    reached = {(id(a), id(b)) for a, b in alike}
    low, high = keras_internals.all_layers(bottom), keras_internals.all_layers(top)
    sources = {id(layer.source) for layer in (*low, *high) if isinstance(layer, TiedDense)}
    for a, b in _namesakes(low, high):
        parted = {id(a), id(b)} & sources and type(a) is type(b) and (id(a), id(b)) not in reached
        if not parted or tied_source.kernel_shape(a) != tied_source.kernel_shape(b):
            continue
        differing = _differences(a, b)
        differ = f"which differ in {', '.join(differing)}"
        why = differ if differing else "one of which another layer holds"
        raise TieError(
            f"Expected {a.name!r}, which a layer is tied to, to be the same layer in "
            f"{bottom.name!r} and in {top.name!r}. Received: two, {why}. Make them equal "
            "layers of the two, or join the parts before they are saved or cloned; shared=[] "
            "keeps two weights."
        )


def _alike(a: keras.Layer, b: keras.Layer) -> bool:
    shapes = [[tuple(v.shape) for v in layer.weights] for layer in (a, b)]
    return type(a) is type(b) and shapes[0] == shapes[1] and not _differences(a, b)


def _differences(a: keras.Layer, b: keras.Layer) -> list[str]:
    # Layers may be the same though one of them is frozen.
    return differences(a, b, besides=("name", "trainable"))


def _equal(a: keras.Layer, b: keras.Layer) -> bool:
    return all(map(np.array_equal, a.get_weights(), b.get_weights()))


def _check_equal(pairs: Iterable[tuple[keras.Layer, keras.Layer]]) -> None:
    differing = [a.name for a, b in pairs if not _equal(a, b)]
    if differing:
        raise TieError(
            f"Expected the weights of {', '.join(map(repr, differing))} to be equal in both parts. "
            "Received: others, since they were trained apart. Say which count with keep='bottom' "
            "or keep='top'."
        )


def _with_layers(part: keras.Model, exchanged: dict[int, keras.Layer]) -> keras.Model:
    """Return a part with some layers exchanged, also where other layers are tied to them."""
    new = {}
    for layer in leaves(part):
        if id(layer) in exchanged:
            new[layer] = exchanged[id(layer)]
        elif isinstance(layer, TiedDense) and id(layer.source) in exchanged:
            new[layer] = layer.tied_to(exchanged[id(layer.source)])
    return substitute(part, new) if new else part
