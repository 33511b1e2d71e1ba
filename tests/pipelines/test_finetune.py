"""The other pipeline, and configurations of a large backbone, opened on mock data."""

import mlflow
import pytest
import tensorflow_datasets as tfds
from repository import ROOT

from reusekit import stages


def champion(name: str):
    return mlflow.keras.load_model(f"models:/{name}@champion")


def test_fine_tunes_at_the_cut_that_is_named(run_pipeline, tracking, capsys):
    run_pipeline(
        "finetune",
        "--data.name=sklearn_digits",
        "--cut=block5_out",
        "--data.examples_per_class=5",
        "--data.augment=[RandomRotation: {factor: 0.05}, MixUp]",
        "--data.class_weights=balanced",
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
    assert not any("random" in name or "mix" in name for name in names)
    version = tracking.get_model_version_by_alias("named", "champion")
    assert "augmented by `RandomRotation(factor=(-0.05, 0.05)), MixUp`" in version.description
    run = tracking.get_run(version.run_id)
    params = run.data.params
    assert params["data.augment"] == "[{'RandomRotation': {'factor': 0.05}}, 'MixUp']"
    files = {file.path for file in tracking.list_artifacts(version.run_id)}
    assert {"augmented.png", "model.png"} <= files
    (recorded,) = (one for one in run.inputs.dataset_inputs if one.tags[0].value == "training")
    again = mlflow.data.get_source(recorded).load_split()  # as they were read, without weights
    assert again.fingerprint == recorded.dataset.digest == version.tags["reusekit.data"]


class Opened(Exception):
    """The end of a run whose data and backbone are open."""


@pytest.mark.parametrize(
    ("name", "task", "outputs"),
    [("resnet50_pets", "classification", 37), ("voc", "multilabel", 20)],
)
def test_a_large_configuration_opens(run_pipeline, tracking, monkeypatch, name, task, outputs):
    def stop(**given):
        raise Opened(given["candidates"].splits)

    monkeypatch.setattr(stages, "plan_search", stop)
    small = ["--backbone.weights=null", "--backbone.input_shape=[32, 32, 3]"]
    with tfds.testing.mock_data(num_examples=12), pytest.raises(Opened) as opened:
        run_pipeline("cut_search", f"--config={ROOT / 'configs' / name}.yaml", *small)
    (splits,) = opened.value.args
    for split in (splits.train, splits.validation, splits.test):
        assert (split.task.kind, split.task.size) == (task, outputs)
        assert split.input_shape == (32, 32, 3)
