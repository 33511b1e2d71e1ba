"""Features in memory, and a small backbone on small images, to be searched."""

import keras
import numpy as np
import pytest
from search.textures import small_backbone, textures

from reusekit.data import DataSplit
from reusekit.data.task import Task
from reusekit.search import CutHyperModel, SearchConfig, SearchSpace, TrialData

CUTS = ["shallow", "middle", "deep"]


@pytest.fixture(scope="session")
def data() -> TrialData:
    """Features that tell the classes apart better the deeper they are."""
    generator = np.random.default_rng(0)
    labels, validation_labels = np.arange(60) % 3, np.arange(45) % 3

    def features(labels, signal):
        noise = generator.normal(size=(len(labels), 6))
        return (noise + signal * np.eye(6)[labels]).astype("float32")

    signals = dict(zip(CUTS, (0.0, 1.0, 8.0), strict=True))
    return TrialData.of_arrays(
        {cut: features(labels, signal) for cut, signal in signals.items()},
        labels,
        {cut: features(validation_labels, signal) for cut, signal in signals.items()},
        validation_labels,
        Task("classification", ("a", "b", "c")),
    )


@pytest.fixture
def hypermodel(data) -> CutHyperModel:
    """Classifiers on these features."""
    space = SearchSpace(CUTS, units=(0, 4), dropout=(0.0,), learning_rates=(0.3, 0.1))
    return CutHyperModel(data, space, SearchConfig(epochs=3, patience=3))


@pytest.fixture(scope="session")
def backbone() -> keras.Model:
    """A small pretrained model; nothing may change it."""
    return small_backbone()


@pytest.fixture(scope="session")
def train() -> DataSplit:
    """Images to train on."""
    return textures("train", 60, 1)


@pytest.fixture(scope="session")
def validation() -> DataSplit:
    """Images to compare trials on."""
    return textures("validation", 30, 2)
