"""What crosses a cut, computed from the inputs and from shallower cuts, is the same."""

from itertools import permutations

import keras
import numpy as np
import pytest
from zoo import ZOO

import reusekit as rk
from reusekit.features import frontier
from reusekit.features.bottoms import between, from_inputs, leads_to
from reusekit.graph import read
from reusekit.surgery.certificate import random_inputs

MODELS = (
    "residual",
    "densely_connected",
    "several_inputs_and_outputs",
    "early_output",
    "unread_input",
    "nested_three_deep",
    "masked_lstm",
    "masked_attention",
    "mask_into_a_nested_model",
    "integers_and_bools_cross",
    "several_outputs_of_one_operation",
    "mixed_precision",
)


def run(model, inputs):
    return [np.asarray(part, "float32") for part in keras.tree.flatten(model(inputs))]


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("name", MODELS)
def test_a_deep_cut_from_a_shallow_one(name):
    keras.utils.set_random_seed(0)
    graph = read(ZOO[name]())
    inputs = random_inputs(graph, batch=3)
    cuts = [point.at for point in rk.cut_points(graph, max_width=None)][::2]
    found = [frontier(graph, list(graph.inputs))]
    found += [frontier(graph, at, pooling) for at in cuts for pooling in (None, "avg")]
    expected = {one: keras.tree.flatten(from_inputs(one)(inputs)) for one in found}
    pairs = [pair for pair in permutations(found, 2) if leads_to(*pair)]
    assert len(pairs) > 3
    for source, target in pairs[:: max(1, len(pairs) // 12)]:
        made = run(between(source, target), expected[source])
        for one, other in zip(made, expected[target], strict=True):
            np.testing.assert_allclose(one, np.asarray(other, "float32"), rtol=1e-3, atol=1e-4)


def test_what_does_not_lead_to_another():
    graph = read(ZOO["residual"]())
    stem, out0, out1 = (frontier(graph, at) for at in ("stem", "out0", "out1"))
    pooled = frontier(graph, "out0", "avg")
    assert leads_to(stem, out1)
    assert leads_to(out0, pooled)
    assert not leads_to(out1, stem)
    assert not leads_to(pooled, out1)
    assert not leads_to(out0, out0)
    # Made before the source, and read by nothing after it.
    graph = read(ZOO["several_outputs_of_one_operation"]())
    (unread,) = [tensor for tensor in graph.tensors if tensor.address.endswith(":2")]
    assert not leads_to(frontier(graph, "head"), frontier(graph, unread))
    # Pooling skips what is masked, and the mask is not stored with the maps.
    graph = read(ZOO["masked_attention"]())
    assert leads_to(frontier(graph, "project"), frontier(graph, "norm"))
    assert not leads_to(frontier(graph, "project"), frontier(graph, "norm", "avg"))
