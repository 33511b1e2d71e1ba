"""Laws for every model, at every tensor of it: the contract of this room."""

import keras
import numpy as np
import pytest

from reusekit.errors import CopyError
from reusekit.graph import cut, cut_points, read
from reusekit.graph.frontier import depends
from reusekit.surgery import Insert, clone, edit, extract, flatten, remove, segment, split
from reusekit.surgery.certificate import Snapshot, random_inputs
from reusekit.surgery.copies import is_rebuilt, leaves

SAVE_EVERY = 16
"""Of how many cuts one is saved and loaded again; `test_saved.py` saves all that is made of one."""


def run_surgery_test(model, folder, not_rebuilt=()):
    """Cuts a model everywhere and compares each result with the whole.

    Args:
        model: A small model.
        folder: Where saved models may be written.
        not_rebuilt: The classes of layers that do not come back from their own configuration: what
            is made of such a layer cannot be loaded nor made afresh, and that must be refused.
    """
    graph = read(model)
    x = random_inputs(graph)
    expected = arrays(model(x, training=False))
    trainable = [(variable.path, variable.trainable) for variable in model.weights]
    values = arrays(model.weights)

    assert len({tensor.address for tensor in graph.tensors}) == len(graph.tensors)
    _check_cut_points(model, graph)
    for number, tensor in enumerate(graph.tensors):
        _check_split(model, graph, tensor.address, x, expected)
        if number % SAVE_EVERY == 1:
            _check_saved(model, tensor.address, folder, x, expected, not_rebuilt)
    _check_extract(model, graph, x, expected)
    _check_segments(model, graph, x, expected)
    _check_clones(model, x, expected, not_rebuilt)
    for number, tensor in enumerate(graph.tensors):
        if graph.readers[tensor] or tensor in graph.outputs:
            _check_edit(model, tensor, x, expected, run_again=number % 3 == 0)

    assert [(v.path, v.trainable) for v in model.weights] == trainable
    for now, before in zip(arrays(model.weights), values, strict=True):
        np.testing.assert_array_equal(now, before)
    assert_equal(arrays(model(x, training=False)), expected)


def _check_split(model, graph, address, x, expected):
    parts = split(model, address)
    assert parts.verify(x, expected).parameters_conserved
    keras.tree.assert_same_structure(parts.bottom.input, graph.input_structure)
    keras.tree.assert_same_structure(parts.top.output, graph.output_structure)
    # Features that were stored carry no mask: the top must not lean on what a tensor carries.
    stored = keras.tree.map_structure(keras.ops.convert_to_numpy, parts.bottom(x, training=False))
    assert_equal(arrays(parts.top(stored, training=False)), expected)


def _check_saved(model, address, folder, x, expected, not_rebuilt):
    value = x
    for part in split(model, address):
        part.save(folder / "part.keras")
        part.save_weights(folder / "part.weights.h5")
        if _holds(part, not_rebuilt):
            with pytest.raises(TypeError, match="|".join(not_rebuilt)):
                keras.saving.load_model(folder / "part.keras")
            loaded = part
        else:
            loaded = keras.saving.load_model(folder / "part.keras")
            loaded.load_weights(folder / "part.weights.h5")
        value = loaded(value, training=False)
    assert_equal(arrays(value), expected)


def _check_cut_points(model, graph):
    clean = cut_points(model)
    for point in clean:
        found = cut(graph, [graph.names[point.at]])
        assert point.width == found.width == 1
        assert point.tensors == tuple(tensor.address for tensor in found.frontier)
    everywhere = cut_points(graph, max_width=None)
    assert len(everywhere) == len(graph.tensors)
    hidden = {tensor.address for tensor in (*graph.inputs, *graph.outputs)}
    swept = [p for p in everywhere if p.width == 1 and p.at not in hidden]
    assert swept == list(clean)


def _check_extract(model, graph, x, expected):
    at = {tensor.address.replace("/", "."): [tensor.address] for tensor in graph.tensors}
    taps = extract(model, at)
    keras.tree.assert_same_structure(taps.input, graph.input_structure)
    found = taps(x, training=False)
    assert set(found) == set(at)
    outputs = [found[tensor.address.replace("/", ".")][0] for tensor in graph.outputs]
    assert_equal(arrays(outputs), expected)


def _check_segments(model, graph, x, expected):
    chain = []
    for point in cut_points(graph):
        found = graph.names[point.at]
        if not chain or depends(graph, found, graph.names[chain[-1]]):
            chain.append(point.at)
    if chain:
        value = x
        for part in segment(model, chain):
            value = part(value, training=False)
        assert_equal(arrays(value), expected)


def _check_clones(model, x, expected, not_rebuilt):
    twin, flat = clone(model, "share"), flatten(model)
    for other in (twin, flat):
        assert_equal(arrays(other(x, training=False)), expected)
    assert {id(variable) for variable in twin.variables} == _own(model)
    copies = [clone(model)]
    if _holds(model, not_rebuilt):
        with pytest.raises(CopyError, match="|".join(not_rebuilt)):
            clone(model, "fresh")
    else:
        copies.append(clone(model, "fresh"))
    for other in copies:
        assert _own(model).isdisjoint(_own(other))
    for copy in copies[:1]:
        assert_equal(arrays(copy(x, training=False)), expected)
    for other in (twin, *copies):
        assert Snapshot.of(other).trainable == Snapshot.of(model).trainable
        assert other.trainable == model.trainable
        assert [layer.name for layer in other.layers] == [layer.name for layer in model.layers]


def _holds(model, classes):
    """True where a model is made again from the configuration of a layer of some classes."""
    if not is_rebuilt(model):
        return False
    return not {type(layer).__name__ for layer in leaves(model)}.isdisjoint(classes)


def _own(model):
    return {id(variable) for variable in model.variables}


def _check_edit(model, tensor, x, expected, run_again):
    """A layer that does nothing may be put in anywhere, and taken out again."""
    probe = keras.layers.Identity(name="probe", dtype=tensor.dtype)
    result = edit(model, Insert(probe, after=tensor.address))
    assert_equal(arrays(result.model(x, training=False)), expected)
    assert result.moved[tensor.address] is not None
    back = remove(result.model, "probe")
    if run_again:
        assert_equal(arrays(back(x, training=False)), expected)
    assert {id(v) for v in back.variables} <= {id(v) for v in model.variables}


def arrays(structure):
    return [keras.ops.convert_to_numpy(leaf) for leaf in keras.tree.flatten(structure)]


def assert_equal(received, expected):
    assert len(received) == len(expected)
    for one, other in zip(received, expected, strict=True):
        close = {"rtol": 1e-5, "atol": 1e-6} if one.dtype != "bfloat16" else {"rtol": 4e-2}
        np.testing.assert_allclose(one.astype("float64"), other.astype("float64"), **close)
