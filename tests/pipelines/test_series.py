"""Sounds and numbers, from a configuration to a registered model and its predictions."""

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn.datasets import load_diabetes, load_wine

import reusekit as rk

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


def test_sounds_by_path_in_a_table(run_pipeline, tracking, tmp_path):
    conv = keras.layers.Conv1D
    layers = (conv(4, 5, 2, activation="relu"), conv(8, 5, 2, activation="relu", name="high"))
    saved(tmp_path / "sounds.keras", keras.Input((64, 1)), *layers)
    numbers = np.random.default_rng(0)
    for number in range(60):
        time = np.arange(numbers.integers(50, 90))
        wave = np.sin(time * (0.2, 1.5)[number % 2] + numbers.random() * 6)[:, None] * 0.8
        content = tf.audio.encode_wav(wave.astype("float32"), 8_000)
        (tmp_path / f"{number}.wav").write_bytes(content.numpy())
    paths = [f"{number}.wav" for number in range(60)]
    frame = pd.DataFrame({"file": paths, "pitch": ["low", "high"] * 30})
    frame.to_csv(tmp_path / "sounds.csv", index=False)
    run_pipeline(
        "cut_search",
        "--data.table=sounds.csv",
        "--data.input=file",
        "--data.label=pitch",
        "--data.shares={train: 0.5, validation: 0.25, test: 0.25}",
        "--backbone.source=sounds.keras",
        "--search.cuts=[high]",
        "--tracking.model=pitch",
        *QUICK,
    )
    version = tracking.get_model_version_by_alias("pitch", "champion")
    run = tracking.get_run(version.run_id)
    assert run.data.metrics["test_accuracy"] > 0.7
    assert {one.dataset.source_type for one in run.inputs.dataset_inputs} == {"table"}
    # Of another length, a sound is cut or filled up as in training.
    sounds = [numbers.normal(size=(length, 1)).astype("float32") for length in (50, 64, 80)]
    fitted = np.stack([np.pad(one[:64], ((0, 64 - len(one[:64])), (0, 0))) for one in sounds])
    told, again = (rk.predict("models:/pitch@champion", given) for given in (sounds, fitted))
    assert set(told["label"]) <= {"low", "high"}
    np.testing.assert_allclose(again["probability"], told["probability"], rtol=1e-5)


def test_a_table_of_numbers_with_a_number_to_predict(run_pipeline, tracking, tmp_path, capsys):
    found = load_wine(as_frame=True)
    frame = (found.data - found.data.mean()) / found.data.std()
    frame.to_parquet(tmp_path / "wine.parquet")
    saved(
        tmp_path / "numbers.keras",
        keras.Input((12,)),
        keras.layers.Dense(32, activation="relu", name="wide"),
        keras.layers.Dense(32, activation="relu", name="wider"),
    )
    columns = [column for column in frame if column != "alcohol"]
    (tmp_path / "wine.yaml").write_text(
        f"""
data:
  table: wine.parquet
  input: {columns}
  label: alcohol
  shares: {{train: 0.5, validation: 0.25, test: 0.25}}
backbone: {{source: numbers.keras}}
search: {{cuts: [wider]}}
tracking: {{model: wine}}
"""
    )
    run_pipeline("cut_search", "--config=wine.yaml", *QUICK)
    version = tracking.get_model_version_by_alias("wine", "champion")
    run = tracking.get_run(version.run_id)
    assert run.data.metrics["test_r2"] > 0.1  # the mean has 0
    contexts = {one.tags[0].value: one for one in run.inputs.dataset_inputs}
    assert {one.dataset.source_type for one in contexts.values()} == {"table"}
    again = mlflow.data.get_source(contexts["training"]).load_split(table=tmp_path / "wine.parquet")
    assert again.fingerprint == version.tags["reusekit.data"]
    assert again.task == rk.data.Task("regression", ("alcohol",))
    told = rk.predict("models:/wine@champion", frame)
    assert np.corrcoef(told["alcohol"], frame["alcohol"])[0, 1] > 0.5
    with pytest.raises(rk.DataError, match="of shape"):  # numbers are never filled up
        rk.predict("models:/wine@champion", frame[columns].to_numpy()[:, :9])

    with pytest.raises(SystemExit):
        run_pipeline("cut_search", "--config=wine.yaml", "--data.input=[hue, ash]", *QUICK)
    assert "data.train of shape (12,), which the model takes" in capsys.readouterr().err


def test_a_network_of_series_on_arrays(tmp_path):
    keras.utils.set_random_seed(0)
    x, y = load_diabetes(return_X_y=True)
    parts = [
        rk.data.from_arrays(x * 20, (y - y.mean()) / y.std(), part, shares=rk.data.Shares())
        for part in ("train", "validation")
    ]
    layers = (keras.layers.Conv1D(16, 10, activation="relu"), keras.layers.Flatten(name="features"))
    saved(tmp_path / "series.keras", keras.Input((10, 1)), *layers, keras.layers.Dense(4))
    backbone = rk.load_backbone(str(tmp_path / "series.keras"))
    space = rk.SearchSpace(
        ["features"], learning_rates=[0.02], heads={"progress": rk.heads.Regression(1)}
    )
    config = rk.SearchConfig(objective="val_loss", epochs=20)
    store = rk.FeatureStore(tmp_path / "store")
    search = rk.CutSearch(backbone, *parts, space, config, folder=tmp_path / "search", store=store)
    search.run()
    assert search.results()["val_loss"].min() < 0.75  # 1 is what the mean reaches
