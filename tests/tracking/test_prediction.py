"""Raw inputs go in, and names come out, whichever way a model is asked."""

import base64
import json
import re
import threading
import time
from contextlib import contextmanager
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import uvicorn
from keras import layers
from mlflow.pyfunc import scoring_server
from PIL import Image
from tracking.small_models import CUT, X, backbone, register, with_head

import reusekit as rk
from reusekit.cli import predict
from reusekit.data import Treatment
from reusekit.launch import launch_one_of
from reusekit.surgery import prepend
from reusekit.tracking import Usage, combine
from reusekit.tracking.registry import logged_model_id
from reusekit.tracking.usage import USAGE

KINDS = ("cat", "dog", "b64")
SMALL = Treatment(image_size=(8, 8), channels=3)


def image_model(size=8):
    """Its classes are the red, green and blue that a picture has most of."""
    inputs = keras.Input((size, size, 3), name="pixels")
    x = layers.GlobalAveragePooling2D(name=CUT)(layers.Rescaling(1 / 255)(inputs))
    x = layers.Dense(3, name="same", kernel_initializer="identity")(x)
    return keras.Model(inputs, layers.Softmax(name="probabilities")(x), name="colours")


def text_model():
    """Its classes are the words that a text has most of."""
    inputs = keras.Input((), dtype="string", name="text")
    words = layers.TextVectorization(vocabulary=["good", "bad"], output_mode="count", name="words")
    x = layers.Dense(
        2, name=CUT, kernel_initializer=keras.initializers.Constant([[0, 0], [1, 0], [0, 1]])
    )(words(inputs))
    return keras.Model(inputs, layers.Softmax(name="probabilities")(x), name="tone")


def picture(colour, size=(20, 10), form="PNG"):
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


PICTURES = [picture((0, 200, 0)), picture((250, 10, 0), form="JPEG")]


@pytest.fixture(scope="module")
def registered(module_tracking, tmp_path_factory):
    """A model of each kind in the registry, all with names."""
    folder = tmp_path_factory.mktemp("written")
    body = backbone()
    wanted = {
        "colours": (
            image_model(),
            Usage(kind="classification", names=KINDS, treatment=SMALL),
        ),
        "alone": (image_model(), Usage(kind="classification", names=KINDS, treatment=SMALL)),
        "tone": (text_model(), Usage(kind="classification", names=("good", "bad"))),
        "mood": (text_model(), Usage(kind="multilabel", names=("glad", "sad"), columns=("a",))),
        "labels": (
            with_head(body, 0),
            Usage(kind="multilabel", names=KINDS, thresholds=(0.0, 0.3, 1.0)),
        ),
        "numbers": (
            with_head(body, 1, classes=2),
            Usage(kind="regression", names=("height", "width"), columns=tuple("abcdef")),
        ),
    }
    for name, (model, usage) in wanted.items():
        register(folder / name, name, model, usage, standalone=name == "alone")
    return {name: model for name, (model, _) in wanted.items()}


@pytest.fixture(scope="module")
def served(registered):
    """MLflow's own models, each loaded once."""
    return {name: mlflow.pyfunc.load_model(f"models:/{name}@champion") for name in registered}


@pytest.mark.parametrize("name", ["colours", "alone"])
def test_pictures_are_known_by_their_files_and_by_their_bytes(served, tmp_path, name):
    paths = [tmp_path / "one.png", tmp_path / "two.jpg"]
    for path, data in zip(paths, PICTURES, strict=True):
        path.write_bytes(data)
    colours = served[name]
    texts = [str(path) for path in paths]
    coded = [base64.b64encode(data).decode() for data in PICTURES]
    for inputs in (
        paths,
        texts,
        np.array(texts),
        PICTURES,
        pd.DataFrame({"file": texts}),
        {"b64": coded},
        [np.asarray(Image.open(path)) for path in paths],
    ):
        found = colours.predict(inputs)
        assert list(found.columns) == ["label", "probability"]
        assert found["label"].tolist() == ["dog", "cat"]
        assert found["probability"].between(1 / 3, 1).all()
    assert colours.predict(texts[0])["label"].tolist() == ["dog"]


def test_a_picture_is_brought_to_size_as_in_training(registered, tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (31, 17, 3), np.uint8)
    path = tmp_path / "train" / "cat" / "noise.png"
    Image.fromarray(noise).save(path)
    (tmp_path / "train" / "dog").mkdir()
    (tmp_path / "train" / "dog" / "dog.png").write_bytes(PICTURES[0])
    data = rk.data.from_folder(
        tmp_path, "train", treatment=Treatment(image_size=(8, 8), resize="crop")
    )
    (x, _), *_ = data.examples.as_numpy_iterator()
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.Flatten(), layers.Dense(2)])
    expected = model.predict(x[None], verbose=0).max()
    for way in ([path], [path.read_bytes()], [noise]):
        found = rk.predict(model, way, data=data)
        assert found["probability"][0] == pytest.approx(expected, rel=1e-4)


