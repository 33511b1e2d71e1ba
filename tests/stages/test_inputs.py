"""Splits that share examples are refused before anything is trained on them."""

from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds
from data_builders import F, prepare
from PIL import Image

import reusekit as rk
from reusekit import stages
from reusekit.backbones import Backbone
from reusekit.settings import BackboneSettings, DataSettings

DIGITS = "sklearn_digits"


@pytest.mark.parametrize(
    "splits",
    [
        {"test": "validation"},
        {"validation": "train[90%:]"},
        {"train": "train[:80%]", "test": "train[79%:]"},
    ],
)
def test_splits_that_share_examples_are_refused(splits):
    backbone = stages.load_backbone(BackboneSettings())
    with pytest.raises(rk.ConfigError, match="share no examples"):
        stages.load_data(DataSettings(name=DIGITS, **splits), backbone, seed=0)


def test_a_backbone_of_any_size_needs_one_to_be_chosen():
    settings = {"source": "keras.applications/MobileNetV2", "weights": None}
    with pytest.raises(rk.ConfigError, match="Choose one with --backbone"):
        backbone = stages.load_backbone(BackboneSettings(**settings))
        stages.load_data(DataSettings(name=DIGITS), backbone, seed=0)
    backbone = stages.load_backbone(BackboneSettings(**settings, input_shape=(32, 48, 3)))
    splits = stages.load_data(DataSettings(name=DIGITS), backbone, seed=0)
    assert splits.test.input_shape == (32, 48, 3)


def test_a_backbone_of_text_is_refused_before_any_data_is_read():
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("ids", "mask"))
    embedded = keras.layers.Embedding(9, 4)(ids) * keras.ops.cast(mask, "float32")[..., None]
    backbone = Backbone(keras.Model([ids, mask], embedded), None, "made/text", None)
    with pytest.raises(rk.ConfigError, match="Received: made/text, which takes 'ids'"):
        stages.load_data(DataSettings(name="no_such_data"), backbone, seed=0)


def test_texts_of_a_folder_and_of_the_catalogue_become_tokens(tmp_path):
    backbone = stages.load_backbone(BackboneSettings(source="reusekit/prosenet"))
    for number in range(40):
        file = tmp_path / ("ham", "spam")[number % 2] / f"{number}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"Return the number {number}, or None.")
    folder = DataSettings(folder=str(tmp_path), sequence_length=8)
    few = stages.load_data(folder, backbone, seed=0)
    assert (few.train.input_shape, few.train.raw.input_shape) == ((8,), ())
    assert few.raw.test.size == few.test.size == 6
    reviews = DataSettings(name="imdb_reviews", validation="test[:4]", test="test[4:]")
    with tfds.testing.mock_data(num_examples=8):
        few = stages.load_data(reviews, backbone, seed=0)
        assert few.train.arrays()[0].shape == (8, 64)
    with pytest.raises(rk.DataError, match=r"data\.train of numbers"):
        stages.load_data(folder, replace(backbone, tokenizer=None), seed=0)
    with pytest.raises(rk.ConfigError, match=r"takes texts\. Received: sklearn_digits"):
        stages.load_data(DataSettings(name=DIGITS), backbone, seed=0)


