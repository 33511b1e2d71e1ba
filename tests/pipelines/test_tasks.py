"""Numbers and several labels, each from a configuration to a registered model and beyond."""

import io
import json
import re
import shlex
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from data_builders import F, prepare
from PIL import Image

from reusekit.cli import predict
from reusekit.launch import launch_one_of
from reusekit.tracking.registry import recorded_splits

QUICK = ["--search.max_cuts=1", "--search.max_trials=1", "--search.epochs=8", "--finetune.share=0"]


def champion(client, name):
    version = client.get_model_version_by_alias(name, "champion")
    children = client.search_runs(
        [client.get_run(version.run_id).info.experiment_id],
        f"tags.`mlflow.parentRunId` = '{version.run_id}'",
    )
    return version, client.get_run(version.run_id), {one.info.run_name: one for one in children}


def test_numbers_are_predicted_from_a_configuration_on(run_pipeline, tracking, capsys):
    run_pipeline(
        "finetune",
        "--cut=block4_out",
        "--data.name=sklearn_digits",
        "--data.task=regression",
        "--data.train=train[:120]",
        "--data.validation=validation[:100]",
        "--data.test=test[:100]",
        "--head.epochs=10",
        "--finetune.epochs=1",
        "--finetune.share=0.3",
        "--baselines.linear=true",
        "--baselines.constant=true",
        "--tracking.model=value",
    )
    assert "Mean absolute error on" in capsys.readouterr().out
    version, run, children = champion(tracking, "value")
    measured = run.data.metrics
    assert measured.keys() >= {"test_mean_absolute_error", "test_r2", "val_mean_absolute_error"}
    assert measured["test_mean_absolute_error"] < 2.2  # the mean of all is off by 2.5
    rivals = {name: one.data.metrics for name, one in children.items() if name.startswith("test ")}
    assert rivals["test constant"]["r2"] < 0.05 < rivals["test ridge regression"]["r2"]
    assert version.description.startswith("Predicts label of images.")
    assert "| mean absolute error&emsp; |" in version.description
    files = {one.path for one in tracking.list_artifacts(version.run_id)}
    assert files >= {"numbers.json", "residuals.png"} and "confusion.png" not in files
    page = Path(tracking.download_artifacts(version.run_id, "report.html")).read_text("utf-8")
    assert "Not shown: the task is regression." in page and page.count("data:image/png") > 12
    assert "Largest errors" in page and page.count(", off by ") == 12
    assert mlflow.keras.load_model("models:/value@champion").output_shape == (None, 1)


def pictures(count: int, seed: int):
    """Pictures with a bright bar across, one upright, both or none."""
    numbers = np.random.default_rng(seed)
    for _ in range(count):
        across, upright = numbers.random(2) < (0.5, 0.3)
        image = numbers.integers(0, 90, (32, 32, 1))
        place = numbers.integers(4, 28)
        image[place : place + 3] += 150 * int(across)
        image[:, place : place + 3] += 150 * int(upright)
        image = image.clip(0, 255).astype("uint8")
        yield {"image": image, "across": bool(across), "upright": bool(upright)}


def test_several_labels_are_told_from_a_configuration_on(run_pipeline, tracking, tmp_path, capsys):
    name = prepare(
        tmp_path,
        "bars",
        {"image": F.Image(shape=(32, 32, 1)), "across": np.bool_, "upright": np.bool_},
        {part: pictures(*one) for part, one in
         {"train": (80, 0), "validation": (60, 1), "test": (80, 2)}.items()},
        supervised=None,
    )  # fmt: skip
    data = [f"--data.name={name}", f"--data.data_dir={tmp_path}", "--data.input=image"]
    data.append("--data.label=[across,upright]")
    tracked = ["--tracking.model=bars"]
    run_pipeline("cut_search", *data, *QUICK, *tracked, "--baselines.linear=true")
    assert "F1 on 80 test examples" in capsys.readouterr().out
    version, run, children = champion(tracking, "bars")
    assert run.data.metrics.keys() >= {"test_f1", "test_auc", "test_loss", "val_f1"}
    assert run.data.metrics["test_auc"] > 0.7
    assert {"val_auc", "val_accuracy"} <= next(
        one.data.metrics for one in children.values() if one.data.tags["reusekit.kind"] == "trial"
    ).keys()
    files = {one.path for one in tracking.list_artifacts(version.run_id)}
    assert files >= {"labels.json", "auc_over_depth.png"}
    page = Path(tracking.download_artifacts(version.run_id, "report.html")).read_text("utf-8")
    assert 0 < page.count(", explained: ") == page.count('class="map"') <= 12
    assert "Auc over depth" in page and "Not shown: the task is multilabel." in page
    file = tracking.download_artifacts(version.run_id, "labels.json", str(tmp_path))
    told = [row[1] for row in json.loads(Path(file).read_text())["data"]]
    assert told == pytest.approx(json.loads(version.tags["reusekit.thresholds"]), abs=1e-5)
    assert version.description.startswith("Says of images which of 2 labels apply.")
    assert recorded_splits(version)[0].class_names == ("across", "upright")


