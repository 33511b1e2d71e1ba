"""KerasHub presets as backbones: images with their scaling in front, and text."""

import sys

import keras
import numpy as np
import pytest

import reusekit as rk
from reusekit.surgery import prepend

keras_hub = pytest.importorskip("keras_hub")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A small ResNet that was trained on scaled pixels, as a preset folder."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("presets") / "resnet"
    network = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 16],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    network.save_to_preset(folder)
    scale, offset = [1 / 58.4, 1 / 57.1, 1 / 57.4], [-2.1, -2.0, -1.8]
    keras_hub.layers.ImageConverter(image_size=(16, 16), scale=scale, offset=offset).save_to_preset(
        folder
    )
    return folder, network, np.array(scale), np.array(offset)


def test_an_image_backbone_takes_raw_pixels(images):
    folder, network, scale, offset = images
    found = rk.load_backbone(folder)
    x = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3)).astype("float32")
    expected = network.predict((x * scale + offset).astype("float32"), verbose=0)
    np.testing.assert_allclose(found.model.predict(x, verbose=0), expected, rtol=2e-4, atol=2e-4)
    assert found.preprocessing.layers[-1].name == "preprocessing"
    assert len(rk.cut_points(found.model)) > 3


def test_random_weights_on_demand(images):
    folder, network, *_ = images
    found = rk.load_backbone(folder, weights=None)
    assert found.weights is None
    kernels = [m.get_layer("conv1_conv").kernel.numpy() for m in (found.model, network)]
    assert not np.array_equal(*kernels)


def test_a_text_backbone(tmp_path):
    network = keras_hub.models.BertBackbone(
        vocabulary_size=50, num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16,
        max_sequence_length=12,
    )  # fmt: skip
    network.save_to_preset(tmp_path / "bert")
    found = rk.load_backbone(tmp_path / "bert")
    assert found.preprocessing is None
    x = {
        "token_ids": np.arange(12)[None] % 50,
        "segment_ids": np.zeros((1, 12), "int32"),
        "padding_mask": np.ones((1, 12), "int32"),
    }
    ours, theirs = (m.predict(x, verbose=0) for m in (found.model, network))
    assert np.array_equal(ours["sequence_output"], theirs["sequence_output"])


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A small BERT with its tokenizer, as a preset folder."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "read", "the", "file", "##s", "close"]
    folder = tmp_path_factory.mktemp("presets") / "bert"
    keras.utils.set_random_seed(0)
    keras_hub.models.BertBackbone(
        vocabulary_size=len(words), num_layers=2, num_heads=2, hidden_dim=8, intermediate_dim=16,
        max_sequence_length=12,
    ).save_to_preset(folder)  # fmt: skip
    keras_hub.tokenizers.BertTokenizer(vocabulary=words, lowercase=True).save_to_preset(folder)
    return folder


def test_a_text_backbone_brings_its_tokenizer(bert, tmp_path):
    found = rk.load_backbone(bert)
    texts = keras.ops.convert_to_tensor(["Read the files", "Close the unknown file, read"])
    tokens = found.tokenizer(6, ("text",))(texts)
    assert np.array_equal(tokens["token_ids"], [[2, 5, 6, 7, 8, 3], [2, 9, 6, 1, 7, 3]])
    assert np.array_equal(tokens["padding_mask"], np.ones((2, 6)))
    whole = rk.attach(rk.extract(found.model, "transformer_layer_1"), rk.heads.Classifier(3))
    strings = prepend(whole, found.tokenizer(6, ("text",)))
    strings.save(tmp_path / "whole.keras")
    loaded = keras.saving.load_model(tmp_path / "whole.keras")
    for model in (strings, loaded):
        np.testing.assert_allclose(
            model.predict(texts, verbose=0), whole.predict(tokens, verbose=0), atol=1e-6
        )


def test_pairs_of_texts_are_told_apart(bert):
    make = rk.load_backbone(bert).tokenizer
    pair = {"one": ["read"], "other": ["the file"]}
    tokens = make(8, ("one", "other"))({name: keras.ops.array(text) for name, text in pair.items()})
    assert np.array_equal(tokens["token_ids"], [[2, 5, 3, 6, 7, 3, 0, 0]])
    assert np.array_equal(tokens["segment_ids"], [[0, 0, 0, 1, 1, 1, 0, 0]])


def test_what_cannot_be_had_is_said(images, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(rk.BackboneError, match="can be loaded"):
        rk.load_backbone(tmp_path)
    with pytest.raises(rk.BackboneError, match=r"can be loaded.*keras_hub/no_such_preset"):
        rk.load_backbone("keras_hub/no_such_preset")
    with pytest.raises(rk.BackboneError, match="its own weights"):
        rk.load_backbone(images[0], weights="imagenet")
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(rk.BackboneError, match=r"reusekit\[hub\]"):
        rk.load_backbone(images[0])
