"""The embedded backbone of text: what ships, what it has read, and that it is worth having."""

import json
import runpy
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import reusekit as rk
from reusekit.backbones import prosenet
from reusekit.data.builders.python_topics import OTHERS, SEEN
from reusekit.data.texts import tokenized

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain_prosenet.py"


def test_what_ships_is_under_three_megabytes():
    shipped = [prosenet.WEIGHTS, prosenet.VOCABULARY]
    assert sum(file.stat().st_size for file in shipped) < 3_000_000


def test_the_shipped_report_is_about_the_shipped_network():
    report = json.loads(prosenet.WEIGHTS.with_name("prosenet.json").read_text())
    assert report["parameters"] == prosenet.build(weights=None).count_params()
    assert report["accuracy_on_new_texts"] > 3 * report["share_of_the_commonest_word"]
    words = prosenet.vocabulary()
    assert len(words) == len(set(words)) == prosenet.WORDS - prosenet.MASK


def test_every_named_cut_is_clean():
    model = prosenet.build(weights=None)
    clean = [str(point.at) for point in rk.cut_points(model, max_width=1)]
    *inner, last = prosenet.CUTS
    assert [name for name in clean if name in inner] == inner
    assert model.get_layer(last).output is model.output


@pytest.mark.parametrize("weights", ["documentatoin", "no/such/file.weights.h5"])
def test_absent_weights_are_refused_in_one_line(weights):
    with pytest.raises(rk.BackboneError, match="documentation") as caught:
        prosenet.build(weights)
    assert "\n" not in str(caught.value)


def test_an_input_shape_is_refused():
    with pytest.raises(rk.BackboneError, match="sequence_length"):
        prosenet.load_prosenet(weights=None, input_shape=(64,))


def test_a_text_longer_than_any_in_pretraining_is_taken():
    model = rk.load_backbone("reusekit/prosenet").model
    tokens = np.full((1, 3 * prosenet.LENGTH), 20)
    assert np.isfinite(model.predict_on_batch(tokens)).all()


def test_topics_are_as_large_as_one_another_and_share_no_module():
    parts = [rk.data.load("python_topics", part) for part in ("train", "validation", "test")]
    assert [set(part.check()) for part in parts] == [{60}, {40}, {80}]
    texts = np.concatenate([part.arrays()[0] for part in parts])
    assert len(set(texts)) == len(texts)
    assert SEEN.keys() == OTHERS.keys()
    modules = [module for part in (SEEN, OTHERS) for topic in part.values() for module in topic]
    assert len(set(modules)) == len(modules)


def test_documentation_taught_the_network_what_random_weights_do_not_know():
    few = rk.data.Treatment(examples_per_class=20)
    splits = [
        rk.data.load("python_topics", "train", treatment=few),
        rk.data.load("python_topics", "test"),
    ]
    tokens = [tokenized(part, prosenet.tokenizer()).arrays() for part in splits]

    def score(weights):
        keras.utils.set_random_seed(0)
        model = rk.extract(prosenet.build(weights), "block3_attention_add", pooling="avg")
        (x, y), (tx, ty) = ((model.predict(ids, verbose=0), told) for ids, told in tokens)
        scale = x.std(axis=0) + 1e-3
        return LogisticRegression(max_iter=1000).fit(x / scale, y).score(tx / scale, ty)

    assert score("documentation") > score(None) + 0.05


def test_the_script_writes_weights_words_and_their_report(tmp_path, monkeypatch):
    monkeypatch.setattr(prosenet, "BLOCKS", 2)  # those that it lets look around
    out = tmp_path / "new" / "tiny.weights.h5"
    few = ["--steps", "2", "--packages", "filelock", "psutil"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *few, "--verbose", "0", "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    written = sorted(path.name for path in out.parent.iterdir())
    assert written == ["tiny.json", "tiny.txt", "tiny.weights.h5"]
    report = json.loads((out.parent / "tiny.json").read_text())
    assert 0 <= report["accuracy_on_new_texts"] <= 1
    assert report["versions"].keys() == {"python", "filelock", "psutil"}
    assert prosenet.build(out).count_params() == report["parameters"]
    assert (out.parent / "tiny.txt").read_text().startswith("[MASK]\nthe\n")
