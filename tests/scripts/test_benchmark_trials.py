"""Long searches: a trial costs the driver the same however many there are, and a kill loses few."""

from pathlib import Path

import benchmark_trials
import pytest

from reusekit.search import CutTuner

TRIALS = 260


class Killed(BaseException):
    """Ends a search as a kill would: nothing in the search catches it."""


def searched(folder, name, report=lambda record: None):
    own = benchmark_trials.hypermodel(TRIALS)
    with benchmark_trials.untrained():
        tuner = CutTuner(own, benchmark_trials.ORACLES[name](TRIALS), folder)
        tuner.search(report)
    return tuner


@pytest.mark.parametrize("name", ["random", "grid"])
def test_a_long_search_killed_goes_on_to_the_same_end(name, tmp_path):
    whole = searched(tmp_path / "whole", name)
    before, after = [], []

    def report(record):
        before.append(record.number)
        if len(before) == 230:
            raise Killed

    with pytest.raises(Killed):
        searched(tmp_path / "killed", name, report)
    again = searched(tmp_path / "killed", name, lambda record: after.append(record.number))
    assert again.records == whole.records
    assert [one.keeps(whole.records[0].number) for one in (again, whole)] == [False] * 2
    best = min(whole.records, key=lambda one: (-one.accuracy, one.number)).number
    assert [one.keeps(best) for one in (again, whole)] == [True] * 2
    # None is run twice but those of the group that died, and 1 % of those before it.
    assert 0 < len({*before} & {*after}) <= 64 + 3


def test_what_is_written_grows_with_the_trials_and_not_with_their_square(tmp_path, monkeypatch):
    written, replace = [], Path.replace

    def watched(file, target):
        if Path(target).name == "state.json":
            written.append(file.stat().st_size)
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", watched)
    one_at_a_time = benchmark_trials.hypermodel(TRIALS)
    one_at_a_time.config = one_at_a_time.config.changed(ask=1)
    with benchmark_trials.untrained():
        CutTuner(one_at_a_time, benchmark_trials.ORACLES["random"](TRIALS), tmp_path).search()
    assert len(written) < 100 + 110  # after each of the first 100, then at 1 % more
    assert written[-1] == max(written)
    assert not list(tmp_path.rglob("trial.json"))


def test_the_sweep_learns_from_so_many_trials_at_most(monkeypatch):
    learned = []
    oracle = benchmark_trials.ORACLES["sweep"](TRIALS)
    vectorize = type(oracle)._vectorize_trials

    def watched(self):
        x, y = vectorize(self)
        learned.append(len(x))
        return x, y

    monkeypatch.setattr(type(oracle), "_vectorize_trials", watched)
    monkeypatch.setattr("reusekit.search.oracle._LEARNED", 8)
    seconds = benchmark_trials.seconds("sweep", 40)
    assert len(seconds) == 10
    assert 8 < max(learned) <= 8 + 32  # and those that are on the way
    assert len(learned) <= 8 + 40 / 8
