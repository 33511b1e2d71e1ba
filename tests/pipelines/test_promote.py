"""A candidate becomes the champion where it wins on data that neither has seen."""

import os
import re
import shlex
from dataclasses import replace
from functools import cache
from itertools import count

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier

import reusekit as rk
from reusekit import stages
from reusekit.launch import EXIT_BAD_INPUT
from reusekit.settings import DataSettings, PromoteSettings, TrackingSettings
from reusekit.tracking import log_data

GREY, COLOUR = (8, 8, 1), (16, 16, 3)
NUMBERS = count()


@cache
def digits(split: str, shape: tuple[int, int, int] = GREY, **options):
    treatment = rk.data.Treatment(image_size=shape[:2], channels=shape[2], **options)
    return rk.data.load("sklearn_digits", split, treatment=treatment)


def linear(shape: tuple[int, int, int], examples_per_class: int, seed: int = 0) -> keras.Model:
    """A linear classifier of digits as a Keras model, better the more examples it was fitted to."""
    few = {"examples_per_class": examples_per_class, "seed": seed}
    images, labels = digits("train", shape, **few).arrays()
    fitted = RidgeClassifier().fit(images.reshape(len(images), -1) / 255, labels)
    model = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.layers[-1].set_weights([fitted.coef_.T, fitted.intercept_])
    return model


def broken() -> keras.Model:
    """Return a model whose training diverged: nothing it gives is finite."""
    model = of_shape(GREY, 10)
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    return model


def two_inputs() -> keras.Model:
    inputs = [keras.Input(GREY), keras.Input(GREY)]
    flat = keras.layers.Flatten()(keras.layers.Add()(inputs))
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(flat))


def of_shape(shape, classes: int) -> keras.Model:
    pooling = keras.layers.GlobalAveragePooling2D()
    return keras.Sequential([keras.Input(shape), pooling, keras.layers.Dense(classes)])


def reversed_classes() -> keras.Model:
    """As good as "good", of the same classes in another order."""
    model = keras.models.clone_model(linear(GREY, 40))
    model.set_weights([weight[..., ::-1] for weight in linear(GREY, 40).get_weights()])
    return model


MODELS = {
    "reversed": reversed_classes,
    "other classes": lambda: linear(GREY, 40),
    "weak": lambda: linear(GREY, 2),
    "in memory": lambda: model("weak"),
    "good": lambda: linear(GREY, 40),
    "as good": lambda: linear(GREY, 40, seed=1),
    "colour": lambda: linear(COLOUR, 20),
    "broken": broken,
    "two inputs": two_inputs,
    "any size": lambda: of_shape((None, None, 1), 10),
    "three classes": lambda: of_shape(GREY, 3),
}


@cache
def model(kind: str) -> keras.Model:
    return MODELS[kind]()


@pytest.fixture(scope="module")
def logged(module_tracking):
    """Log each kind of model once, with a record of the data; where it is, by its kind."""
    uris = {}

    def log(kind: str) -> str:
        if kind not in uris:
            with mlflow.start_run():
                train = digits("train")
                names = {
                    "reversed": train.class_names[::-1],
                    "other classes": (*train.class_names[:-1], "ten"),
                }.get(kind, train.class_names)
                if names != train.class_names:  # then it is other data, too
                    train = replace(train, task=replace(train.task, names=names), fingerprint=kind)
                if kind == "in memory":
                    train = replace(train, origin={}, fingerprint=kind)
                log_data(train, "training")
                log_data(digits("validation"), "validation")
                uris[kind] = mlflow.keras.log_model(
                    model(kind), name="whole", pip_requirements=["keras"]
                ).model_uri
        return uris[kind]

    return log


@pytest.fixture
def register(module_tracking, logged):
    """Register models under a name of their own; the first is the champion."""

    def registered(*kinds: str, champion: bool = True) -> str:
        name = f"digits {next(NUMBERS)}"
        tags = {"reusekit.data": digits("train").fingerprint}
        for kind in kinds:
            mlflow.register_model(logged(kind), name, tags=tags)
        if champion:
            module_tracking.set_registered_model_alias(name, "champion", "1")
        return name

    return registered


@pytest.fixture
def promote(run_pipeline):
    def run(name: str, *words: str) -> None:
        run_pipeline("promote", "--data.name=sklearn_digits", "--tracking.model", name, *words)

    return run


def accuracy(kind: str, shape=GREY) -> float:
    images, labels = digits("test", shape).arrays()
    return float(np.mean(model(kind).predict(images, verbose=0).argmax(axis=1) == labels))


def champion_of(client, name: str) -> int:
    return int(client.get_registered_model(name).aliases["champion"])


def evaluation_of(client, name: str):
    """The run of the last promotion of a name, or None."""
    experiment = client.get_experiment_by_name("reusekit")
    runs = client.search_runs(
        [experiment.experiment_id] if experiment else [],
        f"tags.`reusekit.kind` = 'evaluation' and attributes.run_name LIKE '{name} version %'",
    )
    return runs[0] if runs else None


