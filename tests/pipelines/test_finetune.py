"""The other pipeline, and the same jobs on a large backbone and mock data."""

import mlflow
import tensorflow_datasets as tfds
from repository import ROOT


def champion(name: str):
    return mlflow.keras.load_model(f"models:/{name}@champion")


def test_fine_tunes_at_the_cut_that_is_named(run_pipeline, tracking, capsys):
    run_pipeline(
        "finetune",
        "--data.name=sklearn_digits",
        "--cut=block5_out",
        "--data.examples_per_class=5",
        "--head.epochs=5",
        "--head.units=8",
        "--finetune.epochs=2",
        "--finetune.frozen_up_to=block3_out",
        "--tracking.model=named",
    )
    model = champion("named")
    names = [layer.name for layer in model.layers]
    assert "block5_out" in names
    assert "block6_out" not in names
    assert model.get_layer("head_hidden").units == 8
    assert model.get_layer("block4_1_conv").trainable
    assert not model.get_layer("block3_1_conv").trainable
    assert "block5_out" in capsys.readouterr().out


def test_resnet50_on_the_pets(run_pipeline, tracking):
    words = [
        f"--config={ROOT / 'configs' / 'resnet50_pets.yaml'}",
        "--search.max_trials=1",
        "--search.max_cuts=1",
        "--search.epochs=1",
        "--backbone.weights=null",
        "--backbone.input_shape=[32, 32, 3]",
        "--finetune.share=0",
        "--baselines.from_scratch=false",
        "--baselines.linear=false",
    ]
    with tfds.testing.mock_data(num_examples=12):
        run_pipeline("cut_search", *words)
    model = champion("resnet50_pets")
    assert model.input_shape == (None, 32, 32, 3)
    assert model.output_shape == (None, 37)
