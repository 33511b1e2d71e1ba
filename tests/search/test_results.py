"""The results of a search as tables; the front of what no other trial beats."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reusekit.errors import ConfigError
from reusekit.exports import Figures
from reusekit.search import SearchResult, Sizes, TrialRecord, TrialSpec
from reusekit.search.results import COSTS, ranked
from reusekit.training.fit import Fit

CUTS = ["shallow", "middle", "deep"]


def record(number, cut="deep", accuracy=0.5, loss=1.0, sizes=(10, 20, 40), status="completed"):
    history = {"val_accuracy": [0.0, accuracy], "val_loss": [9.0, loss], "loss": [8.0, 7.0]}
    done = status == "completed"
    return TrialRecord(
        number,
        TrialSpec(cut, cut, units=number),
        {"cut": cut, "units": number},
        status,
        Fit(history, 1, 0.5) if done else None,
        Sizes(*sizes),
        trained=3,
        error=None if done else "ValueError: bad",
    )


def result(records, **kwargs):
    depths = dict(zip(CUTS, (0.1, 0.5, 1.0), strict=True))
    return SearchResult(tuple(records), depths, **kwargs)


levels = st.integers(0, 3).map(lambda n: n / 4)
records = st.lists(
    st.tuples(
        st.sampled_from(CUTS),
        levels,
        levels,
        st.tuples(*[st.integers(1, 4)] * 3),
        st.sampled_from(["completed", "completed", "failed", "over the limit"]),
    ),
    max_size=8,
).map(lambda all_: [record(number, *values) for number, values in enumerate(all_)])
done = records.filter(lambda all_: any(one.status == "completed" for one in all_))


@given(done, st.sampled_from(COSTS), st.booleans())
def test_the_front_is_what_no_other_trial_beats(trials, cost, accuracy):
    objective = ("val_accuracy", True) if accuracy else ("val_loss", False)
    latencies = dict(zip(CUTS, (1.0, 2.0, 3.0), strict=True))
    files = {one.number: Figures(one.sizes.bytes, 1.0, one.sizes.flops, None) for one in trials}
    found = result(
        trials, latencies=latencies, objective=objective[0], maximize=objective[1], files=files
    )
    sign = 1 if accuracy else -1
    front = found.pareto(cost)
    points = [(row[cost], sign * row[objective[0]]) for _, row in front.iterrows()]
    # Dearer and better from row to row, so that none beats another.
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(points))
    frame = found.to_frame()
    for _, row in frame[frame["status"] == "completed"].iterrows():
        gain = sign * row[objective[0]]
        assert any(price <= row[cost] and best >= gain for price, best in points)
    assert set(front["trial"]) <= {one.number for one in found.completed}


@given(records)
def test_tables_hold_every_trial(trials):
    found = result(trials)
    frame = found.to_frame()
    assert list(frame.get("trial", [])) == [one.number for one in trials]
    for one, (_, row) in zip(trials, frame.iterrows(), strict=True):
        assert (row["cut"], row["status"], row["units"]) == (one.cut, one.status, one.number)
        assert row["depth"] == found.depths[one.cut]
        assert row["parameters"] == one.sizes.parameters
    cuts = found.cuts_frame()
    done = [one for one in trials if one.status == "completed"]
    assert list(cuts.get("cut", [])) == [cut for cut in CUTS if any(r.cut == cut for r in done)]
    assert sum(cuts.get("trials", [])) == len(done)
    for _, row in cuts.iterrows():
        assert row["validation_accuracy"] == max(r.accuracy for r in done if r.cut == row["cut"])


@given(records, st.booleans())
def test_the_best_comes_first_and_of_equals_that_with_the_lower_loss(trials, maximize):
    completed = [one for one in trials if one.status == "completed"]
    order = ranked(completed, "val_accuracy", maximize)
    keys = [((-1 if maximize else 1) * one.accuracy, one.loss) for one in order]
    assert keys == sorted(keys)
    assert sorted(one.number for one in order) == sorted(one.number for one in completed)


@given(records)
def test_records_come_back_from_json(trials):
    for one in trials:
        assert TrialRecord.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize("trials", [[], [record(0, status="failed")]])
def test_without_a_completed_trial_there_is_no_best_and_no_front(trials):
    found = result(trials)
    assert found.cuts == ()
    with pytest.raises(ConfigError, match="so none is the best"):
        _ = found.best
    with pytest.raises(ConfigError, match="no front"):
        found.pareto()


def test_an_unknown_cost_and_latency_that_was_not_measured():
    found = result([record(0)])
    with pytest.raises(ConfigError, match="Did you mean 'parameters'"):
        found.pareto("parameter")
    with pytest.raises(ConfigError, match="not measured"):
        found.pareto("latency")
    with pytest.raises(ConfigError, match=r"Expected SearchConfig\(ship=...\)"):
        found.pareto("shipped_bytes")


@given(*[st.tuples(*[st.integers(0, 100)] * 3).map(lambda n: Sizes(*n))] * 3)
def test_sizes_add_up(one, other, third):
    assert one + other == other + one
    assert (one + other) + third == one + (other + third)
    assert one + other - other == one
