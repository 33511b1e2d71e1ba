"""An alias moves only from the version it was expected at, and back again."""

import mlflow
import pytest

import reusekit as rk
from reusekit.tracking import champion, promote, refuse, roll_back, set_alias


@pytest.fixture
def register(module_tracking, request):
    """Register so many versions under the test's own name, of which the first is the champion."""

    def registered(versions: int, name: str = request.node.name) -> str:
        module_tracking.create_registered_model(name)
        for _ in range(versions):
            module_tracking.create_model_version(name, "file:///nowhere")
        set_alias(name, "champion", 1)
        return name

    return registered


def champion_of(name: str, alias: str = "champion") -> int:
    return int(champion(name, alias).version)


def tags(name: str, number: int) -> dict[str, str]:
    return mlflow.MlflowClient().get_model_version(name, str(number)).tags


def test_a_promotion_says_why_and_a_rollback_goes_back_step_by_step(register):
    name = register(3)
    promote(name, "champion", 2, champion=1, why="it is better")
    promote(name, "champion", 3, champion=2, why="it is better still")
    assert champion_of(name) == 3
    assert tags(name, 3)["reusekit.promoted"].endswith("UTC, champion: it is better still")
    assert tags(name, 3)["reusekit.previous.champion"] == "2"
    assert roll_back(name, "champion", "it fails at night") == (3, 2)
    assert tags(name, 3)["reusekit.rolled_back"].endswith(
        "UTC, champion given back to version 2: it fails at night"
    )
    assert roll_back(name, "champion", "so does this") == (2, 1)
    with pytest.raises(rk.TrackingError, match=r"version 1 .* nothing on record to go back to"):
        roll_back(name, "champion", "once more")
    assert champion_of(name) == 1


def test_what_was_rolled_back_can_be_promoted_again(register):
    name = register(2)
    for _ in range(2):
        promote(name, "champion", 2, champion=1, why="it is better")
        assert roll_back(name, "champion", "it is not") == (2, 1)
    with pytest.raises(rk.TrackingError, match="nothing on record"):
        roll_back(name, "champion", "once more")


def test_each_alias_goes_back_to_its_own(register):
    name = register(3)
    set_alias(name, "staging", 2)
    promote(name, "staging", 3, champion=2, why="try it")
    promote(name, "champion", 3, champion=1, why="it is better")
    assert roll_back(name, "staging", "enough") == (3, 2)
    assert roll_back(name, "champion", "enough") == (3, 1)


def test_there_is_no_way_back_to_a_version_that_was_deleted(register, module_tracking):
    name = register(3)
    promote(name, "champion", 3, champion=1, why="it is better")
    module_tracking.delete_model_version(name, "1")
    with pytest.raises(
        rk.TrackingError, match=r"Received: 1, which has been deleted.* there: 2, 3"
    ):
        roll_back(name, "champion", "it is not")
    assert champion_of(name) == 3


@pytest.mark.parametrize("written", ["3", "x", "9" * 4900, "\u0661"])
def test_a_record_of_the_champion_before_that_was_altered_leads_nowhere(
    register, module_tracking, written
):
    name = register(3)
    promote(name, "champion", 3, champion=1, why="it is better")
    module_tracking.set_model_version_tag(name, "3", "reusekit.previous.champion", written)
    with pytest.raises(rk.TrackingError, match="has been deleted") as caught:
        roll_back(name, "champion", "it is not")
    assert len(str(caught.value)) < 300
    assert champion_of(name) == 3


def test_the_first_champion_needs_none_before_it(register, module_tracking):
    name = register(1)
    module_tracking.delete_registered_model_alias(name, "champion")
    with pytest.raises(rk.TrackingError, match="Received: 'champion'"):
        roll_back(name, "champion", "why not")
    promote(name, "champion", 1, champion=None, why="there was none")
    assert champion_of(name) == 1
    assert "reusekit.previous.champion" not in tags(name, 1)


@pytest.mark.parametrize("expected", [None, 2])
def test_a_champion_that_changed_meanwhile_stays(register, expected):
    name = register(3)
    with pytest.raises(
        rk.TrackingError, match=r"Received: version 1, since it was moved meanwhile"
    ):
        promote(name, "champion", 3, champion=expected, why="it is better")
    assert champion_of(name) == 1
    assert not tags(name, 3)


def test_a_candidate_that_was_deleted_meanwhile_is_refused(register, module_tracking):
    name = register(2)
    module_tracking.delete_model_version(name, "2")
    with pytest.raises(rk.TrackingError, match="version 2"):
        promote(name, "champion", 2, champion=1, why="it is better")
    assert champion_of(name) == 1
    assert not module_tracking.get_registered_model(name).tags


def test_a_refusal_is_kept_with_the_version(register):
    name = register(2)
    refuse(name, "champion", 2, "it is worse")
    assert tags(name, 2)["reusekit.refused"].endswith("UTC, champion: it is worse")
    assert champion_of(name) == 1


def test_a_move_that_another_process_undoes_at_once_is_told(register, monkeypatch):
    name = register(3)
    client = mlflow.MlflowClient
    move = client.set_registered_model_alias

    def twice(self, name, alias, version):
        move(self, name, alias, version)
        move(self, name, alias, "3")

    monkeypatch.setattr(client, "set_registered_model_alias", twice)
    with pytest.raises(rk.TrackingError, match=r"to be version 2\. Received: version 3"):
        promote(name, "champion", 2, champion=1, why="it is better")
    assert champion_of(name) == 3
    assert "reusekit.promoted" not in tags(name, 2)
    assert tags(name, 2)["reusekit.previous.champion"] == "1"