def test_probabilities_of_all_are_given_where_they_are_asked_for(registered, served):
    x = np.random.default_rng(0).uniform(0, 255, (5, 8, 8, 3)).astype("float32")
    expected = registered["colours"].predict(x, verbose=0)
    by_mlflow = served["colours"].predict(x, params={"probabilities": True})
    by_us = rk.predict("models:/colours@champion", x, probabilities=True)
    for found in (by_mlflow, by_us):
        np.testing.assert_allclose([list(row.values()) for row in found["probabilities"]], expected)
        assert found["probabilities"][0].keys() == set(KINDS)
        assert found["label"].tolist() == [KINDS[best] for best in expected.argmax(axis=1)]
        np.testing.assert_allclose(found["probability"], expected.max(axis=1))


def test_texts_are_known_by_their_words(served, tmp_path):
    said = ["good", "bad bad good", "Good!"]
    for inputs in (
        said,
        np.array(said),
        pd.Series(said),
        pd.DataFrame({"said": said}),
        {"text": said},
    ):
        assert served["tone"].predict(inputs)["label"].tolist() == ["good", "bad", "good"]
    assert served["tone"].predict("bad")["label"].tolist() == ["bad"]
    split = rk.data.from_arrays(["bad", "good"], ["good", "bad"])  # whose arrays are of bytes
    found = rk.predict("models:/tone@champion", split.arrays()[0])
    assert found["label"].tolist() == ["bad", "good"] and len(split) == 2
    (tmp_path / "one.txt").write_text("bad")
    assert rk.predict("models:/tone/1", [tmp_path / "one.txt"])["label"].tolist() == ["bad"]


def test_a_tokenizer_of_kerashub_goes_into_the_registry_by_reference(module_tracking, tmp_path):
    hub, words = pytest.importorskip("keras_hub"), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["read", "the", "file"]
    hub.models.BertBackbone(
        vocabulary_size=len(words), num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4,
        max_sequence_length=8,
    ).save_to_preset(tmp_path / "bert")  # fmt: skip
    hub.tokenizers.BertTokenizer(vocabulary=words, lowercase=True).save_to_preset(tmp_path / "bert")
    bert, cut = rk.load_backbone(tmp_path / "bert"), "transformer_layer_0"
    whole = rk.attach(rk.extract(bert.model, cut), rk.heads.Classifier(3))
    whole = prepend(whole, bert.tokenizer(6, ("text",)))
    usage = Usage(kind="classification", names=KINDS)
    register(tmp_path / "written", "bert", whole, usage, bert, cut)
    texts = ["Read the file", "the"]
    expected = whole.predict(keras.ops.convert_to_tensor(texts), verbose=0)
    for found in (
        rk.predict("models:/bert@champion", texts),
        mlflow.pyfunc.load_model("models:/bert@champion").predict(pd.DataFrame({"said": texts})),
    ):
        np.testing.assert_allclose(found["probability"], expected.max(axis=1), rtol=1e-5)
    needed = Path(mlflow.pyfunc.get_model_dependencies("models:/bert@champion")).read_text()
    assert "reusekit==" in needed and "keras-hub==" in needed


def test_several_labels_are_those_above_their_thresholds(registered, served):
    expected = registered["labels"].predict(X, verbose=0)
    found = served["labels"].predict(X)
    for row, outputs in zip(found.itertuples(), expected, strict=True):
        assert row.labels == ["cat"] + ["dog"] * bool(outputs[1] >= 0.3)
        np.testing.assert_allclose(row.probability, outputs[: len(row.labels)])


