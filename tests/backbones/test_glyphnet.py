"""The embedded backbone: what ships, what it was trained on, and that it is worth having."""

import json
import runpy
import sys
import unicodedata
from pathlib import Path

import keras
import numpy as np
import pytest
from letters.drawing import load_letters
from letters.rendering import render
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import reusekit as rk
from reusekit.backbones import glyphnet

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain_glyphnet.py"


@pytest.fixture(scope="module")
def letters():
    return load_letters(["cmr10", "cmtt10"])


@pytest.fixture(scope="module")
def digits():
    """Real digits as glyphnet takes them: float32 (1797, 32, 32, 1) in [0, 255], and labels."""
    bunch = load_digits()
    pixels = keras.ops.image.resize(bunch.images[..., None] * (255 / 16), (32, 32))
    return np.asarray(pixels, "float32"), bunch.target


def test_the_shipped_weights_are_under_one_megabyte():
    assert glyphnet.WEIGHTS.stat().st_size < 1_000_000


def test_the_shipped_report_is_about_the_shipped_network():
    report = json.loads(glyphnet.WEIGHTS.with_name("glyphnet.json").read_text())
    assert report["parameters"] == glyphnet.build(weights=None).count_params()
    assert report["accuracy_on_held_out_fonts"] > 100 / report["classes"]


def test_every_named_cut_is_clean():
    model = glyphnet.build(weights=None)
    clean = [str(point.at) for point in rk.cut_points(model, max_width=1)]
    *inner, last = glyphnet.CUTS
    assert len(inner) >= 6
    assert [name for name in clean if name in inner] == inner
    assert model.get_layer(last).output is model.output


def test_the_network_shrinks_from_32_to_4_pixels():
    model = glyphnet.build(weights=None)
    sides = [model.get_layer(name).output.shape[1] for name in glyphnet.CUTS]
    assert sides == [32, 16, 16, 8, 8, 4, 4, 4]


def test_preprocessing_keeps_black_black():
    pixels = np.array([0, 51, 255], "float32").reshape(3, 1, 1, 1) * np.ones((1, 32, 32, 1))
    out = np.asarray(glyphnet.preprocessing()(pixels))
    np.testing.assert_allclose(out[:, 0, 0, 0], [0.0, 0.2, 1.0], rtol=1e-6)


@pytest.mark.parametrize("weights", ["leters", "no/such/file.weights.h5"])
def test_absent_weights_are_refused_in_one_line(weights):
    with pytest.raises(rk.BackboneError, match="letters") as caught:
        glyphnet.build(weights)
    assert "\n" not in str(caught.value)


def test_the_weights_of_another_network_are_refused(tmp_path):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(rk.BackboneError, match="Expected the weights of glyphnet"):
        glyphnet.build(tmp_path / "other.weights.h5")


def test_another_input_shape_is_refused():
    with pytest.raises(rk.BackboneError, match=r"input_shape=\(32, 32, 1\)"):
        glyphnet.load_glyphnet(weights=None, input_shape=(28, 28, 1))


def test_only_letters_are_drawn_and_none_that_looks_like_a_digit(letters):
    assert all(unicodedata.category(character) in ("Lu", "Ll") for character in letters.characters)
    assert not any(unicodedata.normalize("NFKC", c).isdecimal() for c in letters.characters)
    assert {"A", "k", "W"} <= set(letters.characters)
    assert not {"O", "o", "l"} & set(letters.characters)


def test_letters_that_look_alike_share_a_class():
    letters = load_letters(["DejaVuSerif"])
    label = dict(zip(letters.characters, letters.labels, strict=True))
    latin, greek, cyrillic = "A", "\N{GREEK CAPITAL LETTER ALPHA}", "\N{CYRILLIC CAPITAL LETTER A}"
    assert label[latin] == label[greek] == label[cyrillic]
    assert label["A"] != label["R"]


def test_rendering_follows_its_seed(letters):
    which = np.arange(40) % len(letters)
    one, same, other = (render(letters, which, np.random.default_rng(s)) for s in (7, 7, 8))
    assert one.dtype == np.uint8
    assert one.shape == (40, 32, 32, 1)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any(axis=(1, 2, 3)).all()


def test_renderings_are_white_strokes_on_black(letters):
    images = render(letters, np.arange(len(letters)), np.random.default_rng(0))
    brightest = images.max(axis=(1, 2, 3))
    assert np.median(images) < 32
    assert np.median(brightest) > 128


def test_the_script_writes_weights_and_their_report(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphnet, "BLOCKS", glyphnet.BLOCKS[:3])
    out = tmp_path / "new" / "tiny.weights.h5"
    few = ["--epochs", "1", "--images", "256", "--fonts", "cmss10", "cmti10"]
    options = ["--seed", "3", "--verbose", "0", *few]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, "--out", str(out)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert sorted(path.name for path in out.parent.iterdir()) == ["tiny.json", "tiny.weights.h5"]
    report = json.loads((out.parent / "tiny.json").read_text())
    assert (report["seed"], report["images"]) == (3, 256)
    assert 0 <= report["accuracy_on_new_renderings"] <= 1
    assert report["held_out_fonts"] == ["cmti10"]
    assert glyphnet.build(out).count_params() == report["parameters"]


def test_the_script_refuses_an_unknown_font(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--fonts", "Comic"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "unknown font 'Comic'" in capsys.readouterr().err


def test_letters_taught_the_network_what_random_weights_do_not_know(digits):
    pixels, labels = digits
    shots, rest = train_test_split(
        np.arange(len(labels)), train_size=100, random_state=0, stratify=labels
    )

    def score(weights):
        model = rk.extract(glyphnet.build(weights), "block5_out")
        inputs = np.asarray(glyphnet.preprocessing()(pixels))
        features = model.predict(inputs, verbose=0).mean(axis=(1, 2))
        features = (features - features[shots].mean(0)) / (features[shots].std(0) + 1e-3)
        probe = LogisticRegression(C=0.1, max_iter=1000).fit(features[shots], labels[shots])
        return probe.score(features[rest], labels[rest])

    keras.utils.set_random_seed(0)
    assert score("letters") > max(0.93, score(None) + 0.05)
