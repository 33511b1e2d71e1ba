"""Names, versions and aliases are found, and what is not there is answered with what is."""

import pytest

import reusekit as rk
from reusekit.tracking import champion, find_version, set_alias


@pytest.fixture(scope="module")
def digits(module_tracking):
    """A name with versions 1 and 3; version 2 was deleted; 1 is the champion."""
    module_tracking.create_registered_model("digits")
    for _ in range(3):
        module_tracking.create_model_version("digits", "file:///nowhere")
    module_tracking.delete_model_version("digits", "2")
    set_alias("digits", "champion", 1)
    return module_tracking


def test_a_version_is_found_by_number_by_alias_or_as_the_newest(digits):
    wanted = [1, "3", "champion", None]
    assert [int(find_version("digits", one).version) for one in wanted] == [1, 3, 1, 3]


def test_there_need_be_no_champion(digits):
    assert int(champion("digits").version) == 1
    assert champion("digits", "runner_up") is None


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (
            lambda: find_version("digts"),
            "a registered model. Received: 'digts'. Did you mean 'digits'",
        ),
        (lambda: champion("digts"), "Did you mean 'digits'"),
        (lambda: find_version("digits", 2), "Received: 2. Choose one that is there: 1, 3"),
        (lambda: find_version("digits", "7"), "Received: 7. Choose one that is there: 1, 3"),
        (lambda: find_version("digits", "champoin"), "Did you mean 'champion'"),
        (lambda: set_alias("digits", "champion", 2), "Expected a version of digits. Received: 2"),
        (lambda: set_alias("digits", "latest", 1), "'latest' alias name .* is reserved"),
        (lambda: find_version("a:b"), "can look up the name 'a:b'.* Names cannot contain"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(digits, ask, says):
    with pytest.raises(rk.TrackingError, match=says):
        ask()
    assert int(champion("digits").version) == 1


def test_an_empty_registry_says_so(tracking):
    with pytest.raises(rk.TrackingError, match="the registry is empty"):
        find_version("digits")
    tracking.create_registered_model("it's new")
    with pytest.raises(rk.TrackingError, match="it's new to have a version"):
        find_version("it's new")
    with pytest.raises(rk.TrackingError, match=r"Received: 'champion'\. Set one first"):
        find_version("it's new", "champion")