def test_more_tokens_than_a_backbone_can_take_are_refused_before_any_data_is_read(tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    prosenet = stages.load_backbone(BackboneSettings(source="reusekit/prosenet", weights=None))
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    placed = keras_hub.layers.TokenAndPositionEmbedding(9, 12, 4)(ids)
    placed = Backbone(keras.Model(ids, placed), None, "made/bert", None, tokenizer=lambda *_: None)
    for backbone, length, says in (
        (prosenet, 100_000, r"since attention over more .* Received: 100000"),
        (placed, 13, "at most 12 for made/bert, since it has positions for no more"),
    ):
        data = DataSettings(name="no_such_data", sequence_length=length)
        with pytest.raises(rk.ConfigError, match=says):
            stages.load_data(data, backbone, seed=0)
    pairs = pd.DataFrame({"a": [f"read {n}" for n in range(40)], "b": "files", "y": [0, 1] * 20})
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    pairs = {"table": str(tmp_path / "pairs.csv"), "input": ["a", "b"], "label": "y"}
    with pytest.raises(rk.ConfigError, match=r"room for words\. Received: 1, with which"):
        stages.load_data(DataSettings(**pairs, sequence_length=1), prosenet, seed=0)


def test_a_setting_of_its_own_is_no_option():
    with pytest.raises(rk.ConfigError, match=r"backbone\.weights"):
        stages.load_backbone(BackboneSettings(options={"weights": None}))


def test_one_class_is_no_task_and_a_class_that_training_never_shows_is_named(
    tmp_path, backbone, capsys
):
    levels = iter(range(100))

    def rows(labels):
        return [
            {"image": np.full((8, 8, 1), next(levels), "uint8"), "label": label} for label in labels
        ]

    features = {
        "image": F.Image(shape=(8, 8, 1)),
        "label": F.ClassLabel(names=["cat", "dog", "[owl]"]),
    }
    splits = {"train": rows([0] * 4), "some": rows([0, 1] * 2), "test": rows([1] * 3)}
    splits["owls"] = rows([2] * 3)
    splits["again"] = splits["some"][1:]
    prepare(tmp_path, "sorted_pets", features, splits)

    def load(train, **options):
        settings = {"train": train, "validation": "test[:2]", "test": "test[2:]"} | options
        data = DataSettings(name="sorted_pets", data_dir=str(tmp_path), **settings)
        return stages.load_data(data, backbone, seed=0)

    with pytest.raises(rk.ConfigError, match="two classes at least"):
        load("train")
    assert load("some").train.size == 4
    assert "warning" not in capsys.readouterr().err
    load("some+owls[:1]")
    assert "has one example of 1 classes: [owl]" in capsys.readouterr().err
    load("some", validation="test", test="owls")
    assert "has no example of 1 classes that the other splits have: [owl]" in (
        capsys.readouterr().err
    )
    load("some", validation="again")
    assert "have equal examples: the content of 3 of the latter's 3" in capsys.readouterr().err
    with pytest.raises(rk.DataError, match=r"Received: 'validation'.*train|Valid"):
        load("some", validation="validation")


def test_a_class_that_a_training_folder_or_part_lacks_is_refused(tmp_path, backbone, capsys):
    level = 0
    for part, names in (("train", "ab"), ("validation", "ab"), ("test", "ac")):
        for name in names * 3:
            level += 1
            path = tmp_path / part / name / f"{level}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), level, "uint8")).save(path)
    folder = {"folder": str(tmp_path)}
    with pytest.raises(rk.ConfigError, match=r"of each class.*has no example of 1 classes.*: c"):
        stages.load_data(DataSettings(**folder), backbone, seed=0)
    sliced = DataSettings(**folder, train="train[:5]")
    assert stages.load_data(sliced, backbone, seed=0).train.size == 5
    assert "no example of 1 classes that the other splits have: c" in capsys.readouterr().err


def test_the_range_of_pixels_is_said_and_a_wrong_one_is_warned_of(tmp_path, capsys):
    # pipeline B4: a file trained on pixels / 255 got pixels from 0 to 255, without a word
    inputs = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(x))
    images = stages.load_data(
        DataSettings(name=DIGITS, examples_per_class=5),
        stages.load_backbone(BackboneSettings()),
        seed=0,
    ).train.arrays()[0]
    seen = np.asarray(rk.extract(model, "conv")(images / 255)).reshape(-1, 4)
    model.get_layer("norm").moving_variance.assign(seen.var(axis=0))
    model.save(tmp_path / "net.keras")

    def said(**settings):
        capsys.readouterr()
        backbone = stages.load_backbone(
            BackboneSettings(
                source=str(tmp_path / "net.keras"), input_shape=(32, 32, 1), **settings
            )
        )
        stages.load_data(DataSettings(name=DIGITS, examples_per_class=5), backbone, seed=0)
        return capsys.readouterr().err

    unscaled = said()
    assert "Pixels reach net as 0..255" in unscaled
    assert "warning: pixels do not reach net in the range" in unscaled
    assert said(scale="0..1") == ""


def test_a_table_is_read_once_for_all_parts(tmp_path, capsys):
    numbers = np.random.default_rng(0).integers(0, 40, (60, 3))
    frame = pd.DataFrame(numbers, columns=["a", "b", "c"]).assign(
        kind=["x", "y"] * 30, part=["train"] * 30 + ["validation"] * 15 + ["test"] * 15
    )
    frame = pd.concat([frame, frame[-5:]])
    frame.to_csv(tmp_path / "table.csv")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(4)(inputs))
    backbone = Backbone(model, None, "made/numbers", None)
    told = {"table": str(tmp_path / "table.csv"), "input": ["a", "b", "c"], "label": "kind"}
    splits = stages.load_data(DataSettings(**told), backbone, seed=0)
    assert capsys.readouterr().err.count("whose input is that of an earlier one") == 1
    assert splits.train.size + splits.validation.size + splits.test.size == 65
    by_column = stages.load_data(DataSettings(**told, part="part"), backbone, seed=0)
    assert by_column.validation.arrays()[0].tolist() == numbers[30:45].tolist()
    assert by_column.validation.check().tolist() == by_column.validation.counts.tolist() == [8, 7]
    with pytest.raises(rk.DataError, match=r"Expected rows of 'tset'.*Did you mean 'test'"):
        stages.load_data(DataSettings(**told, part="part", test="tset"), backbone, seed=0)
