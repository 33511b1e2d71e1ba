"""Spaces of trials: choices are declared to keras-tuner, and what makes no sense is refused."""

import keras_tuner
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reusekit as rk
from reusekit.data.task import Task
from reusekit.errors import ConfigError
from reusekit.search import SearchSpace, TrialSpec
from reusekit.tasks import rules_of

CUTS = ["shallow", "middle", "deep"]


def values(space, **chosen):
    """The names that a space declares with their choices, and the trial of some values."""
    hp = keras_tuner.HyperParameters()
    space.sample(hp)
    declared = {one.name: getattr(one, "values", None) for one in hp.space}
    hp.values |= chosen
    return declared, space.sample(hp)


def test_the_defaults_are_the_first_of_each_list_and_the_mean_rate():
    declared, spec = values(SearchSpace(CUTS, units=(8, 0), dropout=(0.5, 0.0)))
    assert declared["cut"] == CUTS
    assert declared["units"] == [8, 0]
    assert spec.learning_rate == pytest.approx(1e-2)
    expected = TrialSpec("shallow", "shallow", None, 8, 0.5, "adam", spec.learning_rate, 32)
    assert spec == expected
    assert not spec.trains_backbone


def test_every_choice_reaches_the_trial():
    space = SearchSpace(
        CUTS,
        frozen_up_to=["shallow"],
        optimizers=("sgd", "adamw"),
        learning_rates=(0.5, 0.1),
        batch_sizes=(16, 32),
    )
    declared, spec = values(
        space, cut="deep", optimizer="adamw", learning_rate=0.1, batch_size=32, units=64
    )
    assert declared["frozen_up_to"] == ["shallow"]
    assert declared["learning_rate"] == [0.5, 0.1]
    assert spec == TrialSpec("deep", "shallow", None, 64, 0.0, "adamw", 0.1, 32)
    assert spec.trains_backbone


def test_one_rate_is_no_choice():
    declared, spec = values(SearchSpace(CUTS, learning_rate=(0.02, 0.02)))
    assert declared["learning_rate"] is None or list(declared["learning_rate"]) == [0.02]
    assert spec.learning_rate == 0.02


def test_heads_by_name_take_the_place_of_units_and_dropout():
    heads = {
        "linear": rk.heads.Classifier(3),
        "wide": rk.heads.Classifier(3, units=64, dropout=0.5),
    }
    space = SearchSpace(CUTS, heads=heads)
    declared, spec = values(space, head="wide")
    assert declared["head"] == ["linear", "wide"]
    assert not {"units", "dropout"} & declared.keys()
    assert space.head(spec, rules_of(Task("classification", ("a", "b", "c")))) is heads["wide"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cuts": []}, "cuts to be a list, not empty"),
        ({"cuts": "block4_out"}, "cuts to be a list"),
        ({"cuts": ["a", "a"]}, "with nothing twice"),
        ({"heads": {"a": 5}}, r"heads\['a'\] to be a Head"),
        ({"units": []}, "units to be a list, not empty"),
        ({"units": [-1]}, r"units\[0\] to be a whole number of at least 0"),
        ({"dropout": [0.5, 1.5]}, r"dropout\[1\] to be a number of at least 0 and below 1"),
        ({"dropout": [float("nan")]}, r"dropout\[0\] to be a number"),
        ({"batch_sizes": ()}, "batch_sizes to be a list, not empty"),
        ({"batch_sizes": [True]}, r"batch_sizes\[0\] to be a whole number of at least 1"),
        ({"learning_rates": []}, "learning_rates to be None or a list, not empty"),
        ({"learning_rates": [float("inf")]}, r"learning_rates\[0\] to be a number above 0"),
        ({"standardize": "x"}, "standardize to be True or False"),
        ({"heads": {}}, "heads to be None or a dictionary, not empty"),
        ({"learning_rate": (0.1, 0.01)}, "lowest, highest"),
        ({"learning_rate": (0.0, 0.1)}, r"learning_rate\[0\] to be a number above 0"),
        ({"batch_norm": "frosen"}, "Did you mean 'frozen'"),
        ({"optimizers": ["adm"]}, "Did you mean 'adam'"),
    ],
)
def test_what_makes_no_space_is_refused(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        SearchSpace(**{"cuts": CUTS} | kwargs)


@given(
    st.builds(
        TrialSpec,
        cut=st.sampled_from(CUTS),
        frozen_up_to=st.sampled_from(CUTS),
        head=st.none() | st.text(),
        units=st.integers(0, 100),
        dropout=st.floats(0, 0.9),
        learning_rate=st.floats(1e-6, 1),
        batch_size=st.integers(1, 512),
    ),
    st.dictionaries(st.sampled_from(["tuner/epochs", "other"]), st.integers()),
)
def test_a_trial_comes_back_from_what_is_written_down(spec, more):
    assert TrialSpec.from_dict(spec.to_dict() | more) == spec
    before = {"freeze" if k == "frozen_up_to" else k: v for k, v in spec.to_dict().items()}
    assert TrialSpec.from_dict(before) == spec


def test_hyperparameters_of_before_are_refused():
    hp = keras_tuner.HyperParameters()
    hp.Choice("freeze", CUTS)
    with pytest.raises(ConfigError, match="'freeze', which is called 'frozen_up_to' now"):
        SearchSpace(CUTS, frozen_up_to=CUTS).sample(hp)
    assert SearchSpace(CUTS).sample(hp).frozen_up_to == "shallow"
