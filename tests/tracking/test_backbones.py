"""A registered model is itself a backbone to cut again."""

import mlflow
import numpy as np
import pytest
import tensorflow as tf
from small_models import CUT, X, backbone, sent, with_head

import reusekit as rk
from reusekit import stages
from reusekit.data import DataSplit, Task
from reusekit.tracking.registry import logged_model_id


@pytest.fixture(scope="module")
def model():
    return with_head(backbone(), 0)


@pytest.fixture(scope="module")
def registered(module_tracking, model, tmp_path_factory):
    return sent(tmp_path_factory.mktemp("w") / "w", model, backbone(), "ships", "loading")


def test_by_alias_version_and_id(registered, model):
    logged = f"models:/{logged_model_id(registered)}"
    addresses = ["models:/ships@champion", "models:/ships/1", logged]
    for address in addresses:
        found = rk.load_backbone(address)
        assert np.array_equal(found.model.predict(X, verbose=0), model.predict(X, verbose=0))
        assert found.parent == logged_model_id(registered)
    assert [rk.load_backbone(a).source for a in addresses] == [
        "models:/ships/1", "models:/ships/1", logged,
    ]  # fmt: skip
    assert rk.load_backbone(addresses[0]).name == "ships"


def test_it_can_be_cut_again_and_what_is_made_from_it_names_it(
    registered, module_tracking, tmp_path
):
    found = rk.load_backbone("models:/ships@champion")
    assert "norm" in [point.at for point in rk.cut_points(found.model)]
    again = rk.attach(rk.extract(found.model, "norm"), rk.heads.Regression())
    version = sent(tmp_path / "w", again, found, "deeper", "loading", frozen_up_to="norm")
    run = module_tracking.get_run(version.run_id)
    assert logged_model_id(registered) in {m.model_id for m in run.inputs.model_inputs}
    (bottom,) = module_tracking.search_model_versions("name = 'ships-bottom'")
    assert bottom.tags["reusekit.parent"] == logged_model_id(registered)
    assert version.tags["reusekit.source"] == "models:/ships/1"


def test_the_hidden_layers_of_an_old_head_are_no_default_cuts(
    module_tracking, tmp_path, monkeypatch
):
    # pipeline W3: the head's tag says where it begins, in the library as in the pipelines
    model = rk.attach(backbone().model, rk.heads.Classifier(3, units=16))
    version = sent(
        tmp_path / "w", model, backbone(), "headed", "loading", frozen_up_to="first", cut=CUT
    )
    found = rk.load_backbone("models:/headed@champion")
    assert found.head == CUT
    assert [p.at for p in stages.candidate_cuts(found)][-1] == CUT
    asked = stages.candidate_cuts(found, ["head_hidden"])
    assert [p.at for p in asked] == ["head_hidden"]
    monkeypatch.setattr("reusekit.search.cut_search.measure_latency", lambda m: [0.0] * len(m))
    data = tf.data.Dataset.from_tensor_slices((X, np.arange(5) % 2))
    examples = DataSplit("made", "all", data, 5, Task("classification", ("a", "b")), "f00d")
    search = rk.CutSearch(found, examples, examples, folder=tmp_path / "s")
    assert list(search.measure_latencies())[-1] == CUT
    # Models of before have the tag `reusekit.head`, and in `reusekit.cut` where the bottom ends.
    module_tracking.delete_logged_model_tag(found.parent, "reusekit.frozen_up_to")
    before = {"reusekit.cut": "first", "reusekit.head": CUT}
    module_tracking.set_logged_model_tags(found.parent, before)
    assert rk.load_backbone("models:/headed@champion").head == CUT
    # A tag that names nothing is of no account.
    module_tracking.set_logged_model_tags(found.parent, {"reusekit.head": "no/such@3:7"})
    found = rk.load_backbone(f"models:/headed/{version.version}")
    assert "head_hidden" in [p.at for p in stages.candidate_cuts(found)]


def test_random_weights_on_demand(registered, model):
    fresh = rk.load_backbone("models:/ships/1", weights=None)
    assert fresh.weights is None
    assert not np.array_equal(fresh.model.predict(X, verbose=0), model.predict(X, verbose=0))


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("models:/ship@champion", "Did you mean 'ships'"),
        ("models:/ships@winner", "Received: 'winner'. Valid choices: 'champion'"),
        ("models:/ships/7", "Received: 7. Choose one that is there: 1"),
        ("models:/ships", "models:/NAME@ALIAS"),
        ("models:/m-" + "0" * 32, "can look up"),
    ],
)
def test_what_is_not_there_is_said(registered, address, said):
    with pytest.raises(rk.ReusekitError, match=said):
        rk.load_backbone(address)


def test_what_it_does_not_take_is_refused(registered):
    with pytest.raises(rk.BackboneError, match="Expected input_shape"):
        rk.load_backbone("models:/ships/1", input_shape=(7,))
    with pytest.raises(rk.BackboneError, match="its own weights"):
        rk.load_backbone("models:/ships/1", weights="imagenet")
    with pytest.raises(rk.BackboneError, match="Expected no options"):
        rk.load_backbone("models:/ships/1", alpha=0.5)


def test_a_model_registered_by_plain_mlflow_serves_as_well(module_tracking, model):
    with mlflow.start_run():
        mlflow.keras.log_model(
            model, name="plain", registered_model_name="plain", pip_requirements=["keras"]
        )
    found = rk.load_backbone("models:/plain/1")
    assert np.array_equal(found.model.predict(X, verbose=0), model.predict(X, verbose=0))
