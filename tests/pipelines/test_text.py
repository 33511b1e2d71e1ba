"""Texts end to end: registered models that take strings, of a demo and of pairs."""

import contextlib
import csv
import io
import json
import logging
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds
from processes import run_python
from repository import ROOT

import reusekit as rk
from reusekit import stages
from reusekit.cli import predict
from reusekit.settings import BackboneSettings, DataSettings
from reusekit.stages.baselines import linear_on_inputs

QUICK = [
    f"--config={ROOT / 'configs' / 'text.yaml'}",
    "--search.cuts=[block1_out]",
    "--search.max_trials=2",
    "--search.epochs=15",
    "--finetune.epochs=2",
    "--finetune.frozen_up_to=block1_attention_add",  # inside of a block
    "--baselines.from_scratch=false",
]


@pytest.fixture(scope="module")
def finished(run_pipeline, module_tracking):
    """The folder of the job, MLflow's client, what was printed, and what TensorFlow warned of."""
    printed, warned = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(warned)
    logging.getLogger("tensorflow").addHandler(handler)
    with contextlib.redirect_stdout(printed):
        run_pipeline("cut_search", *QUICK)
    logging.getLogger("tensorflow").removeHandler(handler)
    return Path.cwd(), module_tracking, printed.getvalue(), warned.getvalue()


@pytest.fixture(scope="module")
def test_texts():
    split = rk.data.load("python_topics", "test")
    texts, labels = split.arrays()
    return [text.decode() for text in texts], np.array(split.class_names)[labels]


def test_texts_are_recorded_as_they_came(finished):
    _, client, *_ = finished
    version = client.get_model_version_by_alias("topics", "champion")
    inputs = {
        each.tags[0].value: each.dataset
        for each in client.get_run(version.run_id).inputs.dataset_inputs
    }
    few = rk.data.Treatment(examples_per_class=20)
    expected = rk.data.load("python_topics", "train", treatment=few)
    assert inputs["training"].digest == expected.fingerprint
    assert version.tags["reusekit.data"] == expected.fingerprint
    assert version.description.startswith("Classifies texts into 8 classes.")


def test_topics_never_seen_are_told_beside_rivals(finished):
    _, client, printed, warned = finished
    experiment = client.get_experiment_by_name("topics")
    runs = {
        run.info.run_name: run.data.metrics
        for run in client.search_runs([experiment.experiment_id])
    }
    transfer, linear, constant = (
        runs[f"test{rival}"]["accuracy"] for rival in ("", " logistic regression", " constant")
    )
    assert min(transfer, linear) > 2 * constant  # two trials of one cut are no fair contest
    assert "logistic regression on" in printed
    assert "AutoGraph" not in warned


