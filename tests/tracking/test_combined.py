"""Several heads over one bottom: one pass, each answer as alone, exchanged by alias."""

import logging
import re
from itertools import count

import keras
import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from tracking.small_models import X, backbone, register

import reusekit as rk
from reusekit.cli import combine as combine_command
from reusekit.cli import predict
from reusekit.data import Treatment
from reusekit.launch import launch_one_of
from reusekit.tracking import Usage, combine, load_version, roll_back, stored
from reusekit.tracking.registry import logged_model_id

BODY = backbone()
KIND = Usage(kind="classification", names=("cat", "dog", "cow"))
MARKS = Usage(kind="multilabel", names=("big", "old", "wild"), thresholds=(0.0, 0.3, 1.0))
AGE = Usage(kind="regression", names=("age",))
PET = Usage(
    kind="joint",
    names=("breed", "size"),
    tasks={
        "breed": Usage(kind="classification", names=("a", "b")),
        "size": Usage(kind="regression", names=("height", "width")),
    },
)
FOUR = ["kind", "marks", "age", "pet"]
COLUMNS = {
    "kind": ["kind", "kind_probability"],
    "marks": ["marks", "marks_probability"],
    "age": ["age"],
    "pet": ["pet_breed", "pet_breed_probability", "pet_size_height", "pet_size_width"],
}


def with_heads(body, usage, seed):
    keras.utils.set_random_seed(seed)
    outputs = {
        name: keras.layers.Dense(len(one.names), "sigmoid")(body.model.output)
        for name, one in usage.by_task.items()
    }
    return keras.Model(body.model.input, outputs.get("", outputs), name="pets")


@pytest.fixture(scope="module")
def add(module_tracking, tmp_path_factory):
    """Registers a version of a model, over the shared bottom unless it is told another."""
    folder, numbers = tmp_path_factory.mktemp("written"), count()

    def registered(name, usage, seed, body=BODY, **options):
        model = with_heads(body, usage or KIND, seed)
        return register(folder / str(next(numbers)), name, model, usage, **options)

    return registered


@pytest.fixture(scope="module")
def models(add):
    """Four models over one bottom, and some that do not go with them."""
    for seed, (name, usage) in enumerate(zip(FOUR, (KIND, MARKS, AGE, PET), strict=True)):
        add(name, usage, seed)
    add("elsewhere", KIND, 0, backbone(1))
    add("alone", KIND, 0, standalone=True)
    add("unnamed", None, 0)
    add("columns", KIND.model_copy(update={"columns": tuple("abcdef")}), 0)
    add("treated", KIND.model_copy(update={"treatment": Treatment(length=6)}), 0)
    add("kind_probability", AGE, 5)
    return [f"models:/{name}@champion" for name in FOUR]


@pytest.fixture
def read_models(monkeypatch):
    """The models that were read since, by their addresses."""
    found = []
    read = stored.read_file
    monkeypatch.setattr(stored, "read_file", lambda *of: (found.append(of[1]), read(*of))[1])
    return found


def names_of(read):
    return [re.sub(r"models:/(\S+) .*", r"\1", one) for one in read]


def served(address):
    return mlflow.pyfunc.load_model(address)


def test_all_answers_are_those_of_each_model_alone_by_one_pass(models, read_models, monkeypatch):
    version = combine("four", models)
    assert names_of(read_models) == ["kind-bottom/1", *(f"{name}-top/1" for name in FOUR)]
    together = served("models:/four@champion")
    passes = []
    run = keras.Model.predict_on_batch
    monkeypatch.setattr(
        keras.Model, "predict_on_batch", lambda self, x: (passes.append(self.name), run(self, x))[1]
    )
    found = together.predict(X, params={"probabilities": True})
    assert len(passes) == 5
    assert [name.endswith("bottom") for name in passes] == [True, False, False, False, False]
    for name in FOUR:
        asked = {} if name == "age" else {"probabilities": True}
        alone = served(f"models:/{name}/1").predict(X, params=asked)
        own = [column for column in found if str(column).startswith(name)]
        renamed = found[own].set_axis(alone.columns, axis=1)
        pd.testing.assert_frame_equal(renamed, alone)
    assert list(together.predict(X).columns) == [c for name in FOUR for c in COLUMNS[name]]
    pd.testing.assert_frame_equal(rk.predict("models:/four/1", X, probabilities=True), found)
    assert version.tags["reusekit.role"] == "combined"


