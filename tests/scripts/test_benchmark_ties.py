"""The benchmark of ties compares what it says it does."""

import benchmark_ties
import pytest


@pytest.mark.parametrize("kind", benchmark_ties.KINDS)
def test_a_tie_is_one_array_with_the_two_slots_of_adam(kind):
    assert benchmark_ties.stored(kind) == (1, 2)


def test_both_models_are_timed_over_steps_with_equal_losses():
    # That each step's losses are equal is checked inside.
    seconds = benchmark_ties.step_seconds(64, 8, steps=2)
    assert list(seconds) == list(benchmark_ties.KINDS)
    assert min(seconds.values()) > 0
