"""Text through the stages: a search over a BERT, then trained on, measured, registered, loaded."""

import json
import math
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import reusekit as rk
from reusekit import stages
from reusekit.backbones import Backbone
from reusekit.data import DataSplit, Task
from reusekit.features import StoredSource
from reusekit.planning import Trials
from reusekit.search import CutSearch, SearchConfig, SearchSpace
from reusekit.settings import FineTuneSettings, TrackingSettings
from reusekit.stages.features import frozen_features
from reusekit.tracking import log_data, requirements, saved

keras_hub = pytest.importorskip("keras_hub")

CUTS = ["transformer_layer_0", "transformer_layer_1"]
LENGTH = 8


def text_split(name: str, count: int, seed: int) -> DataSplit:
    """Token ids of which some tell the class, of differing lengths, filled up to one."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count)
    told = np.arange(LENGTH) < generator.integers(3, LENGTH + 1, (count, 1))
    ids = np.where(told, generator.integers(1, 10, (count, LENGTH)) + 10 * labels[:, None], 0)
    examples = {
        "token_ids": ids.astype("int32"),
        "segment_ids": np.zeros_like(ids, "int32"),
        "padding_mask": told.astype("int32"),
    }
    data = tf.data.Dataset.from_tensor_slices((examples, labels))
    fingerprint = f"{name}-{count}-{seed}"
    return DataSplit(
        "made:1.0.0", name, data, count, Task("classification", ("water", "food")), fingerprint
    )


@pytest.fixture(scope="module")
def bert():
    keras.utils.set_random_seed(0)
    model = keras_hub.models.BertBackbone(
        vocabulary_size=24, num_layers=2, num_heads=2, hidden_dim=16,
        intermediate_dim=32, max_sequence_length=16,
    )  # fmt: skip
    return Backbone(model, None, "made/bert", None)


@pytest.fixture(scope="module")
def splits():
    return stages.Splits(
        text_split("train", 96, 0), text_split("validation", 32, 1), text_split("test", 32, 2)
    )


def test_text_goes_from_a_search_into_the_registry_and_back(
    bert, splits, store, tracking, tmp_path
):  # pipeline W10, and its foreign errors
    space = SearchSpace(CUTS, units=[0], dropout=[0.0], learning_rates=[1e-2], batch_sizes=[16])
    search = CutSearch(
        bert.model,
        splits.train,
        splits.validation,
        space,
        SearchConfig(pooling="avg", epochs=3, patience=3, keep=2),
        folder=tmp_path / "trials",
        store=store,
    )
    with mlflow.start_run() as run:
        log_data(splits.train, "training")
        searched = stages.search_cut(search, tmp_path)
        second = FineTuneSettings(epochs=1, frozen_up_to=CUTS[0])
        begun = stages.best_trial(searched)
        tuned = stages.finetune(begun, bert, second, splits, store, tmp_path, seed=0)
        test = stages.evaluate(tuned.whole, splits.test)
        settings = TrackingSettings(model="topics")
        version = stages.register(
            tuned, bert, splits, stages.Scores(test, searched=searched), settings, tmp_path
        )
    assert test.value > 0.75
    assert all(0 < seconds < math.inf for seconds in searched.result.to_frame()["latency"])
    assert all(0 < seconds < math.inf for seconds in searched.result.latencies.values())
    assert "any of padding_mask" in version.description

    (train,) = (
        read.dataset
        for read in tracking.get_run(run.info.run_id).inputs.dataset_inputs
        if read.tags[0].value == "training"
    )
    columns = {column["name"] for column in json.loads(train.schema)["mlflow_colspec"]}
    assert columns == {"token_ids", "segment_ids", "padding_mask", "label"}

    uri = "models:/topics@champion"
    answers = mlflow.models.get_model_info(uri).signature.outputs
    assert answers.input_names() == ["label", "probability"]
    needed = Path(mlflow.pyfunc.get_model_dependencies(uri)).read_text().split()
    assert f"keras-hub=={installed('keras-hub')}" in needed

    inputs = next(splits.test.batches(32).as_numpy_iterator())[0]
    expected = tuned.whole.predict(inputs, verbose=0)
    for found in (
        rk.load_backbone(uri).model.predict(inputs, verbose=0),
        mlflow.keras.load_model(uri).predict(inputs, verbose=0),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    found = mlflow.pyfunc.load_model(uri).predict(inputs)
    np.testing.assert_allclose(found["probability"], expected.max(axis=1), atol=1e-6)
    assert found["label"].tolist() == [
        splits.test.class_names[at] for at in expected.argmax(axis=1)
    ]


@pytest.mark.parametrize("budget", [None, 1])
def test_a_top_is_fed_what_crosses_and_no_mask_of_a_head(splits, budget, tmp_path):
    tokens = keras.Input((None,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(24, 8, mask_zero=True, name="words")(tokens)
    y = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.Add(name="inside")([x, y])
    y = keras.layers.Dense(8, activation="gelu", name="dense")(x)
    model = keras.Model(tokens, keras.layers.Add(name="out")([x, y]))
    whole = rk.attach(rk.extract(model, "out", pooling="avg"), rk.heads.Classifier(2))
    top = rk.split(whole, "inside").top
    alone = stages.Splits(
        *(
            replace(part, examples=part.examples.map(lambda x, y: (x["token_ids"], y)))
            for part in (splits.train, splits.validation, splits.test)
        )
    )
    store = rk.FeatureStore(tmp_path, budget)  # one byte has no room for any: all are computed
    made = frozen_features(whole, Trials("inside", batch_size=16), alone, store, seed=0)
    for features, part in ((made.train, alone.train), (made.validation, alone.validation)):
        assert isinstance(features, StoredSource) == (budget is None)
        np.testing.assert_allclose(
            top.predict(features.batches(32), verbose=0),
            whole.predict(part.batches(32), verbose=0),
            atol=1e-6,
        )


def test_whose_classes_a_model_has_is_among_what_it_needs(monkeypatch):  # pipeline W10
    class Zeros(keras.initializers.Zeros):
        """As if another package had it: no layer, and so in the configuration alone."""

    Zeros.__module__ = "keras_hub.somewhere"
    x = keras.Input((2,))
    plain, foreign = (
        keras.Model(x, keras.layers.Dense(1, bias_initializer=kind())(x))
        for kind in (keras.initializers.Zeros, Zeros)
    )
    saved._providers.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(saved, "packages_distributions", dict)  # before anything was installed
        assert requirements(foreign) == requirements(plain)
    extra = set(requirements(foreign)) - set(requirements(plain))
    assert extra == {f"keras-hub=={installed('keras-hub')}"}
