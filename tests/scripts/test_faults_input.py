"""A sample of bad input: all of it is refused in a sentence, or does what it should."""

import numpy as np
from faults import bad_input, command_line
from faults.outcome import GOOD


def test_bad_arguments_end_well(tmp_path):
    # faults E: 121 foreign errors and 102 that were taken, of 797
    tries = bad_input.run(np.random.default_rng(5), 250, tmp_path)
    assert [outcome for outcome in tries if outcome.end not in GOOD] == []


def test_bad_command_lines_end_in_one_line_and_write_nothing(tmp_path):
    # faults E and pipeline F: files, sections, keys and values of every kind
    tries = command_line.run(np.random.default_rng(5), 50, tmp_path)
    assert [outcome for outcome in tries if outcome.end not in GOOD] == []
