"""A sample of the campaign against what describes registered models, and of addresses."""

import shutil

import numpy as np
from faults import security
from faults.outcome import GOOD


def test_a_sample_of_every_attack_ends_well(empty_database, tmp_path):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    outcomes = list(security.run(np.random.default_rng(1), 20, tmp_path))
    assert len(outcomes) == 20
    assert {outcome.case for outcome in outcomes} >= {"D1", "D2", "D3", "D4", "D5", "D6", "D7"}
    assert not [outcome for outcome in outcomes if outcome.end not in GOOD]