def test_a_better_candidate_becomes_the_champion_and_goes_back(
    register, promote, run_pipeline, module_tracking, capsys
):
    name = register("weak", "good")
    promote(name)
    assert champion_of(module_tracking, name) == 2
    run = evaluation_of(module_tracking, name)
    measured = run.data.metrics
    assert measured["champion_accuracy"] == pytest.approx(accuracy("weak"))
    assert measured["candidate_accuracy"] == pytest.approx(accuracy("good"))
    assert measured["difference"] == pytest.approx(
        measured["candidate_accuracy"] - measured["champion_accuracy"]
    )
    assert 0 < measured["difference_low"] < measured["difference"] < measured["difference_high"]
    assert run.data.tags["reusekit.decision"] == "promote"
    assert run.inputs.dataset_inputs[0].dataset.digest == digits("test").fingerprint
    tags = module_tracking.get_model_version(name, "2").tags
    assert f"accuracy {accuracy('good'):.4f} against" in tags["reusekit.promoted"]
    assert run.data.tags["mlflow.parentRunId"] in tags["reusekit.promoted"]
    assert tags["reusekit.previous.champion"] == "1"
    table = pd.read_csv(
        module_tracking.download_artifacts(run.info.run_id, "predictions.csv", os.getcwd())
    )
    assert (table.label == digits("test").arrays()[1]).all()
    assert np.mean(table.candidate == table.label) == pytest.approx(accuracy("good"))
    printed = capsys.readouterr().out
    assert f"Version 2 is now {name}@champion" in printed
    command = re.search("Back to version 1: python pipelines/rollback.py (.*)", printed)[1]
    run_pipeline("rollback", *shlex.split(command), "--reason=it fails at night")
    assert f"{name}@champion is version 1 again; it was version 2" in capsys.readouterr().out
    assert champion_of(module_tracking, name) == 1
    tags = module_tracking.get_model_version(name, "2").tags
    assert "it fails at night" in tags["reusekit.rolled_back"]


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (("weak", "broken"), ()),
        (("good", "good"), ()),
        (("weak", "good"), ("--promote.margin=0.3",)),
        (("good", "as good"), ()),
    ],
    ids=["broken", "equal", "by less than the margin", "by chance"],
)
def test_any_other_candidate_does_not(kinds, words, register, promote, module_tracking, capsys):
    name = register(*kinds)
    promote(name, *words)
    assert champion_of(module_tracking, name) == 1
    run = evaluation_of(module_tracking, name)
    margin = float(words[0].partition("=")[2]) if words else 0.0
    assert run.data.metrics["difference_low"] <= margin
    assert run.data.tags["reusekit.decision"] == "refuse"
    tags = module_tracking.get_model_version(name, "2").tags
    assert f"not wholly above the margin of {margin:g}" in tags["reusekit.refused"]
    assert "reusekit.promoted" not in tags
    assert f"Version 2 does not become {name}@champion" in capsys.readouterr().out


def test_each_version_gets_images_of_the_size_that_it_takes(register, promote, module_tracking):
    name = register("weak", "colour")
    promote(name, "--promote.candidate=2", "--promote.confidence=0.9")
    assert champion_of(module_tracking, name) == 2
    measured = evaluation_of(module_tracking, name).data.metrics
    assert measured["candidate_accuracy"] == pytest.approx(accuracy("colour", COLOUR))


def test_classes_in_another_order_are_told_by_their_names(register, promote, module_tracking):
    # pipeline B2
    name = register("weak", "reversed")
    promote(name)
    assert champion_of(module_tracking, name) == 2
    measured = evaluation_of(module_tracking, name).data.metrics
    assert measured["candidate_accuracy"] == pytest.approx(accuracy("good"))


def test_a_margin_below_nothing_lets_one_in_that_is_hardly_worse(
    register, promote, module_tracking
):
    name = register("good", "as good")
    promote(name, "--promote.margin=-0.1")
    assert champion_of(module_tracking, name) == 2


def test_the_first_champion_needs_no_rival(
    register, promote, module_tracking, run_pipeline, capsys
):
    name = register("weak", champion=False)
    module_tracking.set_registered_model_alias(name, "candidate", "1")
    promote(name, "--promote.candidate=candidate")
    assert champion_of(module_tracking, name) == 1
    tags = module_tracking.get_model_version(name, "1").tags
    assert "no version had it before" in tags["reusekit.promoted"]
    assert "reusekit.previous.champion" not in tags
    with pytest.raises(SystemExit):
        run_pipeline("rollback", "--tracking.model", name)
    assert "nothing on record to go back to" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(register, promote, module_tracking, capsys):
    name = register("weak", "good")
    before = sorted(os.listdir())
    promote(name, "--dry_run", "--output=dry")
    assert f"Version 2 would become {name}@champion" in capsys.readouterr().out
    assert champion_of(module_tracking, name) == 1
    assert evaluation_of(module_tracking, name) is None
    assert list(module_tracking.get_model_version(name, "2").tags) == ["reusekit.data"]
    assert sorted(os.listdir()) == before