def test_only_the_heads_that_are_asked_for_answer(models):
    combine("four", models)
    together = served("models:/four@champion")
    found = together.predict(X, params={"heads": ["pet", "age"]})
    assert list(found.columns) == [*COLUMNS["age"], *COLUMNS["pet"]]
    pd.testing.assert_frame_equal(found, together.predict(X)[list(found.columns)])
    with pytest.raises(
        rk.DataError, match=r"the name of a head\. Received: 'ago'\. Did you mean 'age'"
    ):
        together.predict(X, params={"heads": ["ago"]})
    with pytest.raises(rk.DataError, match="predicts numbers"):
        together.predict(X, params={"heads": ["age"], "probabilities": True})


def test_heads_are_exchanged_rolled_back_and_added_while_the_bottom_stays(
    models, add, read_models, caplog
):
    add("moves", KIND, 10)
    combine("live", ["models:/moves@champion", "models:/kind/1"], refresh=0)
    together = served("models:/live@champion")

    def answers(name):
        return together.predict(X, params={"heads": [name], "probabilities": True})[
            f"{name}_probabilities"
        ].tolist()

    def alone(address):
        return rk.predict(address, X, probabilities=True)["probabilities"].tolist()

    first = answers("moves")
    assert first == alone("models:/moves/1")
    add("moves", KIND, 11, alias="champion")
    read_models.clear()
    second = answers("moves")
    assert names_of(read_models) == ["moves-top/2"]
    assert second == alone("models:/moves/2") != first
    roll_back("moves", "champion", "to see")
    assert answers("moves") == first
    read_models.clear()

    combine(
        "live", ["models:/moves@champion", "models:/kind/1", models[2]], refresh=0, alias="champion"
    )
    read_models.clear()
    assert "age" in together.predict(X)
    assert names_of(read_models) == ["age-top/1"]
    roll_back("live", "champion", "to see")
    assert list(together.predict(X).columns) == [
        "moves", "moves_probability", "kind", "kind_probability"
    ]  # fmt: skip
    # A version that its alias does not mean has the heads that it was made of.
    assert "age" in served("models:/live/2").predict(X)

    # Trained again over another bottom: refused, said once, and served as it was.
    add("moves", KIND, 12, backbone(2), alias="champion")
    with caplog.at_level(logging.WARNING, "reusekit.tracking"):
        for _ in range(2):
            assert answers("moves") == first
    (said,) = caplog.messages
    assert "models:/moves/1" in said
    assert re.search(r"over one bottom.*Received: live over .*SHA-256.*models:/moves/3 over", said)
    # So it is where it is started anew.
    assert served("models:/live@champion").predict(X)["moves"].tolist() == [
        max(row, key=row.get) for row in first
    ]


def test_a_registry_that_is_away_leaves_everything_as_it_is(models, monkeypatch, caplog):
    combine("steady", models[:2], refresh=0)
    together = served("models:/steady@champion")
    before = together.predict(X)

    def away(*arguments, **options):
        raise MlflowException("no route to host", error_code=TEMPORARILY_UNAVAILABLE)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "reusekit.tracking"):
        patch.setattr(mlflow.MlflowClient, "get_registered_model", away)
        for _ in range(2):
            pd.testing.assert_frame_equal(together.predict(X), before)
    (said,) = caplog.messages
    assert "steady goes on with what it has" in said and "no route to host" in said


