"""A plan on workers: what it takes, what bounds it, and how it is kept."""

import json

import pytest

from reusekit.errors import ConfigError
from reusekit.features import Extraction
from reusekit.planning import Costs, Plan, PlannedGroup, Resources
from reusekit.planning.planned import JointPlan, workers_of
from reusekit.planning.workers import PlannedPass, TrialTasks, counts_up_to, makespan, on_workers

SLOW_BOTTOM = PlannedPass(10_000, 64, reading=5.0, bottom=500.0, writing=5.0, bytes=10**8)
SLOW_STORE = PlannedPass(10_000, 64, reading=5.0, bottom=20.0, writing=50.0, bytes=10**9)
TRIALS = TrialTasks(count=64, together=16, shared=2.0, own=1.0)


def group(count=64, together=16, shared=2.0, own=1.0):
    times = -(-count // together)
    seconds = times * shared + count * own
    return PlannedGroup("cut", "avg", 32, count, together, 1, 0.0, seconds, "", shared)


GROUPS = (group(),)


def plan(one_pass=SLOW_BOTTOM, **more):
    return Plan((), GROUPS, Extraction(), None, Costs(0.1), 1.0, None, (), one_pass, **more)


@pytest.mark.parametrize(
    ("passes", "trials", "workers", "bound"),
    [
        ([SLOW_BOTTOM], [], 2, "bottom"),
        ([SLOW_BOTTOM], [], 1000, "store"),
        ([SLOW_STORE], [], 2, "store"),
        ([], [TRIALS], 2, "trials"),
        ([], [TrialTasks(10_000, 1, 0.0, 0.001)], 2, "tasks"),
        ([], [TrialTasks(3, 1, 0.0, 9.0)], 64, "tasks"),
        ([SLOW_BOTTOM], [TRIALS], 1, "bottom"),
    ],
)
def test_what_bounds_it(passes, trials, workers, bound):
    assert on_workers(passes, trials, workers).bound == bound


def test_more_workers_are_faster_until_something_else_bounds_it():
    found = [on_workers([SLOW_BOTTOM], [TRIALS], count) for count in (1, 2, 4, 64, 4096)]
    seconds = [one.seconds for one in found]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] / seconds[1] == pytest.approx(2, rel=0.05)
    assert seconds[-1] > SLOW_BOTTOM.reading + SLOW_BOTTOM.writing
    assert found[-1].idle > 0.9 > 0.1 > found[0].idle


def test_trials_are_parted_so_that_each_worker_has_some():
    assert TRIALS.seconds(share=64) == [18.0] * 4
    assert TRIALS.seconds(share=8) == [10.0] * 8
    assert sum(TRIALS.seconds(share=7)) == 64 + 2 * 10
    assert group().tasks() == TRIALS


def test_tasks_go_to_the_first_that_is_free():
    assert makespan([1.0] * 5, 2) == 3
    assert makespan([], 3) == 0


def test_it_is_kept_and_printed(tmp_path):
    made = plan(workers=workers_of([plan()], 5))
    assert [one.workers for one in made.workers] == [1, 2, 4, 5] == list(counts_up_to(5))
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == made
    printed = str(made)
    assert "the bottom, which workers compute" in printed
    assert "Workers" not in str(plan())
    joint = JointPlan({"one": plan(), "two": plan()}, workers_of([plan(), plan()], 2))
    assert joint.workers[0].seconds == pytest.approx(2 * made.workers[0].seconds)
    assert "bound by" in str(joint)


def test_a_plan_of_before_is_read(tmp_path):
    plan().save(tmp_path / "plan.json")
    told = json.loads((tmp_path / "plan.json").read_text())
    del told["one_pass"], told["workers"], told["groups"][0]["shared"]
    (tmp_path / "plan.json").write_text(json.dumps(told))
    before = Plan.load(tmp_path / "plan.json")
    assert before.one_pass is None and before.workers == ()
    assert workers_of([before], 2)[1].seconds < workers_of([before], 1)[0].seconds


def test_no_worker_is_none_at_all():
    with pytest.raises(ConfigError, match="workers"):
        Resources(workers=0)
