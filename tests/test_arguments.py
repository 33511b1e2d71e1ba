"""The one check of what callers pass."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from types import SimpleNamespace
from typing import Annotated, Any, Literal, TypedDict, Unpack

import keras
import numpy as np
import pytest
from pydantic import AllowInfNan, NonNegativeInt, PositiveFloat, PositiveInt

import reusekit as rk
from reusekit.arguments import AnyPath, Choices, Rate, Seed, checked
from reusekit.backbones import glyphnet
from reusekit.cli import init
from reusekit.errors import ConfigError, HeadError, ReusekitError, SurgeryError


@checked(ConfigError)
@dataclass(frozen=True)
class Recipe:
    minutes: PositiveInt
    _: KW_ONLY
    heat: Annotated[float, AllowInfNan(True)] = 0.0


@checked(HeadError)
@dataclass(frozen=True)
class Cake(Recipe):
    layers: Mapping[str, Recipe] | None = None


@checked(SurgeryError)
def bake(
    model: keras.Model | None = None,
    *recipes: Recipe,
    how: Literal["fast", "slow"] = "fast",
    often: PositiveInt | None = None,
    share: Rate = 0.0,
    rates: tuple[PositiveFloat, PositiveFloat] = (1.0, 2.0),
    units: Choices[NonNegativeInt] = (0,),
    names: Iterable[str] = (),
    path: AnyPath | None = None,
    taste: Callable[[], None] | None = None,
    seed: Seed = 0,
    flag: bool = False,
    anything: Any = None,
    **options: Any,
) -> Any:
    """Return what was passed."""
    return model, recipes, often, units, names, anything, options


@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [
        ("model", "m", "None or a Keras model. Received: 'm'."),
        (
            "model",
            SimpleNamespace(model=keras.Sequential(name="m")),
            "None or a Keras model. Received: namespace(model=<Sequential name=m, built=False>). "
            "Pass its .model.",
        ),
        ("how", "slwo", "'fast' or 'slow'. Received: 'slwo'. Did you mean 'slow'?"),
        ("how", ["fast"], "'fast' or 'slow'. Received: ['fast']."),
        ("often", True, "None or a whole number of at least 1. Received: True."),
        ("often", "3", "None or a whole number of at least 1. Received: '3'."),
        ("often", 3.0, "None or a whole number of at least 1. Received: 3.0."),
        ("often", 0, "None or a whole number of at least 1. Received: 0."),
        ("often", np.array(3), "None or a whole number of at least 1. Received: array(3)."),
        ("share", float("nan"), "a number of at least 0 and below 1. Received: nan."),
        ("share", np.float32(1.5), "a number of at least 0 and below 1. Received: 1.5."),
        ("share", None, "a number of at least 0 and below 1. Received: None."),
        ("rates", [1.0], "(a number above 0, a number above 0). Received: [1.0]."),
        ("units", 5, "a list, not empty, with nothing twice, each item a whole number"),
        ("units", "55", "a list, not empty, with nothing twice, each item a whole number"),
        ("units", [], "a list, not empty, with nothing twice, each item a whole number"),
        ("units", [5, 5], "a list, not empty, with nothing twice, each item a whole number"),
        ("names", "ab", "a list, each item text. Received: 'ab'."),
        ("path", "", "None or a path that a file system can have. Received: ''."),
        ("path", "a\0b", "None or a path that a file system can have. Received: 'a\\x00b'."),
        ("path", b"a", "None or a path that a file system can have. Received: b'a'."),
        ("path", "a" * 300, "None or a path that a file system can have. Received: 'aaa"),
        ("taste", 5, "None or a function. Received: 5."),
        ("seed", -1, "a whole number of at least 0 and below 4294967296. Received: -1."),
        ("flag", 1, "True or False. Received: 1."),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(argument, value, says):
    with pytest.raises(SurgeryError) as caught:
        bake(**{argument: value})
    assert str(caught.value).startswith(f"Expected {argument} to be {says}")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"units": [3, -1]}, "Expected units[1] to be a whole number of at least 0. Received: -1."),
        ({"rates": (1, 0)}, "Expected rates[1] to be a number above 0. Received: 0."),
    ],
)
def test_the_innermost_part_that_does_not_fit_is_named(value, says):
    with pytest.raises(SurgeryError) as caught:
        bake(**value)
    assert str(caught.value) == says


def test_arguments_by_position_and_any_number_of_them_are_checked():
    with pytest.raises(SurgeryError, match="Expected model to be"):
        bake(5)
    with pytest.raises(SurgeryError, match="Expected recipes to be a Recipe"):
        bake(None, Recipe(3), 5)


def test_what_fits_is_passed_on_as_it_is():
    model = keras.Sequential([keras.layers.Dense(1)])
    recipes, units, names, array = [Recipe(1)], [0, 64], iter("ab"), np.zeros(3)
    found = bake(model, *recipes, units=units, names=names, anything=array, more=5)
    assert found[0] is model and found[1][0] is recipes[0]
    assert found[3] is units and list(found[4]) == ["a", "b"]
    assert found[5] is array and found[6] == {"more": 5}


def test_numbers_of_numpy_are_passed_on_as_those_of_python():
    assert type(bake(often=np.int64(3))[2]) is int
    assert bake(units=[np.int64(3)])[3] == [3]


def test_a_dataclass_and_one_that_extends_it_are_checked_with_their_own_errors():
    with pytest.raises(ConfigError, match="Expected minutes to be"):
        Recipe("3")
    with pytest.raises(HeadError, match="Expected minutes to be"):
        Cake(-3)
    with pytest.raises(HeadError, match=r"Expected layers\['a'\] to be a Recipe"):
        Cake(3, layers={"a": 5})
    with pytest.raises(HeadError, match="Expected each key of layers to be text"):
        Cake(3, layers={5: Recipe(3)})
    assert Cake(3, heat=float("inf")).heat == float("inf")


def test_signature_and_docstring_are_those_of_the_function():
    assert inspect.signature(bake).parameters["how"].default == "fast"
    assert bake.__doc__ == "Return what was passed." and bake.__module__ == __name__


def test_a_missing_or_unknown_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match="minutes"):
        Recipe()


class Oven(TypedDict, total=False):
    minutes: PositiveInt


@checked(ConfigError)
def roast(dish: str, **oven: Unpack[Oven]) -> Any:
    return oven


def test_keywords_of_a_typed_dictionary_are_checked_as_arguments_are():
    assert roast("tart", minutes=3) == {"minutes": 3} and roast("tart") == {}
    with pytest.raises(ConfigError, match="Expected minutes to be a whole number of at least 1"):
        roast("tart", minutes=0)
    with pytest.raises(TypeError, match="unexpected argument 'minute'"):
        roast("tart", minute=3)


def test_no_message_is_longer_than_one_reads():
    with pytest.raises(SurgeryError) as caught:
        bake(how="é" * 10_000)
    assert len(str(caught.value)) < 500
    assert len(str(ReusekitError("a b " * 5_000))) < 1_500
    assert "…" in str(ReusekitError("Received: " + "a" * 5_000))


def test_a_path_may_begin_with_the_home_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert rk.FeatureStore("~/store").path == tmp_path / "store"
    network = glyphnet.build(None)
    network.save("net.keras")
    network.save_weights("net.weights.h5")
    assert rk.load_backbone("~/net.keras").source == str(tmp_path / "net.keras")
    assert rk.load_backbone("reusekit/glyphnet", weights="~/net.weights.h5").name == "glyphnet"
    with pytest.raises(rk.DataError, match=f"Expected mnist in {tmp_path}/tfds"):
        rk.data.load("mnist", "train", data_dir="~/tfds")
    init("~/mine")
    assert capsys.readouterr().out.startswith(f"{sys.executable} {tmp_path}/mine/pipelines")
    assert not (tmp_path / "~").exists()
