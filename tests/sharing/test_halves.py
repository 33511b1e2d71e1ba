"""Parts that were saved apart become one model again, with one variable for one weight."""

import keras
import numpy as np
import pytest
from keras import layers
from tied_models import TIED

import reusekit as rk
from reusekit.graph import read
from reusekit.surgery.certificate import random_inputs


def shared_layer():
    x = y = keras.Input((4,), name="x")
    layer = layers.Dense(4, name="again")
    for _ in range(4):
        y = layer(y)
    return keras.Model(x, y, name="loop")


def test_a_layer_on_both_sides_is_joined_when_asked():
    model = shared_layer()
    parts = rk.split(model, "again@1")
    apart = [rk.clone(part) for part in parts]
    whole = rk.join(*apart, shared=parts.shared)
    assert whole.count_params() == model.count_params() == 20
    x = random_inputs(read(model))
    np.testing.assert_allclose(whole(x), model(x), rtol=1e-5)
    assert rk.join(*apart, shared=[]).count_params() == 40
    with pytest.raises(rk.errors.TieError, match="shared="):
        rk.join(*apart)


def test_weights_are_those_of_the_parts():
    parts = rk.split(TIED["masked_embedding"]().model, "hidden")
    bottom, top = (rk.clone(part) for part in parts)
    before = [[id(v) for v in part.weights] for part in (bottom, top)]
    whole = rk.join(bottom, top)
    assert whole.get_layer("embedding") is bottom.get_layer("embedding")
    assert whole.get_layer("logits").bias is top.get_layer("logits").bias
    assert whole.get_layer("logits").multiplier is top.get_layer("logits").multiplier
    assert [[id(v) for v in part.weights] for part in (bottom, top)] == before


@pytest.mark.parametrize("keep", ["bottom", "top"])
def test_parts_trained_apart_need_to_be_told_which_counts(keep):
    tied = TIED["embedding"]()
    bottom, top = (rk.clone(part) for part in rk.split(tied.model, tied.between))
    embedding, source = bottom.get_layer("embedding"), top.get_layer("logits").source
    source.set_weights([np.ones((30, 4))])
    with pytest.raises(rk.errors.TieError, match="trained apart"):
        rk.join(bottom, top)
    whole = rk.join(bottom, top, keep=keep)
    kept = embedding if keep == "bottom" else source
    assert whole.get_layer("embedding") is kept
    assert whole.count_params() == tied.model.count_params()


def test_a_frozen_part_is_joined_and_one_that_differs_otherwise_is_refused():
    tied = TIED["embedding"]()
    bottom, top = map(rk.clone, rk.split(tied.model, tied.between))
    bottom.trainable = False
    whole = rk.join(bottom, top)
    assert whole.count_params() == tied.model.count_params()
    assert not whole.get_layer("embedding").trainable
    top.get_layer("logits").source.quantize("int8")
    with pytest.raises(rk.errors.TieError, match="which differ in dtype"):
        rk.join(bottom, top)


def test_what_is_not_shared_is_named():
    parts = rk.split(shared_layer(), "again@1")
    with pytest.raises(rk.errors.TieError, match=r"'missing/kernel'.*'again'"):
        rk.join(*map(rk.clone, parts), shared=["missing/kernel"])
    with pytest.raises(rk.errors.TieError, match="'left'"):
        rk.join(*parts, keep="left")


def test_layers_that_names_do_not_tell_apart_are_refused():
    def part(name):
        x = keras.Input((4,), name="x")
        return keras.Model(x, layers.Dense(4, name="same")(x), name=name)

    x = keras.Input((4,), name="x")
    both = keras.Model(x, part("second")(part("first")(x)), name="both")
    with pytest.raises(rk.errors.TieError, match="several that are called 'same'"):
        rk.join(both, part("top"), shared=["same/kernel"], keep="bottom")
