"""Pictures of a search show its trials, its best cut and its Pareto front."""

import numpy as np
import pytest

import reusekit as rk
from reusekit.search import SearchResult, Sizes, TrialRecord, TrialSpec
from reusekit.search.figure import objective_over_cost, objective_over_depth
from reusekit.training.fit import Fit

DEPTHS = {"shallow": 0.1, "middle": 0.5, "deep": 1.0}
PARAMETERS = {"shallow": 100, "middle": 200, "deep": 300}


def record(number: int, cut: str, accuracy: float) -> TrialRecord:
    fit = Fit({"val_accuracy": [accuracy], "val_loss": [1 - accuracy]}, 0, 1.0)
    sizes = Sizes(PARAMETERS[cut], 0, 0)
    return TrialRecord(number, TrialSpec(cut, cut), {}, "completed", fit, sizes)


@pytest.fixture
def result() -> SearchResult:
    reached = [("shallow", 0.5), ("middle", 0.9), ("deep", 0.8), ("middle", 0.7)]
    trials = [record(number, *one) for number, one in enumerate(reached)]
    failed = TrialRecord(4, TrialSpec("deep", "deep"), {}, "failed", error="no memory")
    latencies = {"shallow": 0.001, "middle": 0.003, "deep": 0.002}
    return SearchResult((*trials, failed), DEPTHS, latencies)


def dots(axes) -> set[tuple[float, float]]:
    return {tuple(np.round(xy, 6)) for one in axes.collections for xy in one.get_offsets()}


def line(axes) -> tuple[list[float], list[float]]:
    (found,) = axes.lines
    return list(found.get_xdata()), list(found.get_ydata())


def test_accuracy_over_depth_shows_every_trial_the_best_and_the_spread(result):
    figure = objective_over_depth(result, "three cuts")
    (axes,) = figure.axes
    assert line(axes) == ([0.1, 0.5, 1.0], [0.5, 0.9, 0.8])
    assert {(0.1, 0.5), (0.5, 0.9), (0.5, 0.7), (1.0, 0.8)} <= dots(axes)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(DEPTHS)
    (band,) = (path for one in axes.collections for path in one.get_paths() if len(path) > 6
               and one.get_label() == "worst to best trial")  # fmt: skip
    assert {(0.5, 0.7), (0.5, 0.9)} <= {tuple(point) for point in band.vertices}
    assert axes.get_title() == "three cuts"
    assert "winner: middle" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_few_examples_show_wide_intervals(result):  # pipeline, Looks
    (axes,) = objective_over_depth(result, "three cuts", examples=12).axes
    (bars,) = (one for one in axes.collections if "n = 12" in one.get_label())
    low, high = bars.get_segments()[1][:, 1]  # of 11 in 12 right
    assert (low, high) == pytest.approx((0.646, 0.985), abs=0.001)
    by_loss = SearchResult(result.trials, DEPTHS, objective="val_loss", maximize=False)
    (axes,) = objective_over_depth(by_loss, "three cuts", examples=12).axes
    assert not any("n = 12" in one.get_label() for one in axes.collections)


@pytest.mark.parametrize(
    ("cost", "front"),
    [
        ("parameters", {"shallow": (100, 0.5), "middle": (200, 0.9)}),
        ("latency", {"shallow": (0.001, 0.5), "deep": (0.002, 0.8), "middle": (0.003, 0.9)}),
    ],
)
def test_accuracy_over_cost_shows_every_trial_and_the_front(result, cost, front):
    axes, _ = objective_over_cost(result, cost, "three cuts").axes
    expected = list(front.values())
    assert line(axes) == ([x for x, _ in expected], [y for _, y in expected])
    assert [text.get_text() for text in axes.texts] == list(front)
    assert len(dots(axes)) == 4
    assert set(expected) <= dots(axes)


def test_where_less_is_better_the_front_falls(result):
    by_loss = SearchResult(result.trials, DEPTHS, objective="val_loss", maximize=False)
    axes, _ = objective_over_cost(by_loss, "parameters", "three cuts").axes
    np.testing.assert_allclose(line(axes), ([100, 200], [0.5, 0.1]))
    assert axes.get_ylabel() == "validation loss"


def test_an_unknown_cost_is_refused_and_one_that_was_not_measured(result):
    with pytest.raises(rk.ConfigError, match="'parameters'"):
        objective_over_cost(result, "parameter", "")
    unmeasured = SearchResult(result.trials, DEPTHS)
    with pytest.raises(rk.ConfigError, match="not measured"):
        objective_over_cost(unmeasured, "latency", "")


def test_a_figure_is_a_picture(result, tmp_path):
    objective_over_cost(result, "latency", "three cuts").savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
