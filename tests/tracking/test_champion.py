"""The champion: the first version, until another is promoted or asked for by name."""

import mlflow
import numpy as np
import pytest
from small_models import X, backbone, sent, with_head

import reusekit as rk
from reusekit.tracking import champion, connect, roll_back


@pytest.fixture(scope="module")
def models():
    return [with_head(backbone(), seed) for seed in range(3)]


def aliases(client, name: str) -> dict[str, int]:
    return {alias: int(n) for alias, n in client.get_registered_model(name).aliases.items()}


def test_only_the_first_version_becomes_the_champion_by_itself(tracking, models, tmp_path):
    # pipeline W4
    for number, model in enumerate(models):
        version = sent(tmp_path / str(number), model, backbone(), "m", "w4", alias=None)
        assert int(version.version) == number + 1
        assert version.aliases == (["champion"] if number == 0 else [])
    assert aliases(tracking, "m") == {"champion": 1}
    for number in (1, 2, 3):
        tracking.delete_model_version("m", str(number))
    again = sent(tmp_path / "again", models[0], backbone(), "m", "w4", alias=None)
    assert (int(again.version), again.aliases) == (4, ["champion"])


def test_an_alias_that_was_asked_for_moves_and_a_rollback_undoes_it(tracking, models, tmp_path):
    # pipeline W4
    for number, alias in enumerate((None, "champion", "candidate")):
        sent(tmp_path / str(number), models[number], backbone(), "m", "w4", alias=alias)
    assert aliases(tracking, "m") == {"champion": 2, "candidate": 3}
    assert roll_back("m", "champion", "it was worse") == (2, 1)
    assert aliases(tracking, "m") == {"champion": 1, "candidate": 3}
    with pytest.raises(rk.TrackingError, match="nothing on record"):
        roll_back("m", "candidate", "it was the first")
    assert champion("m", "2") is None
    with pytest.raises(rk.TrackingError, match=r"Expected an alias of m. Received: '2'"):
        roll_back("m", "2", "pipeline B5: an alias, never a number")


def test_an_equal_model_makes_no_new_version(tracking, models, tmp_path):
    # pipeline W4
    first = sent(tmp_path / "a", models[0], backbone(), "m", "w4")
    again = sent(tmp_path / "b", models[0], backbone(), "m", "w4")
    assert (again.version, again.run_id) == (first.version, first.run_id)
    for name in ("m", "m-top", "body-bottom"):
        assert len(tracking.search_model_versions(f"name = '{name}'")) == 1
    experiment = tracking.get_experiment_by_name("w4").experiment_id
    assert len(mlflow.search_logged_models([experiment], output_format="list")) == 3
    # Under another name, or stored in another way, it is another version; and so is another model.
    sent(tmp_path / "c", models[0], backbone(), "n", "w4")
    other = sent(tmp_path / "d", models[0], backbone(), "m", "w4", standalone=True)
    third = sent(tmp_path / "e", models[1], backbone(), "m", "w4")
    assert [int(other.version), int(third.version)] == [2, 3]
    # Where the first was deleted, it is made again.
    tracking.delete_model_version("m", first.version)
    fourth = sent(tmp_path / "f", models[0], backbone(), "m", "w4")
    assert int(fourth.version) == 4
    found = rk.load_backbone("models:/m/4").model.predict(X, verbose=0)
    assert np.array_equal(found, models[0].predict(X, verbose=0))


@pytest.mark.parametrize(
    "name", ["both ' and \"", "x" * 3000, "a\nb", "a\0b", "what?", "no#1", "\x7f"]
)
def test_a_name_that_no_address_finds_again_is_refused_before(tracking, models, tmp_path, name):
    # pipeline D
    with pytest.raises(rk.TrackingError, match="Expected a name for the registry"):
        connect(mlflow.get_tracking_uri(), name)
    with pytest.raises(rk.TrackingError, match="Expected a name for the registry"):
        sent(tmp_path / "w", models[0], backbone(), name, "odd")
    assert not tracking.search_registered_models()


@pytest.mark.parametrize("name", ["me@home;x", "bob's 50% net", "2024-05-01T10:30", 'a "b" c'])
def test_odd_names_are_registered_or_refused_before(tracking, models, tmp_path, name):
    # pipeline D: a backbone's file is called what the registry does not take
    body = rk.backbones.Backbone(backbone().model, None, f"{name}.keras", None)
    registered = name.replace(":", ".")
    version = sent(tmp_path / "w", models[0], body, registered, "odd")
    assert version.name == registered
    found = rk.load_backbone(f"models:/{registered}/1").model.predict(X, verbose=0)
    assert np.array_equal(found, models[0].predict(X, verbose=0))