def test_the_champion_takes_strings_where_reusekit_is_not(finished, test_texts, tmp_path):
    folder, client, *_ = finished
    texts, labels = test_texts
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    code = (
        "import sys\n"
        # Importing either is an ImportError from here on.
        "sys.modules['reusekit'] = sys.modules['reusekit_mlflow'] = None\n"
        "import keras, mlflow, numpy\n"
        f"mlflow.set_tracking_uri({mlflow.get_tracking_uri()!r})\n"
        "model = mlflow.keras.load_model('models:/topics@champion')\n"
        f"texts = open({str(tmp_path / 'texts.txt')!r}).read().split('\\n')\n"
        "given = keras.ops.convert_to_tensor(texts)\n"
        f"numpy.save({str(tmp_path / 'out.npy')!r}, model.predict(given, verbose=0))\n"
    )
    done = run_python(code, folder=folder)
    assert done.returncode == 0, done.stderr
    names = np.array(rk.data.load("python_topics", "test").class_names)
    there = names[np.load(tmp_path / "out.npy").argmax(axis=1)]
    run_id = client.get_model_version_by_alias("topics", "champion").run_id
    logged = mlflow.get_run(run_id).data.metrics
    assert np.mean(there == labels) == pytest.approx(logged["test_accuracy"])
    table, answers = tmp_path / "texts.csv", tmp_path / "answers.csv"
    pd.DataFrame({"said": texts}).to_csv(table, index=False)
    predict("models:/topics@champion", table=str(table), output=str(answers))
    assert pd.read_csv(answers)["label"].tolist() == there.tolist()


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A table of texts with stars that some words tell; some are long."""
    numbers = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    with file.open("w", newline="") as written:
        rows = csv.writer(written)
        rows.writerow(["text", "stars", "clear", "broken", "verdict"])
        for number in range(160):
            good = numbers.random()
            words = numbers.choice(["clear", "broken"], 3 + number % 10, p=[good, 1 - good])
            text = f"Review {number} is {', '.join(words)}."
            said = [int(word in words) for word in ("clear", "broken")]
            rows.writerow([text, f"{1 + 4 * good:.3f}", *said, ("poor", "fine")[good > 0.5]])
    return file


def test_a_table_of_texts_tells_numbers(reviews, module_tracking, capsys):
    data = DataSettings(table=str(reviews), input="text", label="stars", sequence_length=8)
    backbone = stages.load_backbone(BackboneSettings(source="reusekit/prosenet"))
    splits = stages.load_data(data, backbone, seed=0)
    assert "of the training texts have more than 8 tokens" in capsys.readouterr().err
    assert (splits.train.task.kind, splits.train.input_shape) == ("regression", (8,))
    with mlflow.start_run():
        rival = linear_on_inputs(splits)
    assert rival.name in ("ridge regression on words", "ridge regression on parts of words")
    assert rival.test.scores["r2"] > 0.4


SEARCHED = [
    "--backbone.source=reusekit/prosenet",
    "--search.cuts=[block1_out]",
    "--search.max_trials=1",
    "--search.epochs=20",
    "--finetune.share=0",
]


def test_a_table_of_texts_tells_classes_and_several_labels(
    reviews, run_pipeline, module_tracking, tmp_path
):
    run_pipeline(
        "cut_search",
        f"--data.table={reviews}",
        "--data.input=text",
        "--data.label={verdict: verdict, faults: [clear, broken]}",
        "--search.learning_rate=[0.05, 0.05]",
        "--tracking.model=words",
        *SEARCHED,
    )
    version = module_tracking.get_model_version_by_alias("words", "champion")
    measured = module_tracking.get_run(version.run_id).data.metrics
    assert measured["test_faults_f1"] > 0.7 and measured["test_verdict_accuracy"] > 0.5
    assert "Says of texts which of 2 labels apply" in version.description
    frame = pd.read_csv(reviews)
    found = rk.predict("models:/words@champion", frame["text"], probabilities=True)
    labels, chosen = ["clear", "broken"], json.loads(version.tags["reusekit.thresholds"])
    every = pd.DataFrame(found["faults_probabilities"].tolist())[labels].to_numpy()
    told = np.array([[name in row for name in labels] for row in found["faults"]])
    sure = np.abs(every - chosen["faults"]) > 1e-4  # the tag has six digits
    assert np.array_equal(told[sure], (every >= chosen["faults"])[sure]) and sure.mean() > 0.9
    assert {tuple(told) for told in found["faults"]} >= {("clear",), ("broken",)}
    assert np.mean(found["verdict"] == frame["verdict"]) > 0.65
    # The column of texts is found among others, in whatever order they come.
    asked = mlflow.pyfunc.load_model("models:/words@champion").predict(frame[["stars", "text"]])
    assert asked["verdict"].equals(found["verdict"]) and asked["faults"].equals(found["faults"])
    answers = tmp_path / "answers.csv"
    predict("models:/words@champion", table=str(reviews), output=str(answers))
    written = pd.read_csv(answers)
    assert written["faults"].map(json.loads).tolist() == found["faults"].tolist()
    assert written["verdict"].tolist() == found["verdict"].tolist()


def test_pairs_of_texts_of_the_catalogue(run_pipeline, module_tracking):
    texts = {"sentence1": ["Close it.", "Read it."], "sentence2": ["Shut it.", "Eat it."]}
    data = DataSettings(name="glue/mrpc", test="test[32:]", input=[*texts], label="label")
    with tfds.testing.mock_data(num_examples=64):
        run_pipeline(
            "cut_search", "--data.name=glue/mrpc", "--data.input=[sentence1, sentence2]",
            "--data.label=label", "--tracking.model=mrpc", *SEARCHED, "--search.epochs=2",
            "--data.sequence_length=16",
        )  # fmt: skip
        version = module_tracking.get_model_version_by_alias("mrpc", "champion")
        tested = stages.evaluate_version(version, data)
    measured = module_tracking.get_run(version.run_id).data.metrics
    assert 0 <= measured["test_accuracy"] <= 1
    assert tested.outputs.shape == (64, 2)  # mock data know no slices
    found = rk.predict("models:/mrpc@champion", texts)
    assert set(found["label"]) <= {"equivalent", "not_equivalent"}
    asked = mlflow.pyfunc.load_model("models:/mrpc@champion").predict(pd.DataFrame(texts))
    assert asked["label"].equals(found["label"])
