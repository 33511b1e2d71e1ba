"""Every operation with every kind of tie: it keeps the tie, or it raises TieError."""

import keras
import numpy as np
import pytest
from tied_models import TIED, UNUSUAL

import reusekit as rk
from reusekit.graph import read
from reusekit.surgery.certificate import random_inputs

OPERATIONS = {}


def operation(work):
    OPERATIONS[work.__name__] = work
    return work


@operation
def clone_copy(tied, folder):
    return rk.clone(tied.model)


@operation
def clone_share(tied, folder):
    return rk.clone(tied.model, weights="share")


@operation
def split_with_both_ends_below(tied, folder):
    return rk.split(tied.model, tied.model.output).bottom


@operation
def split_with_both_ends_above(tied, folder):
    return rk.split(tied.model, tied.model.input).top


@operation
def parted_and_joined(tied, folder):
    return rk.join(*saved_apart(rk.split(tied.model, tied.between), folder))


@operation
def joined_as_told(tied, folder):
    parts = rk.split(tied.model, tied.between)
    return rk.join(*saved_apart(parts, folder), shared=parts.shared)


@operation
def segment_and_chain(tied, folder):
    chain = rk.segment(tied.model, [tied.source, tied.between])
    whole = chain[0]
    for part in chain[1:]:
        whole = rk.join(whole, part)
    return whole


@operation
def extract(tied, folder):
    return rk.extract(tied.model, read(tied.model).outputs[0].address)


@operation
def insert(tied, folder):
    return rk.insert(tied.model, keras.layers.Identity(name="probe"), after=tied.between)


@operation
def insert_into_a_copy(tied, folder):
    probe = keras.layers.Identity(name="probe")
    return rk.insert(tied.model, probe, after=tied.between, weights="copy")


@operation
def remove(tied, folder):
    probe = keras.layers.Identity(name="probe")
    return rk.remove(rk.insert(tied.model, probe, after=tied.between), "probe")


@operation
def replace(tied, folder):
    probe = keras.layers.Identity(name="probe")
    probed = rk.insert(tied.model, probe, after=tied.between)
    return rk.replace(probed, "probe", keras.layers.Activation("linear", name="line"))


@operation
def flatten(tied, folder):
    return rk.flatten(tied.model)


@operation
def save_and_load(tied, folder):
    return reloaded(tied.model, folder / "m.keras")


@operation
def save_and_load_weights(tied, folder):
    twin = rk.clone(tied.model, weights="fresh")
    tied.model.save_weights(folder / "m.weights.h5")
    twin.load_weights(folder / "m.weights.h5")
    return twin


@operation
def flattened_saved_and_loaded(tied, folder):
    return reloaded(rk.flatten(tied.model), folder / "m.keras")


@operation
def mlflow_log_and_load(tied, folder):
    mlflow = pytest.importorskip("mlflow")
    models = pytest.importorskip("reusekit.tracking.saved")
    needed = models.requirements(tied.model)
    with mlflow.start_run():
        logged = mlflow.keras.log_model(tied.model, name="m", pip_requirements=needed)
    return mlflow.keras.load_model(logged.model_uri)


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("work", OPERATIONS)
def test_a_tie_is_kept(work, kind, tmp_path, request):
    if work.startswith("mlflow"):
        pytest.importorskip("mlflow")
        request.getfixturevalue("tracking")
    tied = TIED[kind]()
    x = random_inputs(read(tied.model))
    expected = tied.model(x, training=False)
    result = OPERATIONS[work](tied, tmp_path)
    assert result.count_params() == tied.model.count_params()
    owners = [[owner.split("/")[-1] for owner in t.owners] for t in rk.tied_weights(result)]
    assert owners == [[o.split("/")[-1] for o in t.owners] for t in rk.tied_weights(tied.model)]
    assert owners and len(owners[0]) == 2
    np.testing.assert_allclose(result(x, training=False), expected, rtol=1e-5, atol=1e-6)


def two_encoders(names):
    """Two encoders of one kind, of which the first one's embedding is tied."""
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    embeddings = [keras.layers.Embedding(30, 4, name=name) for name in names]
    hidden = [keras.Model(tokens, each(tokens), name=f"e{n}") for n, each in enumerate(embeddings)]
    tokens = keras.Input((7,), dtype="int32", name="tokens")
    both = keras.layers.Add(name="both")([encoder(tokens) for encoder in hidden])
    logits = rk.layers.TiedDense(embeddings[0], name="logits")(both)
    return keras.Model(tokens, logits, name="lm"), embeddings[0]


def test_the_source_is_told_from_another_layer_and_left_as_it_is(tmp_path):
    model, embedding = two_encoders(("one", "other"))
    model.save(tmp_path / "m.keras")
    assert "get_config" not in vars(embedding)
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    (tie,) = rk.tied_weights(loaded)
    assert tie.owners == ("e0/one", "logits")
    with pytest.raises(rk.TieError, match="Make one of them with another name="):
        two_encoders(("same", "same"))[0].save(tmp_path / "n.keras")


