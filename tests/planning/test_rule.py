"""The choice of features to store, worked out by hand for costs of round numbers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from reusekit.planning import Costs, Trials
from reusekit.planning.rule import TRAIN, VALIDATION, VIEWS, CutFacts, Decision, schedule

ROWS = {TRAIN: 80, VALIDATION: 20, VIEWS: 240}
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


def chain(*sizes, epochs=10, costs=COSTS, disk=PLENTY, memory=0, **changes):
    """Cuts of equal depth steps; bytes an example. Epochs are of all, or of each."""
    epochs = epochs if isinstance(epochs, tuple) else (epochs,) * len(sizes)
    cuts = [
        CutFacts(
            frontier=SimpleNamespace(pooling=None),
            trials=[Trials(str(depth), epochs=epochs[depth - 1])],
            calls=frozenset(range(depth)),
            flops=depth,
            top=0,
            randomness=SimpleNamespace(augmenting=()),
            kept={TRAIN, VALIDATION},
            missing={TRAIN, VALIDATION},
            example_bytes=size,
        )
        for depth, size in enumerate(sizes, start=1)
    ]
    for name, value in changes.items():
        setattr(cuts[-1], name, set(value))
    return Decision(cuts, ROWS, costs, [1] * len(sizes), 10**6, memory, disk)


def stored(decision):
    return {int(one.trials[0].at) for one in decision.stored}


def test_all_are_stored_where_all_fit():
    decision = chain(1, 1, 1)
    assert stored(decision) == {1, 2, 3}
    # 100 examples, a third of a second more for each cut; and then a hundredth for each reading.
    assert list(decision.making.values()) == pytest.approx([100 / 3] * 3, rel=1e-5)
    first, _, last = decision.cuts
    assert decision.seconds(first, stored=True) == pytest.approx(100 / 3 + 10 * 100 * 0.01)
    assert decision.seconds(last, stored=False) == pytest.approx(10 * 100 * 1.0)


def test_training_pays_for_augmentation_in_each_pass_or_for_each_view():
    costs = replace(COSTS, augment_seconds=0.5)
    decision = chain(1, costs=costs, kept={VALIDATION, VIEWS}, missing={VALIDATION, VIEWS})
    (only,) = decision.cuts
    assert decision.seconds(only, stored=False) == pytest.approx(10 * (80 * 1.5 + 20))
    assert decision.making[only] == pytest.approx(240 * 1.5 + 20)


def test_the_disk_goes_to_what_saves_most():
    assert stored(chain(1, 1, 1, disk=100)) == {3}
    assert stored(chain(1, 1, 1, disk=100, epochs=(50, 1, 2))) == {1}
    decision = chain(1, 1, 1, disk=250)
    assert stored(decision) == {2, 3}
    assert [str(one) for one in decision.crowded] == ["'1'"]


def test_two_small_ones_may_beat_a_large_one():
    # The middle one alone takes all the room that the other two take together.
    assert stored(chain(1, 2, 1, disk=200)) == {1, 3}


def test_what_is_slower_to_read_than_to_compute_is_not_stored():
    # 50 bytes take half a second, the call that computes them a third.
    decision = chain(50, 1, 1)
    assert stored(decision) == {2, 3}
    assert decision.crowded == []


def test_what_is_read_once_is_stored_only_on_the_way_to_others():
    assert stored(chain(1, epochs=1)) == set()
    # The first pays for the pass up to it; the others only for what they add.
    assert stored(chain(1, 1, 1, epochs=1)) == {2, 3}


def test_what_is_in_the_store_stays_and_takes_its_room():
    decision = chain(1, 1, 1, disk=200, missing=())
    assert stored(decision) == {2, 3}
    assert decision.making.keys() == {decision.cuts[1]}


def test_nothing_fits():
    decision = chain(2, 2, disk=100)
    assert stored(decision) == set()
    assert decision.running


def test_inputs_that_fit_are_read_once():
    slow = replace(COSTS, input_seconds=2.0, gather_bytes_per_second=1e6)
    decision = chain(1, costs=slow, memory=1e9)
    # A second to take an example from memory, and a second to compute it.
    assert decision.compute(decision.cuts[0]) == pytest.approx(2.0)
    assert chain(1, costs=slow).compute(decision.cuts[0]) == pytest.approx(3.0)


def test_augmented_training_examples_run_the_whole_bottom_each_time():
    decision = chain(1, 1, kept=(VALIDATION,), missing=(VALIDATION,))
    last = decision.cuts[1]
    assert stored(decision) == {1, 2}
    (group,) = decision.groups(last, True, PLENTY)
    assert group.feature_seconds == pytest.approx(10 * (80 * 1.0 + 20 * 0.01))
    assert decision.bytes(last) == 20
    assert decision.running


def test_views_cost_a_pass_each_and_are_read():
    decision = chain(1, 1, kept=(VALIDATION, VIEWS), missing=(VALIDATION, VIEWS))
    last = decision.cuts[1]
    assert stored(decision) == {1, 2}
    (group,) = decision.groups(last, True, PLENTY)
    assert group.feature_seconds == pytest.approx(10 * 100 * 0.01)
    # The first cut pays its half of the validation examples.
    assert decision.making[last] == pytest.approx(240 * 1 + 20 * 0.5, rel=1e-5)
    assert decision.bytes(last) == 260


STEPS = replace(COSTS, step_overhead=1.0, seconds_per_parameter=1.0)


def test_small_trials_are_trained_together_as_far_as_memory_holds_them():
    six = [Trials("x", count=6, epochs=1, parameters=1, batch_size=10)]
    each = 16 + 10
    free = schedule(six, 1, ROWS, 0.0, STEPS, memory=PLENTY)
    assert free.together == 6
    # 8 steps and 1 of validation, and 8 steps of one parameter, for each of six trials.
    assert free.seconds == pytest.approx(54 + 48)
    # On two cores three at a time, after half a second to build each.
    costs = replace(STEPS, cores=2, trial_seconds=0.5)
    assert schedule(six, 1, ROWS, 0.0, costs, PLENTY).seconds == pytest.approx(3 + 27 + 48)
    tight = schedule(six, 1, ROWS, 0.0, STEPS, memory=4 * each)
    assert (tight.together, tight.passes) == (3, 2)  # in two halves, rather than four and two
    assert tight.seconds == pytest.approx(54 + 48)
    assert "memory holds 4" in tight.reason
    assert schedule(six, 1, ROWS, 0.0, STEPS, memory=0).together == 1


def test_a_trial_that_trains_a_part_of_the_backbone_takes_its_traces():
    costs = replace(STEPS, trial_seconds=0.5, trace_seconds=3.0)
    heads, parts = (
        schedule([Trials("x", count=2, epochs=1, flops=flops)], 1, ROWS, 0.0, costs, PLENTY)
        for flops in (0, 1)
    )
    assert parts.seconds - heads.seconds == pytest.approx(2 * 2 * 3.0)


def test_large_trials_gain_nothing_from_being_trained_together():
    large = [Trials("x", count=6, epochs=1, parameters=1000, batch_size=10)]
    alone = schedule(large, 1, ROWS, 0.0, STEPS, memory=PLENTY)
    assert alone.together == 1
    assert "own work" in alone.reason
    # But their operations may be too small for all cores.
    two_cores = schedule(large, 1, ROWS, 0.0, replace(STEPS, cores=2), memory=PLENTY)
    assert two_cores.together == 3
    assert two_cores.seconds == pytest.approx(2 * 9 * 3 / 2 + 6 * 8 * 1000)
    # Where features are computed for every batch, they do.
    assert schedule(large, 1, ROWS, 80 * 100.0, STEPS, memory=PLENTY).together == 6
