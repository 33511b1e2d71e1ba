"""The simulated cluster: as fast as the plan says, and slower where workers fail."""

import pytest
import simulate_cluster
from simulate_cluster import simulate

from reusekit.features import Extraction
from reusekit.planning import Costs, Plan, PlannedGroup
from reusekit.planning.planned import workers_of
from reusekit.planning.workers import PlannedPass

PASS = PlannedPass(100_000, 64, reading=20.0, bottom=2000.0, writing=20.0, bytes=10**9)
GROUP = PlannedGroup("cut", "avg", 32, 256, 16, 1, 0.0, 16 * 20 + 256 * 5, "", 20.0)
PLAN = Plan((), (GROUP,), Extraction(), None, Costs(0.02), 1.0, None, (), PASS)


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_without_failures_it_takes_what_the_plan_says(workers):
    (*_, planned) = workers_of([PLAN], workers)
    found = simulate(PLAN, workers)
    assert found.seconds == pytest.approx(planned.seconds, rel=0.05)
    assert (found.failures, found.lost) == (0, 0)


def test_the_driver_bounds_it_however_many_workers_there_are():
    assert simulate(PLAN, 1000).seconds > PASS.reading + PASS.writing


def test_failures_cost_time_and_every_task_is_done():
    undisturbed, disturbed = simulate(PLAN, 8), simulate(PLAN, 8, failures=30)
    assert disturbed.failures > 5
    assert disturbed.lost > 0
    assert undisturbed.seconds < disturbed.seconds < 2 * undisturbed.seconds
    assert disturbed == simulate(PLAN, 8, failures=30)
    assert disturbed != simulate(PLAN, 8, failures=30, seed=1)


def test_a_plan_of_a_file_is_a_table_and_a_picture(tmp_path, capsys, monkeypatch):
    PLAN.save(tmp_path / "plan.json")
    picture = tmp_path / "cluster.png"
    told = ["simulate_cluster.py", str(tmp_path / "plan.json"), "--picture", str(picture)]
    monkeypatch.setattr("sys.argv", [*told, "--workers", "1", "2", "1000"])
    simulate_cluster.main()
    assert "1000" in capsys.readouterr().out
    assert picture.stat().st_size > 1000
