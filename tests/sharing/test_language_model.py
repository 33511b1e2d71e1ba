"""The classic: a masked language model whose output is its embedding transposed, on real text."""

import pydoc_data.topics
import re
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from keras import layers, ops
from processes import run_python

import reusekit as rk

LENGTH, WIDTH, WORDS = 16, 32, 600
MASK, UNKNOWN = 0, 1


@pytest.fixture(scope="module")
def text():
    """Windows of Python's own documentation as word numbers, shape (windows, LENGTH)."""
    words = re.findall(r"[a-z]+|[.,;:]", " ".join(pydoc_data.topics.topics.values()).lower())
    names, counts = np.unique(words[:32_000], return_counts=True)
    common = names[np.argsort(-counts)[: WORDS - 2]]
    numbers = {word: number for number, word in enumerate(common, start=2)}
    ids = np.array([numbers.get(word, UNKNOWN) for word in words[:32_000]], "int32")
    return ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)


def bert():
    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    embedding = layers.Embedding(WORDS, WIDTH, name="embedding")
    positions = layers.Embedding(LENGTH, WIDTH, name="positions")
    x = layers.Add(name="summed")([embedding(tokens), positions(ops.arange(LENGTH)[None])])
    for block in range(2):
        y = layers.MultiHeadAttention(2, WIDTH // 2, name=f"attention{block}")(x, x)
        x = layers.LayerNormalization(name=f"norm{block}a")(layers.Add(name=f"add{block}a")([x, y]))
        y = layers.Dense(2 * WIDTH, activation="gelu", name=f"wide{block}")(x)
        y = layers.Dense(WIDTH, name=f"narrow{block}")(y)
        x = layers.LayerNormalization(name=f"norm{block}b")(layers.Add(name=f"add{block}b")([x, y]))
    logits = rk.layers.TiedDense(embedding, name="logits")(x)
    return keras.Model(tokens, logits, name="bert")


@pytest.fixture(scope="module")
def trained(text):
    keras.utils.set_random_seed(0)
    model = bert()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss=loss)
    masked = np.random.default_rng(0).random(text.shape) < 0.15
    given = np.where(masked, MASK, text)
    batches = {"x": given, "y": text, "sample_weight": masked.astype("float32"), "verbose": 0}
    before = loss(text[:512], model(given[:512]), sample_weight=masked[:512])
    history = model.fit(**batches, epochs=2, batch_size=64)
    return model, given[:4], [float(before), *history.history["loss"]]


def test_the_loss_falls_and_one_weight_learns_from_both_ends(trained):
    model, _, losses = trained
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]
    [tie] = rk.tied_weights(model)
    assert tie.owners == ("embedding", "logits")
    assert sum(tuple(v.shape) == (WORDS, WIDTH) for v in model.weights) == 1
    assert sum(tuple(v.shape) == (WORDS, WIDTH) for v in model.optimizer.variables) == 2


@pytest.mark.parametrize("weights", ["copy", "share", "fresh"])
def test_a_clone_has_one_variable(trained, weights):
    model, given, _ = trained
    twin = rk.clone(model, weights=weights)
    assert twin.get_layer("logits").source is twin.get_layer("embedding")
    assert twin.count_params() == model.count_params()
    if weights != "fresh":
        np.testing.assert_allclose(twin(given), model(given), rtol=1e-4, atol=1e-5)


def test_split_in_the_middle_saved_loaded_and_joined(trained, tmp_path):
    model, given, _ = trained
    parts = rk.split(model, "norm0b", strict=True)
    assert parts.verify(given).parameters_conserved
    assert [path.split("/")[-2:] for path in parts.shared] == [["embedding", "embeddings"]]
    loaded = []
    for part in parts:
        part.save(tmp_path / f"{part.name}.keras")
        loaded.append(keras.saving.load_model(tmp_path / f"{part.name}.keras"))
    whole = rk.join(*loaded)
    assert whole.count_params() == model.count_params()
    assert sum(part.count_params() for part in loaded) == model.count_params() + WORDS * WIDTH
    np.testing.assert_allclose(whole(given), model(given), rtol=1e-4, atol=1e-5)


LOAD = """
import sys, keras, numpy as np, reusekit as rk
for where in sys.argv[1:]:
    load = keras.saving.load_model
    if where.startswith("models:"):
        import mlflow
        mlflow.set_tracking_uri("sqlite:///mlflow.db")
        load = mlflow.keras.load_model
    model = load(where)
    np.testing.assert_allclose(model(np.load("x.npy")), np.load("y.npy"), rtol=1e-4, atol=1e-5)
    print(len(rk.tied_weights(model)), model.count_params())
"""


def test_a_fresh_process_finds_one_variable(trained, tmp_path, monkeypatch, request):
    model, given, _ = trained
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", given)
    np.save("y.npy", model(given))
    model.save("bert.keras")
    places = ["bert.keras"]
    if find_spec("mlflow"):
        places.append(logged(model, request))
    done = run_python(LOAD, *places)
    expected = ["1", str(model.count_params())] * len(places)
    assert done.stdout.split() == expected, done.stderr


def logged(model, request):
    """The address of a model in MLflow, from a run in the test's own folder."""
    import mlflow

    from reusekit.tracking.saved import requirements

    request.getfixturevalue("tracking")
    with mlflow.start_run():
        name, needed = model.name, requirements(model)
        return mlflow.keras.log_model(model, name=name, pip_requirements=needed).model_uri
