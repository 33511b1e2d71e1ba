"""The benchmark of scale, on few examples and trials, in this process."""

import benchmark_scale


def test_the_store_holds_what_was_planned_and_all_examples_are_read(tmp_path):
    found = benchmark_scale.measured_examples(600, tmp_path)
    assert found["stored_bytes"] == found["planned_bytes"] > 600 * benchmark_scale.FEATURES * 4
    assert min(found["features_peak_bytes"], found["search_peak_bytes"]) > 0


def test_a_peak_that_grows_is_told_by_its_name():
    rows = [{"a_peak_bytes": 100, "b_peak_bytes": 100, "s": 1}]
    rows += [{"a_peak_bytes": 109, "b_peak_bytes": 112, "s": 9}]
    assert benchmark_scale.grown(rows) == ["b_peak_bytes"]
    assert benchmark_scale.growth(rows)[1]["s"] == 9
