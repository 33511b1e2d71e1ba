"""The blocks of a cut model, and the drawing of them."""

import keras
import pytest

import reusekit as rk
from reusekit.training.drawing import blocks, draw_cut


@pytest.fixture(scope="module")
def tuned():
    """Glyphnet cut at its fifth block, trained from the second on, with a new head."""
    bottom = rk.extract(rk.load_backbone("reusekit/glyphnet", weights=None).model, "block5_out")
    model = rk.attach(rk.clone(bottom, weights="copy"), rk.heads.Classifier(classes=10))
    rk.freeze(model, up_to="block2_out")
    return model


def test_blocks_are_told_apart_by_what_is_frozen_trained_and_new(tuned):
    found = blocks(tuned, "block5_out")
    assert [(block.name, block.state) for block in found[:-1]] == [
        ("stem_out", "frozen"),
        ("block1_out", "frozen"),
        ("block2_out", "frozen"),
        ("block3_out", "trained"),
        ("block4_out", "trained"),
        ("block5_out", "trained"),
    ]
    assert found[-1].state == "new"
    assert found[-1].shape == (None, 10)


def test_every_parameter_and_flop_is_in_one_block(tuned):
    found = blocks(tuned, "block5_out")
    cut = rk.cut_points(tuned)["block5_out"]
    assert sum(block.parameters for block in found) == tuned.count_params()
    assert sum(block.flops for block in found) == cut.flops_before + cut.flops_after
    assert found[-1].parameters == 64 * 10 + 10


def test_a_frozen_normalization_among_what_is_trained_parts_no_block():
    layers = [keras.Input((8, 8, 1))]
    for number in range(3):
        layers += [
            keras.layers.Conv2D(4, 3, name=f"conv{number}"),
            keras.layers.BatchNormalization(name=f"norm{number}", trainable=False),
        ]
    layers += [keras.layers.Flatten(), keras.layers.Dense(2, name="head")]
    found = blocks(keras.Sequential(layers), "norm2")
    assert [block.state for block in found] == ["trained"] * (len(found) - 1) + ["new"]


def test_a_deep_model_is_drawn_in_few_blocks():
    layers = [keras.layers.Dense(4, name=f"dense{number}") for number in range(50)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    for layer in layers[:7]:
        layer.trainable = False
    found = blocks(model, "dense48", most=10)
    assert len(found) <= 11
    states = [block.state for block in found]
    assert states == sorted(states, key=["frozen", "trained", "new"].index)
    assert found[states.index("trained") - 1].name == "dense6"
    assert sum(block.parameters for block in found) == model.count_params()


def test_the_drawing_shows_blocks_shapes_and_the_cut(tuned, tmp_path):
    figure = draw_cut(tuned, "block5_out", "glyphnet on digits")
    chain, parameters, _ = figure.axes
    written = [text.get_text() for text in chain.texts]
    assert "cut: block5_out" in [text.strip() for text in written]
    assert "4x4x64" in written
    found = blocks(tuned, "block5_out")
    assert [bar.get_height() for bar in parameters.patches] == [b.parameters for b in found]
    names = [text.get_text().split(":")[0] for text in figure.legends[0].get_texts()]
    assert names == ["frozen", "trained", "new"]
    figure.savefig(tmp_path / "model.png")
    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_cut_is_refused_with_the_nearest(tuned):
    with pytest.raises(rk.errors.AddressError, match="block5_out"):
        draw_cut(tuned, "block5_ou", "")
