"""The site: its tutorials run, its examples are true, its pages are all in the menu."""

import re
import runpy

import pytest
import yaml
from repository import ROOT

DOCS = ROOT / "docs"
TUTORIALS = ("surgery", "digits", "pictures", "backbones", "text")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder, without a cache, a database or a figure of anyone else's."""
    import matplotlib.pyplot as plt
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tracked_in = mlflow.get_tracking_uri()
    yield tmp_path
    plt.close("all")
    mlflow.set_tracking_uri(tracked_in)


def test_every_tutorial_is_run():
    assert sorted(TUTORIALS) == sorted(path.stem for path in DOCS.glob("tutorials/*.py"))


def told(name):
    return runpy.run_path(str(DOCS / "tutorials" / f"{name}.py"))


def test_digits_are_read(folder):
    assert told("digits")["accuracy"] > 0.7


def test_pictures_are_told_apart_and_explained(folder):
    found = told("pictures")
    assert found["search"].result.best.metrics["val_accuracy"] > 0.8
    assert found["found"].values.max() > 0


def test_what_ships_is_the_smallest_file_that_is_as_good(folder):
    found = told("backbones")
    front = found["front"]
    assert list(front.shipped_bytes) == sorted(front.shipped_bytes)
    assert set(found["search"].results().backbone) == {"glyphnet", "tiny"}
    assert found["exported"].max_difference < 1e-5


def test_a_csv_becomes_a_model_that_names_its_answers(folder):
    found = told("text")
    asked = ["A fast and useful function.", "An invalid, missing one."]
    answers = found["served"].predict(found["pd"].DataFrame({"text": asked}))
    assert list(answers["label"]) == ["praise", "complaint"]


def test_the_essay_is_gone_through(folder, capsys):
    found = told("surgery")
    said = capsys.readouterr().out
    assert "clone_model  same numbers: False, trainable: True" in said
    assert "rk.clone     same numbers: True, trainable: False" in said
    assert "'logits', tied to its weights" in said
    assert "not connected" in said
    assert found["halves"].frontier == ("one", "stem")
    assert found["edited"].output_shape == (None, 3)


@pytest.mark.parametrize("page", ["concepts", "faq", "index"])
def test_examples_of_a_page_are_true(page, folder):
    text = (DOCS / f"{page}.md").read_text("utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert code
    exec(compile(code.replace("max_trials=8", "max_trials=1, epochs=1"), page, "exec"), {})


def test_every_page_is_in_the_menu():
    def pages(entry):
        if isinstance(entry, str):
            return {entry}
        inside = entry.values() if isinstance(entry, dict) else entry
        return set().union(*map(pages, inside))

    menu = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert menu == there | {f"tutorials/{name}.md" for name in TUTORIALS}
