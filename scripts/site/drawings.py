"""Drawings of cuts, frontiers, ties and plans, from real models, as SVG."""

import html
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

import keras
from keras import layers

import reusekit as rk
from reusekit.graph import Graph, read

_BOTTOM, _TOP, _TIED = "#a6cee3", "#fdbf6f", "#b2df8a"
_WIDE, _HIGH, _APART, _BELOW = 124, 34, 28, 26


def drawn() -> dict[str, str]:
    """Return each drawing by its name."""
    return {
        "clean_cut": cut_of(residual(), "sum"),
        "frontier": cut_of(residual(), "inner"),
        "tie": tie_of(language()),
        "plan": plan_of_digits(),
    }


def residual() -> keras.Model:
    """Return two convolutions with a branch around the second, and a head."""
    inputs = keras.Input((32, 32, 3), name="pixels")
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    inner = layers.Conv2D(8, 3, padding="same", name="inner")(x)
    outer = layers.Conv2D(8, 3, padding="same", name="outer")(inner)
    total = layers.Add(name="sum")([outer, x])
    return keras.Model(inputs, layers.Dense(10, name="classes")(layers.Flatten(name="flat")(total)))


def language() -> keras.Model:
    """Return a model whose last layer is its embedding, transposed."""
    tokens = keras.Input((16,), dtype="int32", name="tokens")
    embedding = layers.Embedding(1000, 32, name="embedding")
    hidden = layers.Dense(32, activation="gelu", name="hidden")(embedding(tokens))
    return keras.Model(tokens, rk.layers.TiedDense(embedding, name="logits")(hidden))


def cut_of(model: keras.Model, at: str) -> str:
    """Draw a model with its bottom, its top and the tensors that cross a cut."""
    frontier = rk.split(model, at).frontier
    bottom = {name for one in frontier for name in _before(read(model), one)}
    colors = defaultdict(lambda: _TOP, dict.fromkeys(bottom, _BOTTOM))
    return _chart(read(model), colors.__getitem__, frontier)


def tie_of(model: keras.Model) -> str:
    """Draw a model whose tied layers have one colour."""
    owners = {owner for tie in rk.tied_weights(model) for owner in tie.owners}
    return _chart(read(model), lambda name: _TIED if name in owners else _BOTTOM, tied=owners)


def plan_of_digits() -> str:
    """Draw the seconds that a plan gives for each cut, stored or computed in every pass."""
    shape = rk.data.Treatment(image_size=(32, 32))
    parts = [rk.data.load("sklearn_digits", part, treatment=shape) for part in ("train", "test")]
    with tempfile.TemporaryDirectory() as folder:
        store = rk.FeatureStore(f"{folder}/features")
        backbone = rk.load_backbone("reusekit/glyphnet")
        space = rk.SearchSpace(cuts=[f"block{number}_out" for number in range(1, 8)])
        search = rk.CutSearch(backbone, *parts, space, folder=f"{folder}/search", store=store)
        table = search.plan.to_frame()
    return _bars(
        [
            (one.at, one.if_computed, one.if_stored)
            for one in table.drop_duplicates("at").itertuples()
        ]
    )


def _before(graph: Graph, name: str) -> set[str]:
    """Return the names of a tensor and all that it is computed from."""
    above = _inputs(graph)
    found, left = set(), [name]
    while left:
        if (one := left.pop()) not in found:
            found.add(one)
            left += above[one]
    return found


def _inputs(graph: Graph) -> Mapping[str, list[str]]:
    """Return of each tensor those that its layer takes, in the order of the calls."""
    names: dict[str, list[str]] = {one.address: [] for one in graph.inputs}
    for call in graph.calls:
        for made in call.outputs:
            names[made.address] = [one.address for one in call.inputs]
    return names


