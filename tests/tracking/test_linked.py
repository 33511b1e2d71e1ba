"""Bottom, top and whole in MLflow: linked, each stored once, and whole again where it is loaded."""

import hashlib
import json
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from small_models import CUT, X, backbone, sent, with_head, written

import reusekit as rk
from reusekit.tracking import send
from reusekit.tracking.registry import logged_model_id

EXPERIMENTS = ("one", "other")


@pytest.fixture(scope="module")
def body():
    return backbone()


@pytest.fixture(scope="module")
def models(body):
    """A model for each name in the registry."""
    return {name: with_head(body, seed) for seed, name in enumerate(("ships", "cars", "alone"))}


@pytest.fixture(scope="module", params=["sqlite", "server", "postgres"])
def artifacts(request, module_tracking):
    """Each kind of store, MLflow pointed at it; where it keeps files."""
    before = mlflow.get_tracking_uri()
    if request.param == "sqlite":
        yield Path("mlruns").absolute()
    elif request.param == "server":
        server = request.getfixturevalue("server")
        mlflow.set_tracking_uri(server.uri)
        yield server.artifacts
    else:
        mlflow.set_tracking_uri(request.getfixturevalue("postgres"))
        yield Path("mlruns").absolute()
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def registry(artifacts, models, body, tmp_path_factory):
    """Three models on one bottom, in two experiments; one of them self-contained."""
    folder = tmp_path_factory.mktemp("written") / "a %20 b"  # MLflow would decode that
    folder.mkdir()
    for name, model in models.items():
        sent(
            folder / name,
            model,
            body,
            name,
            EXPERIMENTS[name == "cars"],
            standalone=name == "alone",
            card=f"# {name}",
        )
    return mlflow.MlflowClient()


def logged(client, filter_string="", experiments=EXPERIMENTS):
    ids = [client.get_experiment_by_name(name).experiment_id for name in experiments]
    return mlflow.search_logged_models(ids, filter_string, output_format="list")


@pytest.mark.parametrize("name", ["ships", "cars", "alone"])
def test_plain_mlflow_loads_the_whole_model(registry, models, name):
    expected = models[name].predict(X, verbose=0)
    loaded = mlflow.keras.load_model(f"models:/{name}@champion")
    assert np.array_equal(loaded.predict(X, verbose=0), expected)
    assert loaded.name == models[name].name
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in models[name].layers]
    served = mlflow.pyfunc.load_model(f"models:/{name}/1")
    assert np.array_equal(served.predict(X), expected)


def test_a_reference_is_whole_by_its_id_by_its_run_and_as_whatever_version(registry, models):
    # pipeline B6
    made = registry.get_model_version("ships", "1")
    by_id, by_run = f"models:/{logged_model_id(made)}", f"runs:/{made.run_id}/ships"
    again = mlflow.register_model(by_id, "ships again")
    copied = registry.copy_model_version(f"models:/{again.name}/{again.version}", "ships copied")
    copied = registry.copy_model_version(f"models:/{copied.name}/{copied.version}", "ships twice")
    expected = models["ships"].predict(X, verbose=0)
    found = rk.load_backbone("models:/ships twice@latest")
    assert (found.source, found.parent) == (f"models:/ships twice/{copied.version}", by_id[8:])
    addresses = (by_id, by_run, "models:/ships twice/latest")
    loaded = [mlflow.keras.load_model(address) for address in addresses]
    for model in (found.model, *loaded):
        assert np.array_equal(model.predict(X, verbose=0), expected)


def test_a_bottom_is_stored_once_over_runs_and_experiments(registry, artifacts):
    (bottom,) = logged(registry, "tags.`reusekit.role` = 'bottom'")
    others = logged(registry, "tags.`reusekit.role` IN ('top', 'whole')")
    assert len(others) == 6
    assert {model.tags["reusekit.parent"] for model in others} == {bottom.model_id}
    versions = registry.search_model_versions("name = 'body-bottom'")
    assert [logged_model_id(v) for v in versions].count(bottom.model_id) == 1
    assert [v.tags["reusekit.digest"] for v in versions].count(bottom.tags["reusekit.digest"]) == 1
    ids = {model.model_id for model in (bottom, *others)}
    stored = [ids & set(file.parts) for file in artifacts.rglob("model.keras")]
    stored = [found for found in stored if found]
    wholes = {m.model_id for m in others if m.tags["reusekit.role"] == "whole"}
    assert len(stored) == 5  # the bottom, three tops, and the whole that stands alone
    assert len(wholes & set.union(*stored)) == 1


