"""Which features to store, for costs of round numbers: the best set is worked out by hand."""

from dataclasses import replace
from itertools import combinations

import pytest

from reusekit.features import Costs, Trials
from reusekit.features.choice import INPUTS, TRAIN, VALIDATION, VIEWS, Candidate, Problem, choose
from reusekit.features.together import Work, schedule

BOTH = frozenset((TRAIN, VALIDATION))
ROWS = {TRAIN: 80, VALIDATION: 20, VIEWS: 0}
PLENTY = 1e12

# A second an example for the whole bottom, a hundred bytes a second, and steps that cost nothing.
COSTS = Costs(
    bottom_seconds=1.0,
    input_seconds=0.0,
    read_bytes_per_second=100.0,
    write_bytes_per_second=1e9,
    gather_bytes_per_second=1e9,
    step_overhead=0.0,
    seconds_per_parameter=0.0,
    seconds_per_flop=0.0,
)


def work(epochs=10, count=1, **values):
    return (Work((Trials("x", epochs=epochs, count=count, **values),), activations=1),)


def chain(*sizes, stored=(), works=None, inputs=10**6, **changes):
    """Cuts of equal depth steps, each computable from those before it; bytes an example."""
    candidates = [Candidate(frozenset(), inputs, frozenset(), frozenset())]
    for place, size in enumerate(sizes, start=1):
        candidates.append(
            Candidate(
                calls=frozenset(range(place)),
                example_bytes=size,
                kept=BOTH,
                missing=frozenset() if place in stored else BOTH,
                sources=frozenset(range(1, place)),
                works=work() if works is None else works[place - 1],
            )
        )
    problem = Problem(candidates, ROWS, [1] * len(sizes), COSTS, disk=PLENTY, memory=0)
    return replace(problem, **changes)


def test_all_are_stored_where_all_fit():
    problem = chain(1, 1, 1)
    assert choose(problem) == {1, 2, 3}
    uses = problem.uses(frozenset((1, 2, 3)))
    # 100 examples, a third of a second more for each cut; and then a hundredth for each reading.
    assert [use.make for use in uses[1:]] == pytest.approx([100 / 3] * 3, rel=1e-5)
    assert [use.train for use in uses[1:]] == pytest.approx([0.01] * 3)
    assert problem.total(frozenset((1, 2, 3))) == pytest.approx(100 + 3 * 10 * 100 * 0.01, rel=1e-5)


def test_the_disk_goes_to_what_saves_most():
    # Equal sizes, room for one. Stored: the deepest saves 3/3 a pass; the middle one saves 2/3 for
    # itself and 2/3 for the deepest, which starts from it: more.
    problem = chain(1, 1, 1, disk=100)
    assert choose(problem) == {2}
    use = problem.uses(frozenset((2,)))[3]
    assert (use.source, use.train) == (2, pytest.approx(0.01 + 1 / 3))


def test_the_disk_goes_to_what_is_read_most():
    works = [work(epochs=1), work(epochs=1), work(epochs=1, count=50)]
    problem = chain(1, 1, 1, disk=100, works=works, memory=0)
    assert choose(problem) == {3}


def test_two_small_ones_may_beat_a_large_one():
    # The middle one alone takes all the room that the other two take together.
    assert choose(chain(1, 2, 1, disk=200)) == {1, 3}


def test_what_is_slower_to_read_than_to_compute_is_not_stored():
    # 50 bytes take half a second, the call that computes them a third.
    assert choose(chain(50, 1, 1)) == {2, 3}


def test_nothing_fits():
    problem = chain(2, 2, disk=100)
    assert choose(problem) == frozenset()
    assert [use.source for use in problem.uses(frozenset())[1:]] == [INPUTS, INPUTS]


def test_a_deep_cut_is_derived_where_that_is_quicker():
    problem = chain(1, 1, 1, stored={1, 2})
    assert problem.derived(choose(problem)) == {3: (pytest.approx(0.01 + 1 / 3), 2)}
    # What takes a second to read is no help: the bottom takes one.
    slow = chain(90, 1, 1, stored={1})
    assert problem.derived(frozenset((1, 2))) == {}
    assert slow.derived(frozenset((1, 2, 3))) == {}


def test_the_second_is_derived_from_the_first_that_was():
    problem = chain(1, 1, 1, stored={1})
    found = problem.derived(frozenset((1, 2, 3)))
    assert {place: source for place, (_, source) in found.items()} == {2: 1, 3: 2}


def test_what_has_to_be_tapped_anyway_is_not_derived():
    problem = chain(1, 1, 1, stored={1})
    # The deepest cannot be computed from what is stored, so the pass goes all the way and passes
    # the other one on the way.
    *others, deepest = problem.candidates
    problem = replace(problem, candidates=[*others, replace(deepest, sources=frozenset())])
    assert problem.derived(frozenset((1, 2, 3))) == {}


