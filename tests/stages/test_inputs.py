"""Splits that share examples are refused before anything is trained on them."""

import pytest

import reusekit as rk
from reusekit import stages
from reusekit.settings import BackboneSettings, DataSettings

DIGITS = "sklearn_digits"


@pytest.mark.parametrize(
    "splits",
    [
        {"test": "validation"},
        {"validation": "train[90%:]"},
        {"train": "train[:80%]", "test": "train[79%:]"},
    ],
)
def test_splits_that_share_examples_are_refused(splits):
    backbone = stages.load_backbone(BackboneSettings())
    with pytest.raises(rk.ConfigError, match="share examples"):
        stages.load_data(DataSettings(name=DIGITS, **splits), backbone, seed=0)


def test_a_backbone_of_any_size_needs_one_to_be_chosen():
    settings = {"source": "keras.applications/MobileNetV2", "weights": None}
    with pytest.raises(rk.ConfigError, match="Choose one with --backbone"):
        backbone = stages.load_backbone(BackboneSettings(**settings))
        stages.load_data(DataSettings(name=DIGITS), backbone, seed=0)
    backbone = stages.load_backbone(BackboneSettings(**settings, input_shape=(32, 48, 3)))
    splits = stages.load_data(DataSettings(name=DIGITS), backbone, seed=0)
    assert splits.test.input_shape == (32, 48, 3)


def test_a_setting_of_its_own_is_no_option():
    with pytest.raises(rk.ConfigError, match=r"backbone\.weights"):
        stages.load_backbone(BackboneSettings(options={"weights": None}))