def test_numbers_are_columns_and_tables_are_read_by_their_columns(registered, served):
    expected = registered["numbers"].predict(X, verbose=0)
    table = pd.DataFrame(X, columns=list("abcdef"), index=list("vwxyz"))
    for inputs in (
        X,
        X.tolist(),
        table[list("fedcba")],
        {n: table[n].to_numpy() for n in "abcdef"},
    ):
        found = served["numbers"].predict(inputs)
        assert list(found.columns) == ["height", "width"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert list(served["numbers"].predict(table).index) == list("vwxyz")


def test_keras_and_models_without_names_answer_with_numbers(registered):
    expected = registered["labels"].predict(X, verbose=0)
    loaded = mlflow.keras.load_model("models:/labels/1")
    assert np.array_equal(loaded.predict(X, verbose=0), expected)
    np.testing.assert_allclose(rk.predict(loaded, X), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("colours", ["nowhere.png"], "Expected the path of a picture. Received: 'nowhere.png'"),
        ("colours", [b"no picture"], r"Expected a picture. Received: input 0 \(a text\)"),
        ("colours", [PICTURES[1][:300]], "input 0"),
        (
            "colours",
            np.zeros((2, 9, 8, 3)),
            r"shape \(n, 8, 8, 3\) .* \(2, 9, 8, 3\)",
        ),
        ("colours", {"b64": ["?"]}, "Expected pictures in base64"),
        ("colours", np.array([b"abc"]), "Expected bytes in a list"),
        ("colours", [], "Expected one input at least"),
        ("tone", [1.5], "Expected texts for the input 'text'. Received: '1.5', of type float"),
        ("tone", [None], "Expected texts"),
        ("numbers", ["words"], r"Expected float32 of shape \(n, 6\) .* text, bytes or paths"),
        ("numbers", [[1, 2], [3]], "some of different shapes"),
        ("numbers", np.full((2, 6), np.nan), "finite"),
        (
            "numbers",
            pd.DataFrame(X, columns=list("abcdeg")),
            "the column 'f', which the model .* Received: the columns 'a', 'b'",
        ),
        ("numbers", 7, "Expected a list or an array of inputs"),
        ("numbers", dict.fromkeys("abcdef", 7), "Expected a list or an array of inputs"),
        ("numbers", {"f": [7, 8]} | {one: [7] for one in "abcde"}, "of each kind. Received: 1, 2"),
        (
            "tone",
            pd.DataFrame({"a": ["good"], "b": ["bad"]}),
            "--column.* Received: 2, 'a', 'b'",
        ),
        ("labels", {"other": X}, "Expected inputs by the names 'features'. Received: 'other'"),
    ],
)
def test_what_is_no_such_input_is_refused(served, name, inputs, message):
    with pytest.raises(rk.DataError, match=message):
        served[name].predict(inputs)


def test_a_served_model_answers_with_names_and_opens_no_file_of_its_server(
    served, tmp_path, monkeypatch
):
    (tmp_path / "one.png").write_bytes(PICTURES[0])
    coded = {"b64": base64.b64encode(PICTURES[0]).decode()}
    monkeypatch.setenv("__pyfunc_model_path__", "as a scoring server has it")

    def answered(name, **request):
        said = scoring_server.invocations(
            json.dumps(request), "application/json", served[name], None
        )
        return said.status, json.loads(said.response)

    status, found = answered("colours", instances=[coded, coded], params={"probabilities": True})
    assert status == 200
    assert [one["label"] for one in found["predictions"]] == ["dog", "dog"]
    assert found["predictions"][0]["probabilities"].keys() == set(KINDS)
    assert answered("tone", inputs=["bad"])[1]["predictions"][0]["label"] == "bad"
    assert (
        answered("tone", dataframe_split={"columns": ["said"], "data": [["bad"]]})[1][
            "predictions"
        ][0]["label"]
        == "bad"
    )
    (one,) = answered("numbers", instances=[X[0].tolist()])[1]["predictions"]
    assert one.keys() == {"height", "width"}
    (one,) = answered("labels", inputs=X[:1].tolist())[1]["predictions"]
    assert "cat" in one["labels"]
    with pytest.raises(mlflow.MlflowException, match="server's own files"):
        answered("colours", inputs=[str(tmp_path / "one.png")])