def test_inputs_are_stored_where_they_are_slow_to_read():
    costs = replace(COSTS, input_seconds=2.0)
    problem = chain(10**3, inputs=10, costs=costs, disk=10**4)
    inputs = replace(problem.candidates[INPUTS], kept=BOTH, missing=BOTH)
    problem = replace(problem, candidates=[inputs, problem.candidates[1]])
    assert choose(problem) == {INPUTS}
    assert problem.uses(frozenset((INPUTS,)))[1].train == pytest.approx(0.1 + 1)
    assert choose(replace(problem, costs=COSTS, disk=10**6)) == frozenset()


def test_augmented_training_examples_run_the_whole_bottom_each_time():
    problem = chain(1, 1)
    augmented = replace(
        problem.candidates[2],
        augmented=True,
        kept=frozenset((VALIDATION,)),
        missing=frozenset((VALIDATION,)),
    )
    problem = replace(problem, candidates=[*problem.candidates[:2], augmented])
    use = problem.uses(choose(problem))[2]
    assert (use.train, use.validation) == (pytest.approx(1.0), pytest.approx(0.01))
    assert problem.bytes(2) == 20


def test_views_cost_a_pass_each_and_are_read():
    problem = chain(1, 1)
    kept = frozenset((VALIDATION, VIEWS))
    augmented = replace(problem.candidates[2], augmented=True, kept=kept, missing=kept)
    problem = replace(
        problem, candidates=[*problem.candidates[:2], augmented], rows={**ROWS, VIEWS: 240}
    )
    chosen = choose(problem)
    assert 2 in chosen
    use = problem.uses(chosen)[2]
    assert use.train == pytest.approx(0.01)
    assert use.make == pytest.approx(240 * 1 + 20 * 0.5, rel=1e-5)  # the first cut pays its half
    assert problem.bytes(2) == 260


def exhaustively(problem):
    places = range(1, len(problem.candidates))
    sets = [frozenset(s) for n in range(len(places) + 1) for s in combinations(places, n)]
    fitting = [s for s in sets if sum(map(problem.bytes, s)) <= problem.disk]
    return min(problem.total(s) for s in fitting)


@pytest.mark.parametrize("disk", [0, 150, 400, 1000, 3000, PLENTY])
def test_many_candidates_come_near_the_best_set(disk, monkeypatch):
    problem = chain(9, 3, 4, 1, 5, 2, 2, 1, 3, disk=disk)
    best = exhaustively(problem)
    assert problem.total(choose(problem)) == pytest.approx(best)
    monkeypatch.setattr("reusekit.features.choice.MOST_EXHAUSTIVE", 0)
    chosen = choose(problem)
    assert sum(map(problem.bytes, chosen)) <= disk
    assert problem.total(chosen) <= 1.15 * best


STEPS = replace(COSTS, step_overhead=1.0, seconds_per_parameter=1.0)


def test_small_trials_are_trained_together_as_far_as_memory_holds_them():
    (six,) = work(count=6, epochs=1, parameters=1, batch_size=10)
    each = 16 + 10
    assert six.bytes == each
    free = schedule(six, ROWS, 0.0, 0.0, STEPS, memory=PLENTY)
    assert free.together == 6
    # 8 steps and 2 of validation, started once; 8 steps of one parameter for each of six trials.
    assert free.training == pytest.approx(10 + 48)
    tight = schedule(six, ROWS, 0.0, 0.0, STEPS, memory=4 * each)
    assert (tight.together, tight.passes) == (3, 2)  # in two halves, rather than four and two
    assert tight.training == pytest.approx(20 + 48)
    assert "memory holds 4" in tight.reason
    assert schedule(six, ROWS, 0.0, 0.0, STEPS, memory=0).together == 1


def test_large_trials_gain_nothing_from_being_trained_together():
    (large,) = work(count=6, epochs=1, parameters=1000, batch_size=10)
    alone = schedule(large, ROWS, 0.0, 0.0, STEPS, memory=PLENTY)
    assert alone.together == 1
    assert "own work" in alone.reason
    # But their operations may be too small for all cores.
    two_cores = schedule(large, ROWS, 0.0, 0.0, replace(STEPS, cores=2), memory=PLENTY)
    assert two_cores.together == 3
    assert two_cores.training == pytest.approx(2 * 10 + 6 * 8 * 1000)
    # Where features are computed for every batch, they do.
    assert schedule(large, ROWS, 100.0, 0.0, STEPS, memory=PLENTY).together == 6
