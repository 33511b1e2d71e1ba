"""A drawing of a model with its cut in it: what is frozen, what is trained, and what is new."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import keras
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter

from reusekit.arguments import checked
from reusekit.errors import TrainingError
from reusekit.graph import Call, CutPoint, Graph, cut_points, read
from reusekit.sharing import count_params

State = Literal["frozen", "trained", "new"]

_COLORS: dict[State, str] = {"frozen": "#a6cee3", "trained": "#fdbf6f", "new": "#b2df8a"}
_APART = 0.01  # the share of the FLOPs that two cuts lie apart, at least, to part two blocks


@dataclass(frozen=True)
class DrawnBlock:
    """A stretch between two clean cuts of a model, drawn as one.

    Attributes:
        name: The address of its last tensor.
        state: `new` behind the cut; before it `trained` where a weight is trainable, else `frozen`.
        shape: Shape of its last tensor, batch dimension first.
        parameters: Those of its weights that no earlier block has.
        flops: For one example.
    """

    name: str
    state: State
    shape: tuple[int | None, ...]
    parameters: int
    flops: int


def blocks(model: keras.Model, at: str, most: int = 24) -> list[DrawnBlock]:
    """Return the blocks of a model that was cut and got a new top, shallow to deep.

    Cuts that lie within one hundredth of the FLOPs of each other part nothing, as an activation
    from its convolution; where that leaves too many blocks, neighbours are drawn as one.

    Args:
        model: From input to predictions; its flags say what is trained.
        at: The address of the clean cut behind which everything is new: one block.
        most: At most that many blocks before the cut, unless more are needed to tell what is frozen
            from what is trained.

    Raises:
        AddressError: There is no clean cut of that address.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="reused"),
        ...                           keras.layers.Dense(2, name="head")])
        >>> model.get_layer("reused").trainable = False
        >>> [(block.name, block.state, block.parameters) for block in blocks(model, "reused")]
        [('reused', 'frozen', 72), ('head', 'new', 18)]
    """
    graph = read(model)
    points = cut_points(graph)
    cut = points[at]
    pieces = _pieces(graph, points[: list(points).index(cut) + 1])
    total = cut.flops_before + cut.flops_after
    apart = _APART * total
    while len(bottom := _merged(pieces, apart)) > most and apart < total:
        apart *= 2
    output = graph.outputs[0]
    parameters = count_params(model).total - cut.params_before
    return [*bottom, DrawnBlock(output.address, "new", output.shape, parameters, cut.flops_after)]


@checked(TrainingError)
def draw_cut(model: keras.Model, at: str, title: str) -> Figure:
    """Draw a model that was cut and got a new top: its blocks, and what lies in each.

    Args:
        model: From input to predictions; its flags say what is trained.
        at: The address of the clean cut behind which everything is new.
        title: The text above.

    Returns:
        A figure of its own, which belongs to no window: a row of blocks, coloured by what is
        frozen, trained and new, with the shape that leaves each; the cut as a line; and below each
        block its parameters and its FLOPs.

    Raises:
        AddressError: There is no clean cut of that address.
    """
    drawn = blocks(model, at)
    figure = Figure(figsize=(max(7, 2.5 + 0.5 * len(drawn)), 6.5), layout="constrained")
    chain, parameters, flops = figure.subplots(
        3, sharex=True, gridspec_kw={"height_ratios": (3, 2, 2)}
    )
    figure.suptitle(title, parse_math=False)
    figure.legend(
        handles=[
            Patch(facecolor=color, edgecolor="gray", label=_counted(state, drawn))
            for state, color in _COLORS.items()
            if any(block.state == state for block in drawn)
        ],
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        frameon=False,
    )
    _chain(chain, drawn)
    _bars(parameters, drawn, [block.parameters for block in drawn], "parameters")
    _bars(flops, drawn, [block.flops for block in drawn], "FLOPs")
    for axes in (chain, parameters, flops):
        axes.axvline(len(drawn) - 1.5, color="tab:red", linestyle="--", linewidth=1.5)
    flops.set_xticks(
        range(len(drawn)), [block.name for block in drawn], rotation=40, ha="right", fontsize=8,
        parse_math=False,
        rotation_mode="anchor",
    )  # fmt: skip
    return figure


def _pieces(graph: Graph, points: Iterable[CutPoint]) -> list[DrawnBlock]:
    """Return the stretches between clean cuts; weightless ones join the one before."""
    trainable = {id(variable) for variable in graph.model.trainable_variables}
    states = (_state([call], trainable) for call in graph.calls)
    state: State = next((known for known in states if known is not None), "frozen")
    pieces, call, parameters, flops = [], 0, 0, 0
    for point in points:
        end = graph.maker[graph.names[point.at]].index + 1
        state = _state(graph.calls[call:end], trainable) or state
        pieces.append(
            DrawnBlock(
                point.at,
                state,
                point.shape,
                point.params_before - parameters,
                point.flops_before - flops,
            )
        )
        call, parameters, flops = end, point.params_before, point.flops_before
    return pieces


def _state(calls: Iterable[Call], trainable: set[int]) -> State | None:
    """Return whether calls are frozen or trained; None where nothing tells.

    BatchNormalization does not: it stays frozen where its neighbours are trained.
    """
    used = {
        id(variable)
        for call in calls
        if not isinstance(call.operation, keras.layers.BatchNormalization)
        for variable in call.variables
    }
    if not used:
        return None
    return "trained" if used & trainable else "frozen"


def _merged(pieces: Iterable[DrawnBlock], apart: float) -> list[DrawnBlock]:
    """Merge neighbours of one state, until their cuts lie so many FLOPs apart."""
    merged: list[DrawnBlock] = []
    behind = 0  # FLOPs since the first cut at which the last block was large enough
    for piece in pieces:
        behind += piece.flops
        last = merged[-1] if merged else None
        small = last is not None and last.flops < apart
        if last is not None and last.state == piece.state and (small or behind < apart):
            parameters, flops = last.parameters + piece.parameters, last.flops + piece.flops
            merged[-1] = replace(piece, parameters=parameters, flops=flops)
        else:
            merged.append(piece)
            small = True
        behind = 0 if small else behind
    return merged


def _chain(axes: Axes, drawn: Sequence[DrawnBlock]) -> None:
    axes.set(xlim=(-0.6, len(drawn) - 0.4), ylim=(-0.1, 1.3), yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False)
    axes.plot([-0.6, len(drawn) - 1], [0.5, 0.5], color="gray", zorder=0)
    for x, block in enumerate(drawn):
        axes.add_patch(
            Rectangle((x - 0.36, 0), 0.72, 1, facecolor=_COLORS[block.state], edgecolor="gray")
        )
        shape = "x".join("?" if size is None else str(size) for size in block.shape[1:])
        axes.text(x, 0.5, shape, rotation=90, ha="center", va="center", fontsize=8)
    cut = drawn[-2].name
    axes.text(
        len(drawn) - 1.5, 1.3, f"cut: {cut} ", color="tab:red", ha="right", va="top", fontsize=9,
        parse_math=False,
    )  # fmt: skip


def _counted(state: State, drawn: Sequence[DrawnBlock]) -> str:
    total = sum(block.parameters for block in drawn if block.state == state)
    return f"{state}: {total:,} parameters"


def _bars(axes: Axes, drawn: Sequence[DrawnBlock], values: Sequence[int], label: str) -> None:
    axes.bar(
        range(len(drawn)), values, width=0.72, color=[_COLORS[block.state] for block in drawn],
        edgecolor="gray", linewidth=0.5,
    )  # fmt: skip
    axes.set_ylabel(label)
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.grid(axis="y", alpha=0.3)
