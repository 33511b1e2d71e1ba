"""A registered version as files: found again data, figures in MLflow, a section of its card."""

import json

import keras
import mlflow
import pytest
from keras import layers
from tracking.small_models import written

import reusekit as rk
from reusekit.backbones import Backbone
from reusekit.cli import export
from reusekit.launch import launch_one_of
from reusekit.tracking import send
from reusekit.tracking.registry import logged_model_id

TEST, TRAIN = "test[:60]", "train[:80]"


def body():
    inputs = keras.Input((8, 8, 1), name="image")
    x = layers.Flatten(name="flat")(layers.Rescaling(1 / 255, name="scaled")(inputs))
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return Backbone(keras.Model(inputs, x, name="body"), None, "tests/pixels", None)


@pytest.fixture(scope="module")
def registered(module_tracking, tmp_path_factory):
    """A version whose run has its splits on record, and one whose run has none."""
    keras.utils.set_random_seed(0)
    train, test = (rk.data.load("sklearn_digits", split) for split in (TRAIN, TEST))
    backbone = body()
    model = rk.attach(backbone.model, rk.heads.Classifier(10))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(train.batches(20), epochs=8, verbose=0)
    card = "Tells digits.\n\n## Size\n\nsmall\n"
    mlflow.set_experiment("exported")
    for name in ("pixels", "forgotten"):
        folder = tmp_path_factory.mktemp("written") / name
        written(folder, model, backbone, name, card=card)
        with mlflow.start_run() as run:
            if name == "pixels":
                for split, context in ((train, "training"), (test, "test")):
                    mlflow.log_input(mlflow.data.from_tfds(split), context=context)
            send(folder, mlflow.MlflowClient(), run.info.run_id)
    return module_tracking


def run_export(capsys, *words):
    try:
        launch_one_of({"export": export}, ["export", *words])
    except SystemExit as stopped:
        assert stopped.code == 2
    return capsys.readouterr()


def test_a_version_is_exported_and_its_figures_are_kept(registered, tmp_path, capsys):
    words = ["models:/pixels@champion", "--to", "litert,saved_model", "--quantize"]
    words += ["none,int8-calibrated", "--max_accuracy_loss", "0.1", "--output", str(tmp_path)]
    said = run_export(capsys, *words)
    assert "litert-int8-calibrated" in said.out, said.err
    assert "Compared on 60 examples." in said.out
    assert f"\n  {tmp_path / 'pixels.tflite'}\n" in said.out
    told = json.loads((tmp_path / "pixels.json").read_text())
    assert (told["names"][3], told["kind"]) == ("3", "classification")
    assert told["treatment"].keys() >= {"image_size", "channels"}
    files = {"pixels.tflite", "pixels-int8-calibrated.tflite", "pixels-saved_model"}
    assert {path.name for path in tmp_path.iterdir()} == {*files, "pixels.json"}
    client = registered
    (experiment,) = client.search_experiments(filter_string="name = 'exported'")
    run, *_ = client.search_runs([experiment.experiment_id], "params.model = 'pixels'")
    kept = client.list_artifacts(run.info.run_id, "exports")
    assert {info.path.split("/")[-1] for info in kept} == files
    assert run.data.metrics["export.litert.agreement"] == 1
    version = client.get_model_version_by_alias("pixels", "champion")
    model = client.get_logged_model(logged_model_id(version))
    known = {metric.key: metric.value for metric in model.metrics}
    assert known["export.litert-int8-calibrated.bytes"] < known["export.litert.bytes"]
    assert known["export.saved_model.accuracy"] > 0.3
    # Said again, the section takes the place of the earlier one.
    words[2], words[4] = "saved_model", "none"
    run_export(capsys, *words)
    card = client.get_model_version_by_alias("pixels", "champion").description
    assert card.startswith("Tells digits.\n\n## Size\n\nsmall\n\n## Exports\n")
    assert card.count("## Exports") == 1
    assert "| saved_model&emsp; |" in card
    assert "litert" not in card


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["models:/pixels@champion", "--to", "litrt"], "Did you mean 'litert'"),
        (["models:/pixels@champion", "--quantize", "int4"], "Did you mean 'int8'"),
        (["models:/pixels@champion", "--to", "saved_model", "--quantize", "int8"], "None for the"),
        (["models:/forgotten@champion"], "Expected a test split among the inputs of the run"),
        (["models:/m-" + "0" * 32], "Expected a version"),
        (["models:/pixels@champoin"], "Did you mean 'champion'"),
    ],
)
def test_what_cannot_be_exported_is_refused(registered, tmp_path, capsys, words, why):
    assert why in run_export(capsys, *words, "--output", str(tmp_path / "out")).err
    assert not (tmp_path / "out").exists()
