"""Laws that hold for any model, tried on random ones."""

import tempfile

import keras
from contract import arrays, assert_equal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_models import models

from reusekit.graph import cut, cut_points, read
from reusekit.graph.frontier import depends
from reusekit.surgery import clone, extract, flatten, insert, remove, segment, split
from reusekit.surgery.certificate import random_inputs

tried = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def run(model, x):
    return model(x, training=False)


@tried
@given(models(), st.data())
def test_top_after_bottom_is_the_model(model, data):
    graph = read(model)
    tensor = data.draw(st.sampled_from(graph.tensors))
    parts = split(model, tensor.address)
    assert parts.verify().parameters_conserved
    x = random_inputs(graph)
    stored = keras.tree.map_structure(keras.ops.convert_to_numpy, run(parts.bottom, x))
    assert_equal(arrays(run(parts.top, stored)), arrays(run(model, x)))


@tried
@given(models(), st.data())
def test_a_chain_of_segments_is_the_model(model, data):
    graph = read(model)
    first = data.draw(st.sampled_from(graph.tensors))
    later = [tensor for tensor in graph.tensors if depends(graph, tensor, first)]
    chain = [first.address, data.draw(st.sampled_from(later)).address] if later else [first.address]
    value = x = random_inputs(graph)
    for part in segment(model, chain):
        value = run(part, value)
    assert_equal(arrays(value), arrays(run(model, x)))


@tried
@given(models(), st.data())
def test_what_is_extracted_can_be_read_off_the_parts(model, data):
    graph = read(model)
    tensor = data.draw(st.sampled_from(graph.tensors))
    x = random_inputs(graph)
    bottom = run(split(model, tensor.address).bottom, x)
    assert_equal(arrays(run(extract(model, tensor.address), x)), arrays(bottom)[:1])


@tried
@given(models())
def test_a_clone_is_equal_and_independent(model):
    x = random_inputs(read(model))
    twin, before = clone(model), arrays(run(model, x))
    assert_equal(arrays(run(twin, x)), before)
    assert twin.count_params() == model.count_params()
    for variable in twin.trainable_variables:
        variable.assign(variable * 0)
    assert_equal(arrays(run(model, x)), before)


@tried
@given(models(), st.data())
def test_removing_what_was_inserted_gives_the_model(model, data):
    graph = read(model)
    used = [t for t in graph.tensors if graph.readers[t] or t in graph.outputs]
    at = data.draw(st.sampled_from(used)).address
    probe = keras.layers.ZeroPadding1D(0, name="probe")
    back = remove(insert(model, probe, after=at), "probe")
    x = random_inputs(graph)
    assert_equal(arrays(run(back, x)), arrays(run(model, x)))


@tried
@given(models())
def test_the_sweep_finds_what_a_search_at_each_tensor_finds(model):
    graph = read(model)
    ends = {*graph.inputs, *graph.outputs}
    searched = [
        tensor.address
        for tensor in graph.tensors
        if tensor not in ends and cut(graph, [tensor]).width == 1
    ]
    assert [point.at for point in cut_points(graph)] == searched


@tried
@given(models(), st.data())
def test_parts_are_loaded_again_also_where_keras_cannot_load_the_model(model, data):
    """A layer shared between a nested model and what is around it breaks Keras's own loading."""
    graph = read(model)
    tensor = data.draw(st.sampled_from(graph.tensors))
    x = random_inputs(graph)
    with tempfile.TemporaryDirectory() as folder:
        value = x
        for part in split(model, tensor.address):
            part.save(f"{folder}/part.keras")
            value = run(keras.saving.load_model(f"{folder}/part.keras"), value)
        flatten(model).save(f"{folder}/flat.keras")
        flat = keras.saving.load_model(f"{folder}/flat.keras")
    assert_equal(arrays(value), arrays(run(model, x)))
    assert_equal(arrays(run(flat, x)), arrays(run(model, x)))
