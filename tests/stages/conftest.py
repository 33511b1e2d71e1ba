"""What tests of stages share: the demo's backbone and data, and a store of their own."""

import pytest

import reusekit as rk
from reusekit import stages
from reusekit.settings import BackboneSettings, DataSettings


@pytest.fixture(scope="module")
def backbone():
    return stages.load_backbone(BackboneSettings())


@pytest.fixture(scope="module")
def splits(backbone):
    return stages.load_data(
        DataSettings(name="sklearn_digits", examples_per_class=5), backbone, seed=0
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return rk.FeatureStore(tmp_path_factory.mktemp("features"))
