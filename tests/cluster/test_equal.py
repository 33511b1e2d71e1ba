"""Features, records and the best model of a cluster: those of one machine to the last bit."""

import shutil
from functools import partial
from time import monotonic, sleep

import keras
import numpy as np
import pytest
import tensorflow as tf
from cluster.dying import DyingWorkers, read
from cluster.searches import assert_equal, searched, told
from keras_tuner.oracles import HyperbandOracle
from search.textures import small_backbone, textures

from reusekit.data import DataSplit, Task
from reusekit.errors import CacheError, ConfigError
from reusekit.features import Extraction, FeatureStore, lengths, stored_features
from reusekit.search import CutSearch, SearchConfig, SearchSpace
from reusekit.training import heads


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The search on this machine."""
    return searched(tmp_path_factory.mktemp("here"))


def test_a_search_is_equal_to_the_last_bit(tmp_path, cluster, here):
    assert_equal(searched(tmp_path, cluster), here)


def test_a_trial_that_fails_is_recorded_as_on_one_machine(tmp_path, cluster):
    both = {"good": heads.Classifier(3), "bad": heads.Classifier(2)}
    changed = {"cuts": ["out1"], "frozen_up_to": [], "heads": both}
    here, there = (
        searched(tmp_path / name, workers, **changed)
        for name, workers in (("here", None), ("there", cluster))
    )
    assert [one["status"] for one in told(there)] == [one["status"] for one in told(here)]
    assert {one["status"] for one in told(there)} == {"completed", "failed"}
    assert told(there)[0] == told(here)[0]


def test_backbones_that_have_their_passes_at_a_time_are_equal(tmp_path, cluster, monkeypatch):
    at_a_time, most = [], []
    real = cluster.map

    def counted(function, items):
        at_a_time.append(1)
        most.append(len(at_a_time))
        yield from real(function, items)
        at_a_time.pop()

    monkeypatch.setattr(cluster, "map", counted)
    found = []
    for name, workers in (("here", None), ("there", cluster)):
        backbones = {"one": small_backbone(), "other": small_backbone(seed=2)}
        space = SearchSpace(
            {each: ["stem", "out1"] for each in backbones}, units=[0], learning_rates=[0.1]
        )
        data = textures("train", 60, 1), textures("validation", 30, 2)
        kept = tmp_path / name, FeatureStore(tmp_path / f"{name}_store")
        one = CutSearch(backbones, *data, space, SearchConfig(epochs=2), *kept, cluster=workers)
        one.run()
        found.append(one)
    assert_equal(*found)
    assert len(most) == 5 and max(most) == 2  # two passes of each backbone, and the trials


def test_features_that_vary_and_trials_that_go_on_are_equal(tmp_path, cluster):
    """Features are computed for every batch, by workers of their own, of augmented inputs."""

    def run(name, workers=None):
        train = textures("train", 60, 1).augmented(["RandomFlip"])
        oracle = HyperbandOracle("val_loss", max_epochs=2, factor=2, seed=3)
        changed = {"train": train, "cuts": ["out1"], "frozen_up_to": ["out0"]}
        return searched(tmp_path / name, workers, oracle=oracle, **changed)

    here, there = run("here"), run("there", cluster)
    assert {one.how for one in there.plan.features} == {"recompute"}
    assert any(one["values"]["tuner/initial_epoch"] for one in told(there))
    assert told(there) == told(here)


SMALL_SEARCH = {"cuts": ["out1"], "frozen_up_to": ["out0"], "learning_rates": (0.1,), "epochs": 1}


@pytest.mark.parametrize("in_memory", [False, True])
def test_stored_features_are_read_where_they_lie_or_sent(tmp_path, cluster, in_memory):
    """Features that memory does not hold are mapped by each worker; others need no folder."""
    store, data = FeatureStore(tmp_path / "store"), textures("train", 20, 1)
    (source,) = stored_features(store, small_backbone(), ["out1"], data)
    source.in_memory = in_memory
    (here,) = read(source, 8)
    if in_memory:
        shutil.rmtree(store.path)
    ((there,),) = cluster.map(partial(read, source), [8])
    np.testing.assert_array_equal(here, there)


def test_inputs_that_memory_does_not_hold_are_refused_in_one_sentence(tmp_path, cluster):
    train = textures("train", 60, 1).augmented(["RandomFlip"])
    with pytest.raises(CacheError, match="inputs that fit into memory, to be sent to workers"):
        searched(tmp_path, cluster, train=train, memory=1_000, **SMALL_SEARCH)


def test_a_search_takes_a_cluster_alone_for_one(tmp_path):
    with pytest.raises(ConfigError, match="Expected cluster to be None or"):
        searched(tmp_path, "local")
    with pytest.raises(TypeError, match="clutser"):
        CutSearch(small_backbone(), textures("train", 6, 1), textures("b", 6, 2), clutser=None)


def test_texts_are_sorted_among_the_same_ones(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(lengths, "WINDOW_BATCHES", 2)
    keras.utils.set_random_seed(0)
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(30, 8, mask_zero=True, name="words")(ids)
    model = keras.Model(ids, keras.layers.Dense(8, name="dense")(x))
    numbers = np.random.default_rng(0)
    texts = numbers.integers(1, 30, (100, 32)) * (np.arange(32) < numbers.integers(1, 33, (100, 1)))
    examples = tf.data.Dataset.from_tensor_slices((texts.astype("int32"), np.arange(100) % 2))
    data = DataSplit("texts:1.0.0", "train", examples, 100, Task("classification", ("a", "b")), "x")
    small = Extraction(batch_size=8)
    stores = FeatureStore(tmp_path / "a"), FeatureStore(tmp_path / "b").computed_by(cluster)
    here, there = (
        stored_features(store, model, ["dense"], data, pooling="avg", extraction=small)[0].arrays()
        for store in stores
    )
    np.testing.assert_array_equal(here, there)


def test_workers_and_a_node_that_are_killed_cost_nothing_but_time(tmp_path, cluster, here):
    """It is the last test of this file, since a node is gone afterwards."""
    died = tmp_path / "died"
    died.mkdir()
    assert cluster.count == 2
    assert_equal(searched(tmp_path, DyingWorkers(cluster, died)), here)
    assert len(list(died.iterdir())) >= 3  # features to train and to compare on, and trials
    ends = monotonic() + 120
    while cluster.count > 1:  # until the node is missed
        assert monotonic() < ends
        sleep(0.1)