# What is not kept, and who says so: for a layer that was handed a variable, or stands in a nested
# model and outside it, it is Keras that saves or loads no such model.
REFUSED = {
    "three_owners": {},
    "end_before_its_source": {},
    "end_inside_another_layer": {
        "parted_and_joined": rk.errors.TieError,
        "joined_as_told": rk.errors.TieError,
    },
    "layer_in_two_places": {
        "parted_and_joined": rk.errors.TieError,
        "save_and_load": ValueError,
    },
    "weight_that_two_layers_hold": {
        "save_and_load_weights": rk.errors.CopyError,
        "parted_and_joined": NotImplementedError,
        "joined_as_told": NotImplementedError,
        "save_and_load": NotImplementedError,
        "flattened_saved_and_loaded": NotImplementedError,
    },
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize("work", [work for work in OPERATIONS if not work.startswith("mlflow")])
def test_an_unusual_tie_is_kept_or_refused(work, kind, tmp_path):
    tied = UNUSUAL[kind]()
    x = random_inputs(read(tied.model))
    expected = tied.model(x, training=False)
    if work in REFUSED[kind]:
        with pytest.raises(REFUSED[kind][work]):
            OPERATIONS[work](tied, tmp_path)
    else:
        result = OPERATIONS[work](tied, tmp_path)
        assert result.count_params() == tied.model.count_params()
        np.testing.assert_allclose(result(x, training=False), expected, rtol=1e-5, atol=1e-6)
    assert rk.tied_weights(tied.model)
    np.testing.assert_array_equal(tied.model(x, training=False), expected)


@pytest.mark.parametrize("kind", TIED)
def test_a_fresh_clone_has_a_tie_of_its_own(kind):
    model = TIED[kind]().model
    fresh = rk.clone(model, weights="fresh")
    assert [t.owners for t in rk.tied_weights(fresh)] == [t.owners for t in rk.tied_weights(model)]
    assert fresh.count_params() == model.count_params()
    assert {id(v) for v in fresh.weights}.isdisjoint(id(v) for v in model.weights)


@pytest.mark.parametrize("kind", TIED)
def test_a_split_between_the_ends_names_what_both_sides_keep(kind):
    tied = TIED[kind]()
    parts = rk.split(tied.model, tied.between)
    variable = rk.tied_weights(tied.model)[0].variable
    assert variable.path in parts.shared
    assert all(any(v is variable for v in part.weights) for part in parts)


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("way", ["replace", "remove", "clone_model", "from_config", "insert_copy"])
def test_what_would_untie_is_refused_and_changes_nothing(way, kind):
    tied = TIED[kind]()
    model = tied.model
    before = [layer._inbound_nodes[:] for layer in model.layers]
    width = tied.end.output.shape[-1]
    with pytest.raises(rk.errors.TieError):
        if way == "replace":
            rk.replace(model, tied.source, tied.replacement)
        elif way == "remove":
            rk.remove(model, tied.source)
        elif way == "clone_model":
            keras.models.clone_model(model)
        elif way == "from_config":
            keras.Model.from_config(model.get_config())
        else:
            late = rk.layers.TiedDense(tied.end, units=width, name="late")
            rk.insert(model, late, after=tied.source, weights="copy")
    assert [layer._inbound_nodes for layer in model.layers] == before
    assert len(rk.tied_weights(model)) == len(rk.tied_weights(TIED[kind]().model))


@pytest.mark.parametrize("kind", TIED)
def test_both_ends_may_be_exchanged_in_one_edit(kind):
    tied = TIED[kind]()
    [end] = rk.tied_weights(tied.model)[0].owners[1:]
    # An edit is planned on shapes before anything is built, and the tied layer needs one by then.
    tied.replacement.build(tied.end.input.shape)
    result = rk.edit(
        tied.model,
        rk.Replace(tied.source, tied.replacement),
        rk.Replace(end, rk.layers.TiedDense(tied.replacement, name="new_end")),
    )
    owners = rk.tied_weights(result.model)[0].owners
    assert owners == (tied.replacement.name, "new_end")


def test_only_a_tied_model_requires_reusekit():
    requirements = pytest.importorskip("reusekit.tracking.saved").requirements
    tied = TIED["embedding"]().model
    assert any(line.startswith("reusekit==") for line in requirements(tied))
    stock = rk.replace(tied, "logits", keras.layers.Dense(3, name="stock"))
    assert not any(line.startswith("reusekit") for line in requirements(stock))


def saved_apart(parts, folder):
    return [reloaded(part, folder / f"{part.name}.keras") for part in parts]


def reloaded(model, file):
    model.save(file)
    return keras.saving.load_model(file)
