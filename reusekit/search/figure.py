"""Pictures of a search: the objective of each cut over its depth and over its costs."""

from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from reusekit.search.results import CutResult, SearchResult
from reusekit.tasks.classes import accuracy_interval

# Of each cost its axis: what it says, and how numbers are written there.
_COSTS = {
    "parameters": ("parameters of the whole model", EngFormatter()),
    "flops": ("FLOPs of one example", EngFormatter()),
    "bytes": ("weights of the whole model", EngFormatter("B")),
    "latency": ("time of the backbone up to the cut, one example alone", EngFormatter("s")),
    "shipped_bytes": ("bytes of the file", EngFormatter("B")),
    "shipped_latency": ("time of the file for one example, on one thread", EngFormatter("s")),
}

_MARKS = "o^sDvPX*"


def objective_over_depth(result: SearchResult, title: str, examples: int | None = None) -> Figure:
    """Draw the objective over cut depth: all trials, the best of each cut, and the spread.

    Args:
        result: A finished search.
        title: The search, such as `glyphnet on sklearn_digits`.
        examples: On how many examples trials were compared; None draws no intervals.

    Returns:
        A figure of its own, which belongs to no window. Every trial is a dot, the best trials are
        joined by a line, and the band reaches from the worst to the best trial of each cut. Bars
        show between which accuracies the best lie, as sure as 95 %, by the number of examples.
        Several backbones have a line each.
    """
    figure, axes = _empty(result, title)
    several: dict[str | None, list[CutResult]] = {}
    for cut in result.cuts:
        several.setdefault(cut.backbone, []).append(cut)
    for number, (name, cuts) in enumerate(several.items()):
        color = f"C{number}"
        depths = [cut.depth for cut in cuts]
        reached = [[trial.metrics[result.objective] for trial in cut.trials] for cut in cuts]
        best, worst = [values[0] for values in reached], [values[-1] for values in reached]
        band = None if number else "worst to best trial"
        axes.fill_between(depths, worst, best, color=color, alpha=0.15, label=band)
        for depth, values in zip(depths, reached, strict=True):
            axes.scatter([depth] * len(values), values, s=18, color=color, alpha=0.5)
        line = "best trial of each cut" if name is None else name
        axes.plot(depths, best, marker="o", color=color, label=line)
        if examples and "accuracy" in result.objective:
            lows, highs = zip(*(accuracy_interval(value, examples) for value in best), strict=True)
            bars = "" if number else f"95 % interval, n = {examples:,}"
            axes.vlines(depths, lows, highs, color=color, linewidth=1, label=bars)
    _ring(axes, result, result.depths[result.best.named_cut])
    if None in several:
        axes.set_xticks(depths, [cut.at for cut in cuts], rotation=40, ha="right", fontsize=8)
    else:
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("cut, placed by its share of the backbone's FLOPs")
    _legend(axes)
    return figure


def objective_over_cost(result: SearchResult, cost: str, title: str) -> Figure:
    """Draw the objective over what a model costs, with the Pareto front.

    Args:
        result: A finished search.
        cost: A cost, as `SearchResult.pareto` has it.
        title: The search.

    Returns:
        A figure of its own. Every trial is a dot, the darker the deeper it cuts, of several
        backbones each with marks of its own; those that no other beats in both are joined by a line
        and named by their cuts.

    Raises:
        ConfigError: Another cost, or latency where that was not measured.
    """
    front = result.pareto(cost)
    figure, axes = _empty(result, title)
    names = dict.fromkeys(trial.spec.backbone for trial in result.completed)
    for name, mark in zip(names, cycle(_MARKS), strict=False):
        trials = [trial for trial in result.completed if trial.spec.backbone == name]
        dots = axes.scatter(
            [result.cost(trial, cost) for trial in trials],
            [trial.metrics[result.objective] for trial in trials],
            c=[result.depths[trial.named_cut] for trial in trials],
            cmap="viridis_r", vmin=0, vmax=1, s=30, zorder=2, marker=mark, label=name,
        )  # fmt: skip
    figure.colorbar(dots, label="share of the backbone's FLOPs before the cut")
    axes.plot(
        front[cost], front[result.objective], drawstyle="steps-post", color="tab:red",
        linewidth=1.2, label="Pareto front", zorder=1,
    )  # fmt: skip
    # To the left and the better side, where no trial lies: it would beat the front.
    side, edge = (1, "bottom") if result.maximize else (-1, "top")
    by_number = {trial.number: trial for trial in result.trials}
    trials = [by_number[number] for number in front["trial"]]
    for trial, x, y in zip(trials, front[cost], front[result.objective], strict=True):
        axes.annotate(
            trial.label, (x, y), (-2, 5 * side), textcoords="offset points", fontsize=8,
            rotation=-40 * side, rotation_mode="anchor", ha="right", va=edge,
            parse_math=False,
        )  # fmt: skip
    _ring(axes, result, result.cost(result.best, cost))
    label, numbers = _COSTS[cost]
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(numbers)
    axes.margins(x=0.12, y=0.25)  # for the names
    _legend(axes)
    return figure


def _empty(result: SearchResult, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, parse_math=False, pad=24)  # above the legend
    axes.set_ylabel(result.objective.replace("val_", "validation "))
    axes.grid(alpha=0.3)
    return figure, axes


def _legend(axes: Axes) -> None:
    """Explain the marks beside the axes, where no point lies."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8, frameon=False)


def _ring(axes: Axes, result: SearchResult, x: float) -> None:
    """Mark the winner."""
    winner = result.best
    axes.scatter(
        [x], [winner.metrics[result.objective]], s=160, facecolors="none", edgecolors="tab:red",
        linewidths=2, label=f"winner: {winner.label}", zorder=3,
    )  # fmt: skip
