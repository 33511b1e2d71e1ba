"""The settings of a search: said once, alike in the library, in files and on the command line."""

from types import SimpleNamespace

import pytest

import reusekit as rk
from reusekit.data import Task
from reusekit.errors import ConfigError
from reusekit.search import Limits, SearchConfig
from reusekit.search.config import SearchOptions
from reusekit.search.space import TrialChoices
from reusekit.settings import SearchJobSettings, SearchSettings
from reusekit.stages.search import search_digest


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"epoch": 3},
            r"SearchConfig by their names. Received: 'epoch'. Did.* 'epochs'",
        ),
        ({"epochs": 0}, r"Expected epochs to be a whole number of at least 1. Received: 0\."),
        ({"patience": True}, r"patience to be a whole number of at least 0. Received: True"),
        ({"rank": "logm"}, "Did you mean 'logme'"),
        ({"limits": {"flop": 1}}, r"settings of Limits .* Did you mean 'flops'"),
        ({"limits": {"flops": -1}}, "Expected flops to be None or a number above 0. Received: -1"),
        ({"best_cuts": 2}, "Expected rank='logme' or another with best_cuts"),
        ({"start_from": "before"}, "Expected max_trials with start_from"),
        ({"plain": True, "rank": "ridge"}, "Expected no ranking with plain=True"),
        ({"objective": "[val_loss]"}, "Expected objective as plain text"),
    ],
)
def test_a_bad_setting_is_one_sentence(settings, says):
    with pytest.raises(ConfigError, match=says):
        SearchConfig(**settings)
    with pytest.raises(ConfigError, match=says):
        SearchConfig().changed(**settings)


def test_a_file_has_every_option_and_says_what_it_is():
    options = {*SearchOptions.model_fields, *TrialChoices.model_fields}
    assert options <= SearchSettings.model_fields.keys()
    assert all(SearchSettings.model_fields[name].description for name in options)
    settings = SearchSettings(units=(8,), epochs=3, limits={"flops": 10}, disk=9, keep=2)
    space, config = settings.space(["a"]), settings.config(seed=4, plain=True)
    assert (space.cuts, space.units, space.dropout) == (["a"], [8], [0.0, 0.25, 0.5])
    assert config == SearchConfig(
        epochs=3, limits=Limits(flops=10), max_trials=24, keep=2, seed=4, plain=True
    )


def test_settings_are_given_by_name_but_cuts():
    assert rk.SearchSpace(["a"], units=[8]) == rk.SearchSpace(cuts=("a",), units=(8,))
    with pytest.raises(ConfigError, match=r"Expected cuts among the settings\. Received: nothing"):
        rk.SearchSpace(units=[8])


def digest(seed=0, plain=False, **settings):
    splits = SimpleNamespace(
        train=SimpleNamespace(
            fingerprint="a", task=Task("classification", ("a", "b")), augmentation=None
        ),
        validation=SimpleNamespace(fingerprint="b"),
    )
    return search_digest(
        SimpleNamespace(digest="d"),
        [SimpleNamespace(at="c1"), SimpleNamespace(at="c2")],
        splits,
        SearchSettings(**settings),
        SearchJobSettings(seed=seed, plain=plain),
    )


def test_a_search_of_before_is_found_under_its_name():
    # As version 0.1.0 named them.
    assert digest() == digest(keep=3, memory=10**9) == digest(pooling="avg") == "1ec0456fcc74b733"
    every = {"max_trials": None, "learning_rates": [0.1, 0.01]}
    assert digest(seed=3, plain=True, **every) == "fbb306ce6a3209e1"
    assert digest(max_trials=4) == digest(max_trials=8) != digest(pooling="max") != digest(epochs=3)
