"""Samples of the fault campaigns; `scripts/verify_faults.py` runs all of them."""

import shutil
from importlib import import_module

import numpy as np
import pytest
from faults.outcome import GOOD


@pytest.mark.parametrize(("campaign", "tries"), [("store", 25), ("state", 6), ("outbox", 8)])
def test_each_try_ends_well(campaign, tries, tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "empty.db")
    run = import_module(f"faults.{campaign}").run
    outcomes = list(run(np.random.default_rng(0), tries, tmp_path))
    assert len(outcomes) == tries
    assert [outcome for outcome in outcomes if outcome.end not in GOOD] == []