@contextmanager
def over_http(model):
    """The application that `mlflow models serve` runs; gives a function that posts JSON to it."""
    server = uvicorn.Server(uvicorn.Config(scoring_server.init(model), port=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        (listening,) = server.servers[0].sockets
        yield partial(
            requests.post, "http://{}:{}/invocations".format(*listening.getsockname()), timeout=60
        )
    finally:
        server.should_exit = True
        thread.join()


CODED = [{"b64": base64.b64encode(one).decode()} for one in PICTURES]


def test_mlflow_serves_names_over_http(served):
    with over_http(served["alone"]) as ask:
        answered = ask(json={"instances": CODED}).json()["predictions"]
        assert [one["label"] for one in answered] == ["dog", "cat"]
        refused = ask(json={"inputs": [3]})
        assert refused.status_code == 400
        assert "Expected" in refused.text


def test_mlflow_serves_several_heads_over_http_and_exchanges_them(registered, tmp_path):
    tints = Usage(kind="classification", names=("warm", "cool", "cold"), treatment=SMALL)
    register(tmp_path / "tints", "tints", image_model(), tints)
    combine("seen", ["models:/colours@champion", "models:/tints@champion"], refresh=0)
    with over_http(mlflow.pyfunc.load_model("models:/seen@champion")) as ask:

        def told(**params):
            return ask(json={"instances": CODED, "params": params}).json()["predictions"]

        answered = told()
        assert [one["colours"] for one in answered] == ["dog", "cat"]
        assert [one["tints"] for one in answered] == ["cool", "warm"]
        own = [name for head in ("colours", "tints") for name in (head, f"{head}_probability")]
        assert list(answered[0]) == own
        tints = tints.model_copy(update={"names": ("red", "green", "blue")})
        register(tmp_path / "again", "tints", image_model(), tints, alias="champion")
        answered = told(heads=["tints"], probabilities=True)
        assert [one["tints"] for one in answered] == ["green", "red"]
        assert answered[0].keys() == {"tints", "tints_probability", "tints_probabilities"}


def test_texts_are_answered_by_several_heads(registered, served):
    combine("said", {"tone": "models:/tone@champion", "mood": "models:/mood/1"})
    said = ["good", "bad bad good"]
    for inputs in (said, pd.DataFrame({"whatever": said}), {"text": said}):
        found = mlflow.pyfunc.load_model("models:/said/1").predict(inputs)
        assert found["tone"].tolist() == ["good", "bad"]
        pd.testing.assert_series_equal(
            found["mood"], served["mood"].predict(said)["labels"], check_names=False
        )


def test_names_are_those_that_were_registered(registered):
    client = mlflow.MlflowClient()
    model = client.get_logged_model(logged_model_id(client.get_model_version("labels", "1")))
    file = Path(model.artifact_location, USAGE)
    before = file.read_text()
    for text in (before.replace("cat", "cow"), None):
        file.unlink() if text is None else file.write_text(text)
        for load in (
            lambda: mlflow.pyfunc.load_model("models:/labels/1"),
            lambda: rk.predict("models:/labels/1", X),
        ):
            with pytest.raises(rk.TrackingError, match=r"usage\.json"):
                load()
    file.write_text(before)


def test_the_command_writes_a_table(registered, tmp_path, capsys):
    def told(*arguments):
        launch_one_of({"predict": predict}, ["predict", *arguments])
        return pd.read_csv(StringIO(capsys.readouterr().out))

    for name, data in zip(("one.png", "two.jpg"), PICTURES, strict=True):
        (tmp_path / name).write_bytes(data)
    paths = [str(tmp_path / "one.png"), str(tmp_path / "two.jpg")]
    found = told("models:/colours@champion", *paths, "--probabilities")
    assert found["file"].tolist() == paths
    assert found["label"].tolist() == ["dog", "cat"]
    every = found[[f"probability of {name}" for name in KINDS]]
    np.testing.assert_allclose(every.max(axis=1), found["probability"])

    (tmp_path / "broken.png").write_bytes(b"no picture")
    launch_one_of(
        {"predict": predict},
        ["predict", "models:/colours@champion", str(tmp_path / "broken.png"), *paths],
    )
    printed = capsys.readouterr()
    found = pd.read_csv(StringIO(printed.out))
    assert found["file"].tolist() == [str(tmp_path / "broken.png"), *paths]
    assert found["label"].fillna("").tolist() == ["", "dog", "cat"]
    assert re.search("warning: a row is left empty.*broken.png", printed.err)

    table = tmp_path / "table.csv"
    pd.DataFrame({"path": ["two.jpg", "one.png"], "label": "unknown"}).to_csv(table, index=False)
    found = told("models:/colours@champion", "--table", str(table), "--column=path")
    assert found.columns.tolist() == ["path", "label", "probability"]
    assert found["label"].tolist() == ["cat", "dog"]

    pd.DataFrame(X, columns=list("abcdef")).assign(g="more").to_csv(table, index=False)
    output = tmp_path / "answers.csv"
    launch_one_of(
        {"predict": predict},
        ["predict", "models:/numbers/1", "--table", str(table), "--output", str(output)],
    )
    found = pd.read_csv(output)[["height", "width"]]
    expected = registered["numbers"].predict(X, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected files, or --table FILE .* Received: neither"),
        (["a.png", "--table", "b.csv"], "Received: both"),
        (["a.png", "--output", "nowhere/b.csv"], "--output as a file in a folder"),
        (["nowhere.png"], "Expected files that are there. Received: '.*nowhere.png', where none"),
        ([__file__], "Expected a picture. Received: .*test_prediction.py"),
    ],
)
def test_the_command_says_what_it_expects(registered, arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        launch_one_of({"predict": predict}, ["predict", "models:/colours/1", *arguments])
    assert re.search(message, capsys.readouterr().err)
