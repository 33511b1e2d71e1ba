"""The picture of a search: how good each cut is, over how deep it lies."""

from matplotlib.figure import Figure

from reusekit.search.results import SearchResult


def accuracy_over_depth(result: SearchResult, title: str) -> Figure:
    """Draw validation accuracy over cut depth: every trial a dot, the best of each cut a line.

    Args:
        result: A finished search.
        title: What was searched, such as `glyphnet on sklearn_digits`.

    Returns:
        A figure of its own, which belongs to no window.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    depths = [cut.depth for cut in result.cuts]
    for cut in result.cuts:
        accuracies = [trial.accuracy for trial in cut.trials]
        axes.scatter([cut.depth] * len(accuracies), accuracies, s=18, color="tab:blue", alpha=0.4)
    best = [cut.best.accuracy for cut in result.cuts]
    axes.plot(depths, best, marker="o", color="tab:blue", label="best trial of each cut")

    winner = result.best
    at = next(cut for cut in result.cuts if cut.at == winner.cut)
    axes.scatter([at.depth], [winner.accuracy], s=160, facecolors="none", edgecolors="tab:red",
                 linewidths=2, label=f"winner: {winner.cut}", zorder=3)  # fmt: skip

    axes.set_xticks(depths, [cut.at for cut in result.cuts], rotation=40, ha="right", fontsize=8)
    axes.set_xlabel("cut, placed by its share of the backbone's FLOPs")
    axes.set_ylabel("validation accuracy")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure
