"""The benchmark of searches, on little: every workload ends, and both sides agree."""

import json
import logging

import benchmark_search
import pytest

FIELDS = ["workload", "plain_s", "reusekit_s", "ratio", "limit", "equal"]


@pytest.fixture(scope="module")
def lines():
    """The reports of all workloads, by name; what runs in other processes runs in this one."""

    done = {}

    def child(bench, part, *examples):
        if part not in done:  # once: what ten times the examples take is for the benchmark to say
            bench = benchmark_search.Bench(bench.quick, bench.full, bench.folder)
            fewer = (number if part == "text" else number // 5 for number in examples)
            found = benchmark_search.CHILDREN[part](bench, *fewer)
            done[part] = json.loads(json.dumps(found))
        return done[part]

    told = []
    logger = logging.getLogger("tensorflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "level", logger.level)  # the script sets it
        patch.setattr(benchmark_search, "child", child)
        patch.setattr(benchmark_search, "show", told.extend)
        patch.setattr("sys.argv", ["benchmark_search.py", "--workload", "all", "--quick"])
        benchmark_search.main()
    return {report.workload: json.loads(report.line()) for report in told}


def test_every_workload_ends_in_a_line_of_json(lines):
    assert lines.keys() == benchmark_search.RUN.keys()
    for line in lines.values():
        assert list(line)[: len(FIELDS)] == FIELDS
        assert line["ratio"] > 0
        assert line["equal"] is not False


def test_a_sample_of_the_plain_trials_is_run(lines):
    assert lines["frozen"]["examples_apart_at_most"] <= 1
    assert lines["frozen"]["plain_trials_run"] < lines["frozen"]["trials"]
    assert lines["again"]["bottom_passes"] == 0


def test_rows_are_compared_relative_to_the_second():
    assert benchmark_search.relative([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
