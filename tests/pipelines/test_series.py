"""Tables of numbers, from a configuration to a registered model."""

import keras
import mlflow
import numpy as np
import pytest
from sklearn.datasets import load_wine

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