def test_runs_name_the_models_they_made_and_those_they_stand_on(registry):
    (bottom,) = logged(registry, "tags.`reusekit.role` = 'bottom'")
    for name in ("ships", "cars", "alone"):
        version = registry.get_model_version_by_alias(name, "champion")
        run = registry.get_run(version.run_id)
        made = {output.model_id for output in run.outputs.model_outputs}
        used = {model.model_id for model in run.inputs.model_inputs}
        assert logged_model_id(version) in made
        assert bottom.model_id in (made if name == "ships" else used)
        assert bottom.model_id not in (used if name == "ships" else made)
        assert version.description == f"# {name}"
        model = registry.get_logged_model(logged_model_id(version))
        assert model.tags["mlflow.note.content"] == f"# {name}"


def test_models_are_found_by_what_they_cost(registry, models):
    small = (
        "tags.`reusekit.role` = 'bottom' AND tags.`reusekit.source` = 'tests/body' "
        "AND metrics.`parameters.total` < 1000"
    )
    (bottom,) = logged(registry, small)
    assert bottom.params["parameters.total"] == str(
        rk.split(models["ships"], CUT).bottom.count_params()
    )
    assert not logged(registry, small.replace("1000", "50"))
    (whole,) = logged(registry, "tags.`reusekit.role` = 'whole'", ["other"])
    numbers = {metric.key: metric.value for metric in whole.metrics}
    assert numbers["test_accuracy"] == 0.5
    counts = rk.count_params(models["cars"]).to_dict()
    assert {k: numbers[f"parameters.{k}"] for k in counts} == counts
    assert numbers["bytes"] == 4 * counts["total"]
    assert 0 < numbers["latency"] < 60
    assert numbers["flops"] > 0
    assert "predict_on_batch" in whole.params["latency.conditions"]


def test_every_metric_has_one_value_in_its_run(registry):
    experiments = [registry.get_experiment_by_name(name).experiment_id for name in EXPERIMENTS]
    for run in registry.search_runs(experiments):
        for key in run.data.metrics:
            assert len(registry.get_metric_history(run.info.run_id, key)) == 1


def test_fetching_leaves_what_is_stored_as_it_is(registry, artifacts):
    before = sorted(artifacts.rglob("*"))
    folder = Path(mlflow.artifacts.download_artifacts("models:/ships/1"))
    assert (folder / "data" / "model.keras").is_file()
    assert sorted(artifacts.rglob("*")) == before
    file = mlflow.artifacts.download_artifacts("models:/ships/1/MLmodel")
    assert "python_function" in Path(file).read_text()


def named_alike(prefix: str, tied: bool) -> keras.Model:
    """The same numbers whatever its layers are called."""
    keras.utils.set_random_seed(3)
    tokens = keras.Input((7,), dtype="int32", name=f"{prefix}_tokens")
    embedding = keras.layers.Embedding(20, 4, name=f"{prefix}_embedding")
    x = keras.layers.Dense(4, name=f"{prefix}_hidden")(embedding(tokens))
    last = rk.layers.TiedDense(embedding, name="out") if tied else keras.layers.Dense(2, name="out")
    return keras.Model(tokens, last(x))


@pytest.mark.parametrize("tied", [False, True])
def test_a_bottom_is_the_same_whatever_its_layers_are_called_unless_a_tie_needs_their_names(
    tracking, tmp_path, tied
):
    tokens = np.arange(14).reshape(2, 7).astype("int32")
    for prefix in ("a", "b"):
        model = named_alike(prefix, tied)
        body = rk.backbones.Backbone(model, None, "tests/language", None)
        sent(tmp_path / prefix, model, body, prefix, "names", frozen_up_to=f"{prefix}_hidden")
        loaded = mlflow.keras.load_model(f"models:/{prefix}@champion")
        assert np.array_equal(loaded.predict(tokens, verbose=0), model.predict(tokens, verbose=0))
        assert rk.count_params(loaded) == rk.count_params(model)
    stored = tracking.search_model_versions("name = 'language-bottom'")
    assert len(stored) == (2 if tied else 1)