def test_several_tasks_at_once_from_a_configuration_on(run_pipeline, tracking, tmp_path, capsys):
    rows = {
        part: [one | {"ink": float(one["image"].mean())} for one in pictures(*drawn)]
        for part, drawn in {"train": (60, 0), "validation": (40, 1), "test": (40, 2)}.items()
    }
    features = {"image": F.Image(shape=(32, 32, 1)), "across": np.bool_, "upright": np.bool_}
    features["ink"] = np.float32
    name = prepare(tmp_path, "inked_bars", features, rows, supervised=None)
    data = [f"--data.name={name}", f"--data.data_dir={tmp_path}", "--data.input=image"]
    data.append("--data.label={bar: across, both: [across, upright], ink: ink}")
    x = y = keras.Input((32, 32, 1))
    for number in range(3):
        conv = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name=f"conv{number}")
        y = conv(y if number else keras.layers.Rescaling(1 / 255)(x))
    keras.Model(x, y).save(tmp_path / "small.keras")
    tracked = ["--tracking.model=inked", f"--backbone.source={tmp_path / 'small.keras'}"]
    quick = [*QUICK[:3], "--finetune.epochs=1", "--finetune.frozen_up_to=conv1"]
    rivals = ["--baselines.linear=true", "--baselines.constant=true"]
    run_pipeline("cut_search", *data, *quick, *rivals, *tracked)
    said = capsys.readouterr().out
    assert "Relative loss on 40 test examples" in said and "All by both label on the test" in said
    version, run, children = champion(tracking, "inked")
    measured = run.data.metrics
    assert measured.keys() >= {"test_bar_accuracy", "test_both_f1", "test_ink_r2"}
    constant = children["test constant"].data.metrics
    assert constant["relative_loss"] == pytest.approx(1, abs=0.2) and constant["ink_r2"] < 0.05
    files = {one.path for one in tracking.list_artifacts(version.run_id)}
    assert files >= {
        "bar_classes.json",
        "bar_confusion.png",
        "both_labels.json",
        "ink_numbers.json",
    }
    assert version.description.startswith("Classifies images into 2 classes (bar). Says of images")
    assert json.loads(version.tags["reusekit.thresholds"]).keys() == {"both"}

    images = np.stack([row["image"] for row in rows["test"][:3]])
    answers = mlflow.pyfunc.load_model("models:/inked@champion")
    assert answers.metadata.signature.outputs.input_names() == [
        "bar", "bar_probability", "both", "both_probability", "ink"
    ]  # fmt: skip
    told = answers.predict(images)
    assert list(told) == ["bar", "bar_probability", "both", "both_probability", "ink"]
    assert set(told["bar"]) <= {"False", "True"}
    for number, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    launch_one_of({"predict": predict}, ["predict", "models:/inked@champion", *files])
    by_file = pd.read_csv(io.StringIO(capsys.readouterr().out), dtype={"bar": str})
    assert by_file["both"].map(json.loads).tolist() == told["both"].tolist()
    np.testing.assert_allclose(by_file["ink"], told["ink"], rtol=1e-4)
    whole = mlflow.keras.load_model("models:/inked@champion")
    assert set(whole.predict(images, verbose=0)) == {"bar", "both", "ink"}
    assert recorded_splits(version)[0].class_names["both"] == ("across", "upright")
    untrained = ["--head.epochs=1", "--head.learning_rate=1e-6", "--finetune.share=0"]
    run_pipeline("finetune", "--cut=conv0", *untrained, *data, *tracked)
    printed = re.search("promote.py (.*)", capsys.readouterr().out)[1]  # with the data in it
    run_pipeline("promote", *shlex.split(printed))
    assert "does not become inked@champion: relative_loss " in capsys.readouterr().out
    experiment = tracking.get_experiment_by_name("reusekit").experiment_id
    (decided,) = tracking.search_runs([experiment], "tags.`reusekit.decision` = 'refuse'")
    reached = decided.data.metrics["champion_relative_loss"]
    assert reached == pytest.approx(run.data.metrics["test_relative_loss"], rel=1e-4)
    file = tracking.download_artifacts(decided.info.run_id, "predictions.csv", str(tmp_path))
    assert {"label bar", "candidate both across", "champion ink"} <= {*pd.read_csv(file)}
