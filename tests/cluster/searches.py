"""A search here and on workers, and what is compared of the two."""

from dataclasses import replace
from typing import Any

import numpy as np
from search.killed_search import search

from reusekit.features import FeatureStore
from reusekit.search import CutSearch


def searched(folder, cluster=None, heads=None, oracle=None, **changed) -> CutSearch:
    """Return a finished search."""
    one: Any = search(folder, **changed)
    space = one._all_cuts.changed(heads=heads)
    given = one.graph, one.train, one.validation, space, one.config, one.folder, one.store
    found = CutSearch(*given, cluster=cluster)
    found.run(oracle=oracle)
    return found


def told(search: CutSearch) -> list[dict]:
    """Return what is recorded of each trial, but for the time that it took."""
    return [
        replace(one, fit=one.fit and replace(one.fit, seconds=0.0)).to_dict() | {"weights": 0}
        for one in search.result.trials
    ]


def assert_equal(one: CutSearch, other: CutSearch) -> None:
    """Compare records, features and the best model, to the last bit."""
    assert told(one) == told(other)
    stored = [
        {
            (entry.digest, file.name): file.read_bytes()
            for entry in FeatureStore(each.store.path).entries()
            for file in entry.folder.glob("*.npy")
        }
        for each in (one, other)
    ]
    assert stored[0] == stored[1] != {}
    for a, b in zip(*(each.best_model().get_weights() for each in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)
