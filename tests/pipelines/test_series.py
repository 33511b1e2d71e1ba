"""Sounds of a catalogue and tables of numbers, from a configuration to a registered model."""

import keras
import mlflow
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_diabetes, load_wine

import reusekit as rk
from reusekit import stages
from reusekit.settings import BackboneSettings, DataSettings

QUICK = [
    "--search.max_trials=1",
    "--search.epochs=20",
    "--search.learning_rate=[0.02, 0.02]",
    "--finetune.share=0",
    "--finetune.epochs=1",
]


def saved(path, inputs, *layers):
    x = inputs
    for layer in layers:
        x = layer(x)
    keras.Model(inputs, x).save(path)


def test_sounds_of_the_catalogue_in_the_length_of_a_backbone(tmp_path):
    saved(
        tmp_path / "sounds.keras",
        keras.Input((64, 1)),
        keras.layers.Rescaling(1 / 32_768),
        keras.layers.Conv1D(4, 5, strides=2, activation="relu", name="low"),
        keras.layers.Conv1D(8, 5, strides=2, activation="relu", name="high"),
    )
    backbone = stages.load_backbone(BackboneSettings(source=str(tmp_path / "sounds.keras")))
    parts = dict.fromkeys(("train", "validation", "test"), "train")
    with tfds.testing.mock_data(num_examples=24):
        splits = stages.load_data(DataSettings(name="spoken_digit", **parts), backbone, seed=0)
        for split in (splits.train, splits.validation, splits.test):
            sounds, labels = split.arrays()
            assert sounds.shape == (24, 64)
            assert backbone.model.predict(sounds, verbose=0).shape == (24, 13, 8)
            assert (split.classes, labels.shape) == (10, (24,))
        space = rk.SearchSpace(["high"])
        search = rk.CutSearch(
            backbone.model,
            splits.train,
            splits.validation,
            space,
            rk.SearchConfig(epochs=1, max_trials=1, plain=True),
            folder=tmp_path / "search",
        )
        search.run()
        best = search.best_model()
    assert (best.input_shape, best.output_shape) == ((None, 64, 1), (None, 10))


@pytest.fixture
def wine(tmp_path):
    """A Parquet table of scaled numbers, and a saved model that takes them."""
    found = load_wine(as_frame=True)
    frame = (found.data - found.data.mean()) / found.data.std()
    frame["kind"] = np.array(["red", "white", "green"])[found.target]
    frame.to_parquet(tmp_path / "wine.parquet")
    saved(
        tmp_path / "numbers.keras",
        keras.Input((13,)),
        keras.layers.Dense(32, activation="relu", name="wide"),
        keras.layers.Dense(32, activation="relu", name="wider"),
    )
    return frame


def test_a_table_of_numbers_through_a_pipeline(run_pipeline, tracking, tmp_path, wine, capsys):
    columns = [column for column in wine if column != "kind"]
    (tmp_path / "wine.yaml").write_text(
        f"""
data:
  table: wine.parquet
  input: {columns}
  label: kind
  shares: {{train: 0.5, validation: 0.25, test: 0.25}}
backbone: {{source: numbers.keras}}
search: {{cuts: [wider]}}
tracking: {{model: wine}}
"""
    )
    run_pipeline("cut_search", "--config=wine.yaml", *QUICK)
    version = tracking.get_model_version_by_alias("wine", "champion")
    run = tracking.get_run(version.run_id)
    assert run.data.metrics["test_accuracy"] > 0.8
    contexts = {one.tags[0].value: one for one in run.inputs.dataset_inputs}
    assert {one.dataset.source_type for one in contexts.values()} == {"table"}
    again = mlflow.data.get_source(contexts["training"]).load_split(table=tmp_path / "wine.parquet")
    assert again.fingerprint == version.tags["reusekit.data"]
    assert again.class_names == ("green", "red", "white")

    with pytest.raises(SystemExit):
        run_pipeline("cut_search", "--config=wine.yaml", "--data.input=[alcohol, hue]", *QUICK)
    assert "data.train of shape (13,), which the model takes" in capsys.readouterr().err


def test_numbers_are_predicted_from_arrays_by_a_search(tmp_path):
    keras.utils.set_random_seed(0)
    x, y = load_diabetes(return_X_y=True)
    parts = [
        rk.data.from_arrays(x * 20, (y - y.mean()) / y.std(), part, shares=rk.data.Shares())
        for part in ("train", "validation")
    ]
    inputs = keras.Input((10,))
    features = keras.layers.Dense(32, activation="relu", name="features")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(4)(features))
    space = rk.SearchSpace(
        ["features"], learning_rates=[0.02], heads={"progress": rk.heads.Regression(1)}
    )
    config = rk.SearchConfig(objective="val_loss", epochs=20)
    store = rk.FeatureStore(tmp_path / "store")
    search = rk.CutSearch(model, *parts, space, config, folder=tmp_path / "search", store=store)
    search.run()
    assert search.results()["val_loss"].min() < 0.75  # 1 is what the mean reaches