def test_it_says_where_it_cannot_tell_what_a_version_was_trained_on(
    register, promote, module_tracking, capsys
):
    name = register("weak", "in memory", "reversed")
    files = module_tracking.get_model_version_download_uri(name, "1")
    module_tracking.create_model_version(name, files)
    for version, why in (
        ("2", "memory and is not kept."),
        ("3", "has other examples now than when it was trained."),
        ("4", "it is not on record."),
    ):
        promote(name, "--dry_run", f"--promote.candidate={version}")
        said = capsys.readouterr().out
        assert f"Whether version {version} has seen this split cannot be told" in said
        assert why in said
        assert "Whether version 1" not in said


def test_fresh_pictures_of_another_folder_are_no_part_of_the_training_data(
    register, module_tracking, tmp_path
):
    data = load_digits()
    for number, (image, digit) in enumerate(zip(data.images[:150], data.target, strict=False)):
        folder = tmp_path / ("old" if number < 80 else "fresh") / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).save(folder / f"{number}.png")
    treatment = rk.data.Treatment(image_size=GREY[:2], channels=1)
    with mlflow.start_run():
        log_data(rk.data.from_folder(tmp_path / "old", "train", treatment=treatment), "training")
        uri = mlflow.keras.log_model(model("good"), name="whole").model_uri
    version = mlflow.register_model(uri, "of a folder")
    every = rk.data.Shares(train=0, validation=0, test=1)
    tested = stages.evaluate_version(
        version, DataSettings(folder=str(tmp_path / "fresh"), shares=every)
    )
    assert tested.split.size == 70
    assert "old, train, is not where the settings say" in tested.unknown
    (tmp_path / "old").rename(tmp_path / "moved")
    with pytest.raises(rk.ConfigError, match="shares examples with its training data"):
        stages.evaluate_version(version, DataSettings(folder=str(tmp_path / "moved"), test="train"))


@pytest.mark.parametrize(
    ("kinds", "words", "says"),
    [
        (("weak", "good"), ["--data.test=train"], "shares examples with its training data"),
        (("weak", "good"), ["--data.test=train[:100]"], "shares examples with its training data"),
        (("weak", "good"), ["--data.test=validation"], "shares examples with its validation data"),
        (("weak", "good"), ["--data.test=tset"], "Did you mean 'test'"),
        (("weak", "good"), ["--data.test=test[:20]"], "Expected 30 examples at least"),
        (("weak", "good"), ["--promote.candidate=3"], "Choose one that is there: 1, 2"),
        (("weak", "good"), ["--promote.candidate=champoin"], "Did you mean 'champion'"),
        (("weak", "good"), ["--promote.candidate=champion"], "without the alias 'champion'"),
        (("weak", "other classes"), [], "trained on other classes"),
        (("weak", "good"), ["--promote.margin=2"], "above -1 and below 1"),
        (
            ("weak", "good"),
            ["--tracking.model=nothing like it"],
            "Expected the name of a registered model",
        ),
        (("weak", "two inputs"), [], "with 2 inputs and 1 outputs"),
        (("weak", "any size"), [], "takes inputs of any size"),
        (("weak", "three classes"), [], "Received: (8, 8, 1) into (3,)"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    kinds, words, says, register, promote, module_tracking, capfd
):
    name = register(*kinds)
    with pytest.raises(SystemExit) as stopped:
        promote(name, *words)
    assert stopped.value.code == EXIT_BAD_INPUT
    *_, last = capfd.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert says in last
    assert champion_of(module_tracking, name) == 1
    assert evaluation_of(module_tracking, name) is None


def test_a_champion_that_changed_while_it_was_compared_stays(register, module_tracking, tmp_path):
    name = register("weak", "good", "good")
    settings, registry = PromoteSettings(candidate=3), TrackingSettings(model=name)
    contest = stages.find_contest(settings, registry)
    candidate, champion = (
        stages.evaluate_version(version, DataSettings(name="sklearn_digits"))
        for version in (contest.candidate, contest.champion)
    )
    verdict = stages.judge(candidate, champion, settings, seed=0)
    assert verdict.wins
    module_tracking.set_registered_model_alias(name, "champion", "2")
    with pytest.raises(
        rk.TrackingError, match=r"Received: version 2, since it was moved meanwhile"
    ):
        stages.carry_out(verdict, settings, registry, tmp_path, seed=0)
    assert champion_of(module_tracking, name) == 2
    assert evaluation_of(module_tracking, name).info.status == "FAILED"
    assert "reusekit.promoted" not in module_tracking.get_model_version(name, "3").tags


def test_a_version_whose_files_are_gone_cannot_be_compared(
    register, promote, module_tracking, capfd
):
    name = register("weak")
    module_tracking.create_model_version(name, "file:///nowhere")
    with pytest.raises(SystemExit):
        promote(name)
    assert f"of models:/{name}/2. Received: none" in capfd.readouterr().err
    assert champion_of(module_tracking, name) == 1
