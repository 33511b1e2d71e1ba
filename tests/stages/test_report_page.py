"""The mistakes of a report: inputs in words, the explained output, reasons where there is none."""

import json
from types import SimpleNamespace

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
from keras import layers

import reusekit as rk
from reusekit import stages
from reusekit.progress import StageClock
from reusekit.settings import BackboneSettings, DataSettings
from reusekit.tasks import rules_of


@pytest.fixture
def told(tracking, tmp_path):
    """Log the mistakes of a model on a test split, and return them as `report.json` has them."""

    def tell(whole: keras.Model, cut: str, splits: stages.Splits) -> dict:
        tuned = SimpleNamespace(whole=whole, cut=cut, rules=rules_of(splits.test.task))
        job = SimpleNamespace(clock=StageClock(), folder=tmp_path, settings={})
        with mlflow.start_run():
            test = stages.evaluate(whole, splits.test)
            stages.write_report(job, tuned, splits, test, version=None)
        return json.loads((tmp_path / "report.json").read_text())

    return tell


def three(split: rk.data.DataSplit) -> stages.Splits:
    return stages.Splits(split, split, split)


def on_pictures(units: int, activation: str | None = None) -> keras.Model:
    """A network that cuts pictures into tokens, as vision transformers do, and adds a head."""
    x = keras.Input((8, 8, 1), name="x")
    maps = layers.Conv2D(4, 2, strides=2, name="patches")(x)
    y = layers.GlobalAveragePooling1D(name="pool")(layers.Reshape((16, 4), name="tokens")(maps))
    return keras.Model(x, layers.Dense(units, activation, name="head")(y), name="m")


def test_of_labels_and_numbers_the_most_wrong_one_is_explained_and_named(told):
    keras.utils.set_random_seed(0)
    pictures = np.random.default_rng(0).random((20, 8, 8, 1)).astype("float32")
    labels = np.stack([np.ones(20), np.arange(20) % 2], 1).astype(int)
    whole = on_pictures(2, "sigmoid")
    whole.get_layer("head").bias.assign([-4.0, 0.0])  # the first label is always missed
    of_labels = rk.data.from_arrays(pictures, labels, names=["up", "down"])
    found = told(whole, "patches", three(of_labels))
    assert found["kind"] == "multilabel"
    assert len(found["mistakes"]) == 12
    assert {one["explained"] for one in found["mistakes"]} == {"up"}
    assert all(one["map"] and one["truth"].startswith("up") for one in found["mistakes"])
    numbers = np.stack([labels[:, 0] * 5.5, labels[:, 1]], 1)
    found = told(on_pictures(2), "patches", three(rk.data.from_arrays(pictures, numbers)))
    first = found["mistakes"][0]["truth"].split()[0]
    assert {one["explained"] for one in found["mistakes"]} == {first}
    assert found["mistakes"][0]["off"].startswith(f"{first} -")


def test_a_cut_without_height_and_width_is_no_map_and_that_is_said(told):
    pictures = np.random.default_rng(0).random((20, 8, 8, 1)).astype("float32")
    split = rk.data.from_arrays(pictures, np.arange(20) % 2 + 0.5)
    found = told(on_pictures(1), "tokens", three(split))
    assert found["missing"]["explanations"] == "the cut tokens has no axes of height and width."
    assert all("map" not in one and one["image"] for one in found["mistakes"])


def test_numbers_of_a_table_have_the_names_of_their_columns(told):
    n = np.arange(40)
    table = pd.DataFrame({"width": n / 2, "height": n + 3, "price": n + 0.25})
    split = rk.data.from_table(table, "test", input=["width", "height"], label="price")
    x = keras.Input((2,), name="x")
    whole = keras.Model(x, layers.Dense(1, name="head", kernel_initializer="zeros")(x))
    worst = told(whole, "x", three(split))["mistakes"][0]
    largest = max(split.arrays()[1].ravel())
    assert worst["text"] == f"width {(largest - 0.25) / 2:g}, height {largest + 2.75:g}"
    assert (worst["said"], worst["truth"], worst["off"]) == ("0", f"{largest}", f"{-largest}")


def test_texts_of_a_preset_are_shown_token_by_token_without_filling(told, tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "read", "the", "file", "##s"]
    keras_hub.models.BertBackbone(
        vocabulary_size=9, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=8,
        max_sequence_length=12,
    ).save_to_preset(tmp_path / "bert")  # fmt: skip
    tokenizer = keras_hub.tokenizers.BertTokenizer(vocabulary=words, lowercase=True)
    tokenizer.save_to_preset(tmp_path / "bert")
    backbone = stages.load_backbone(BackboneSettings(source=str(tmp_path / "bert")))
    texts = [f"Read the files {'the ' * (n % 4)}{n}" for n in range(40)]
    table = pd.DataFrame({"text": texts, "topic": ["a", "b", "a", "b"] * 10})
    table.to_csv(tmp_path / "texts.csv", index=False)
    data = DataSettings(table=str(tmp_path / "texts.csv"), input="text", label="topic")
    splits = stages.load_data(data.changed(sequence_length=12), backbone, seed=0)
    cut = "transformer_layer_0"
    whole = rk.attach(rk.extract(backbone.model, cut, pooling="avg"), rk.heads.Classifier(2))
    found = told(whole, cut, splits)
    assert "explanations" not in found["missing"]
    shown = {tuple(word for word, _ in one["words"]) for one in found["mistakes"]}
    assert {words[:5] for words in shown} == {("[CLS]", "read", "the", "file", "##s")}
    assert {words[-1] for words in shown} == {"[SEP]"}  # and no filling behind it
    assert max(map(len, shown)) < 12