def _chart(
    graph: Graph,
    color: Callable[[str], str],
    frontier: Collection[str] = (),
    tied: Collection[str] = (),
) -> str:
    """Draw tensors from left to right by depth; mark those that cross a cut, and join tied ones."""
    above = _inputs(graph)
    depth: dict[str, int] = {}
    for name, inputs in above.items():
        depth[name] = 1 + max((depth[one] for one in inputs), default=-1)
    width = _WIDE * (1 + max(depth.values())) + _APART * max(depth.values())
    at = {name: (deep * (_WIDE + _APART), _HIGH + _BELOW) for name, deep in depth.items()}
    parts = []
    for name, inputs in above.items():
        for one in inputs:
            crosses = one in frontier and color(name) != color(one)
            style = 'stroke="#d62728" stroke-width="2.5"' if crosses else 'stroke="#777"'
            (x, y), (to, _) = at[one], at[name]
            if depth[name] == depth[one] + 1:
                way = f"M{x + _WIDE} {y + _HIGH / 2} H{to - 4}"
            else:
                middle = x + _WIDE / 2
                way = f"M{middle} {y} V{y - _BELOW} H{to + _WIDE / 2} V{y - 4}"
            parts.append(f'<path d="{way}" fill="none" {style} marker-end="url(#tip)"/>')
    for name, (x, y) in at.items():
        edge = '"#d62728" stroke-width="2.5"' if name in frontier else '"#777"'
        parts.append(
            f'<rect x="{x}" y="{y}" width="{_WIDE}" height="{_HIGH}" rx="5" '
            f'fill="{color(name)}" stroke={edge}/>'
            + _text(x + _WIDE / 2, y + _HIGH / 2 + 5, name, "middle")
        )
    if tied:
        first, *_, last = sorted(at[name][0] + _WIDE / 2 for name in tied)
        y = _HIGH + _BELOW
        way = f"M{first} {y} V{y - _BELOW} H{last} V{y}"
        parts.append(
            f'<path d="{way}" fill="none" stroke="#2ca02c" stroke-dasharray="5 4"/>'
            + _text((first + last) / 2, y - _BELOW - 8, "one weight", "middle")
        )
    return _svg(width, 2 * _HIGH + _BELOW + 6, parts)


def _bars(rows: Collection[tuple[str, float, float]]) -> str:
    """Draw two bars a row: the seconds of computing in every pass, and of storing."""
    longest = max(max(row[1:]) for row in rows)
    parts, high = [], 40
    for number, (name, *seconds) in enumerate(rows):
        y = number * high
        parts.append(_text(110, y + 20, name, "end"))
        for line, (said, fill) in enumerate(zip(seconds, (_TOP, _BOTTOM), strict=True)):
            long = max(1.0, 420 * said / longest)
            top = y + 2 + 15 * line
            parts.append(f'<rect x="120" y="{top}" width="{long:.1f}" height="14" fill="{fill}"/>')
            parts.append(_text(124 + long, top + 11, f"{said:.3g} s", "start", 11))
    below = len(rows) * high + 18
    for x, fill, words in ((120, _TOP, "computed in every pass"), (300, _BOTTOM, "stored once")):
        parts.append(f'<rect x="{x}" y="{below - 11}" width="12" height="12" fill="{fill}"/>')
        parts.append(_text(x + 18, below, words, "start"))
    return _svg(620, below + 10, parts)


def _text(x: float, y: float, words: str, anchor: str, size: int = 13) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="#222" font-family="sans-serif">{html.escape(words)}</text>'
    )


def _svg(width: float, height: float, parts: Collection[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -6 {width + 24} {height + 12}" '
        f'width="{width + 24}" height="{height + 12}">'
        f'<rect x="-12" y="-6" width="{width + 24}" height="{height + 12}" fill="#fff" rx="8"/>'
        '<marker id="tip" viewBox="0 0 8 8" refX="5" refY="4" markerWidth="6" markerHeight="6" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#777"/></marker>'
        f"{''.join(parts)}</svg>\n"
    )