def test_a_bottom_that_is_gone_is_named(tracking, tmp_path):
    body = backbone(2)
    sent(tmp_path / "w", with_head(body, 0), body, "m", "gone")
    (version,) = tracking.search_model_versions("name = 'body-bottom'")
    tracking.delete_logged_model(logged_model_id(version))
    with pytest.raises(rk.TrackingError, match=r"models:/body-bottom/1 .* deleted"):
        mlflow.keras.load_model("models:/m@champion")
    # The next model on that bottom stores it again.
    sent(tmp_path / "again", with_head(body, 1), body, "m", "gone")
    assert mlflow.keras.load_model("models:/m@champion").count_params() > 0
    assert len(tracking.search_model_versions("name = 'body-bottom'")) == 2


def test_an_altered_part_is_refused(tracking, tmp_path):
    body = backbone()
    sent(tmp_path / "w", with_head(body, 0), body, "m", "altered")
    (version,) = tracking.search_model_versions("name = 'body-bottom'")
    location = tracking.get_logged_model(logged_model_id(version)).artifact_location
    file = Path(location.removeprefix("file://"), "data", "model.keras")
    backbone(9).model.save(file)
    with pytest.raises(rk.TrackingError, match="to be what this model was joined from"):
        mlflow.keras.load_model("models:/m@champion")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(rk.TrackingError, match=found):
        rk.load_backbone("models:/m/1")


def test_a_part_that_asks_for_code_to_be_run_is_refused(tracking, tmp_path):
    body = backbone()
    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, name=CUT)(keras.layers.Lambda(lambda v: v * 2)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    for name, standalone in (("by-reference", False), ("alone", True)):
        sent(tmp_path / name, model, body, name, "code", standalone=standalone)
        with pytest.raises(rk.BackboneError, match=r"can be loaded.*lambda"):
            rk.load_backbone(f"models:/{name}@champion")


@pytest.mark.parametrize("name", ["a/b", "a:b"])
def test_a_name_that_mlflow_refuses(tracking, tmp_path, name):
    body = backbone()
    with pytest.raises(rk.TrackingError, match=name):
        sent(tmp_path / "w", with_head(body, 0), body, name, "names")


class Unlucky:
    """A client that fails once, at the nth write."""

    WRITES = (
        "create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs",
        "create_registered_model", "create_model_version", "set_logged_model_tags", "create_run",
        "log_batch", "set_terminated", "set_registered_model_alias",
    )  # fmt: skip

    def __init__(self, client, fail_at: int, before: bool) -> None:
        self.client, self.left, self.before = client, fail_at, before

    def __getattr__(self, name):
        wanted = getattr(self.client, name)
        if name not in self.WRITES:
            return wanted

        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0 and self.before:
                raise ConnectionError(name)
            result = wanted(*args, **kwargs)
            if self.left == 0:
                raise ConnectionError(name)
            return result

        return call


@pytest.mark.parametrize("before", [True, False], ids=["not done", "done, answer lost"])
def test_sending_again_after_any_interruption_makes_nothing_twice(tracking, tmp_path, before):
    body = backbone()
    folder = written(tmp_path / "w", with_head(body, 0), body, "m")
    mlflow.set_experiment("again")
    with mlflow.start_run() as run:
        for attempt in range(1, 100):
            try:
                send(folder, Unlucky(tracking, attempt, before), run.info.run_id)
            except ConnectionError:
                continue
            break
        else:
            pytest.fail("never sent")
    assert attempt > 5
    models = logged(tracking, "", ["again"])
    assert sorted(m.tags["reusekit.role"] for m in models) == ["bottom", "top", "whole"]
    assert all(m.status == "READY" for m in models)
    for name in ("m", "m-top", "body-bottom"):
        assert len(tracking.search_model_versions(f"name = '{name}'")) == 1
    found = tracking.get_run(run.info.run_id)
    assert len(found.outputs.model_outputs) == 3
    experiment = tracking.get_experiment_by_name("again").experiment_id
    assert len(tracking.search_runs([experiment])) == 4
    for model in models:
        versions = json.loads(model.tags["mlflow.modelVersions"])
        assert len(versions) == 1
        assert len({m.key for m in model.metrics}) == len(model.metrics)