def test_aliases_are_looked_at_no_more_often_than_was_asked_for(models, monkeypatch):
    combine("seldom", models[:1], refresh=3600)
    together = served("models:/seldom@champion")
    monkeypatch.setattr(mlflow.MlflowClient, "get_registered_model", lambda *_: 1 / 0)
    assert list(together.predict(X).columns) == COLUMNS["kind"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["kind", "elsewhere"], r"over one bottom\. Received: kind over models:/kind-bottom/1 "
         r"\(SHA-256 \w+\) and elsewhere over models:/elsewhere-bottom/1"),
        (["kind", "treated"], "one preprocessing. Received: length=None of kind, and length=6 of"),
        (["kind", "columns"], "same columns of tables. Received: none of kind; .*'f'.* of columns"),
        (["kind", "kind"], "each head once. Received: 'kind' twice"),
        (["kind", "kind_probability"], "'kind_probability' of both 'kind' and 'kind_prob"),
        (["kind", "alone"], "models:/alone/1, a model with weights of its own"),
        (["unnamed"], "answers with names. Received: models:/unnamed/1"),
        (["kind", "kind-top"], "Expected an alias of kind-top. Received: 'champion'"),
        (["knid"], "Did you mean 'kind'"),
        ([], "models to be a list, not empty"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(models, wanted, message):
    before = mlflow.MlflowClient().search_model_versions()
    with pytest.raises(rk.TrackingError, match=message):
        combine("refused", [f"models:/{name}@champion" for name in wanted])
    assert len(mlflow.MlflowClient().search_model_versions()) == len(before)


def test_other_addresses_and_names_are_refused(models):
    combine("four", models)
    for name, wanted, message in (
        ("refused", ["models:/kind-top/1"], "models:/kind-top/1, a top"),
        ("refused", ["models:/four@champion"], "models:/four/1, a combined"),
        ("kind", models, "combined models alone, or a new one. Received: 'kind'"),
        ("refused", "models:/kind/1", "models to be a list"),
        ("refused", {"": "models:/kind/1"}, "a name of each head"),
    ):
        with pytest.raises(rk.TrackingError, match=message):
            combine(name, wanted)
    with pytest.raises(rk.TrackingError, match=r"models:/four/1, which combines several"):
        load_version(mlflow.MlflowClient().get_model_version("four", "1"))
    with pytest.raises(rk.DataError, match="data=None of a combined model"):
        data = rk.data.from_arrays(X, list("abcab"), split="train", shares=None)
        rk.predict("models:/four/1", X, data=data)


def test_the_command_combines_and_predicts(models, tmp_path, capsys):
    arguments = ["combine", "told", "a=models:/kind/1", "b=models:/kind@champion", "--alias=live"]
    for _ in range(2):  # the second finds the first
        launch_one_of({"combine": combine_command}, arguments)
        assert capsys.readouterr().out == "told is version 1: a, b\n"
    table = tmp_path / "table.csv"
    pd.DataFrame(X).to_csv(table, index=False)
    launch_one_of(
        {"predict": predict},
        ["predict", "models:/told@live", "--table", str(table), "--probabilities"],
    )
    out = capsys.readouterr().out.splitlines()
    assert "a_probability of cat" in out[0] and "b_probability of cat" in out[0]
    with pytest.raises(SystemExit):
        launch_one_of(
            {"combine": combine_command}, ["combine", "told", "a=models:/kind/1", "models:/kind/1"]
        )
    assert "all as NAME=ADDRESS" in capsys.readouterr().err


def test_what_was_altered_is_refused(models):
    version = combine("altered", models)
    client = mlflow.MlflowClient()
    model = client.get_logged_model(logged_model_id(version))
    folder = stored.Path(model.artifact_location)
    for file, before, after in (
        (stored.COMBINATION, "models:/kind@champion", "models:/elsewhere@champion"),
        ("MLmodel", "loader_module:", "data: elsewhere\n    loader_module:"),
        ("MLmodel", "loader_module: .*", "loader_module: antigravity"),
    ):
        text = (folder / file).read_text()
        (folder / file).write_text(re.sub(before, after, text))
        with pytest.raises(rk.TrackingError, match=r"to be what was logged|to read .* and no more"):
            served("models:/altered/1")
        (folder / file).write_text(text)
