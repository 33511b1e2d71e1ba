"""Guessing masked tokens, with the weight of the embedding."""

import keras
import numpy as np
import pytest
from keras import layers
from processes import run_python

import reusekit as rk
from reusekit import heads

KINDS = {"reversible": layers.ReversibleEmbedding, "plain": layers.Embedding}


def bottom(kind=layers.ReversibleEmbedding, **options) -> keras.Model:
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = kind(20, 6, name="embedding", **options)(ids)
    return keras.Model(ids, layers.Dense(9, activation="tanh", name="mix")(x), name="bottom")


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 20, (4, 7))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_multiplies_with_the_embedding_itself(kind):
    below = bottom(kind)
    model = rk.attach(below, heads.MaskedLanguageModel())
    hidden = np.asarray(rk.extract(model, "head_normalization")(tokens()))
    table = below.get_layer("embedding").embeddings
    np.testing.assert_allclose(model(tokens()), hidden @ np.asarray(table).T, rtol=1e-4, atol=1e-5)
    table.assign(table * 2)
    hidden = np.asarray(rk.extract(model, "head_normalization")(tokens()))
    np.testing.assert_allclose(model(tokens()), hidden @ np.asarray(table).T, rtol=1e-4, atol=1e-5)
    # A dense layer from 9 channels to 6, its normalization, and a bias with the plain embedding.
    added = 9 * 6 + 6 + 2 * 6 + (20 if kind is layers.Embedding else 0)
    assert rk.count_params(model).total == rk.count_params(below).total + added


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_clone_has_one_table_of_its_own(kind):
    model = rk.attach(bottom(kind), heads.MaskedLanguageModel())
    twin = rk.clone(model)
    np.testing.assert_allclose(twin(tokens()), model(tokens()), rtol=1e-6)
    assert rk.count_params(twin) == rk.count_params(model)
    table = twin.get_layer("embedding").embeddings
    table.assign(table * 0)
    assert np.ptp(np.asarray(twin(tokens())), axis=-1).max() == 0
    assert np.ptp(np.asarray(model(tokens())), axis=-1).max() > 0


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_training_moves_the_one_table_from_both_ends(kind):
    """Tokens that occur nowhere get a gradient from the output alone."""
    below = bottom(kind)
    head = heads.MaskedLanguageModel()
    model = rk.attach(below, head)
    model.compile(keras.optimizers.SGD(0.5), **head.compile_args)
    before = np.asarray(below.get_layer("embedding").embeddings)
    ids = np.full((4, 7), 3)
    model.fit(ids, ids, epochs=1, verbose=0)
    after = np.asarray(below.get_layer("embedding").embeddings)
    assert (np.abs(after - before).max(axis=1) > 0).all()


def test_a_tie_and_rates_by_layer_load_where_reusekit_was_imported(tmp_path):
    head = heads.MaskedLanguageModel()
    model = rk.attach(bottom(layers.Embedding), head)
    model.compile(rk.layerwise_optimizer(model, "adam", decay=0.5), **head.compile_args)
    model.fit(tokens(), tokens(), verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "tokens.npy", tokens())
    code = """
import keras, numpy as np, reusekit
model = keras.saving.load_model("model.keras")
np.save("logits.npy", model.predict(np.load("tokens.npy"), verbose=0))
np.save("rates.npy", [rate.multiplier for rate in model.optimizer.rates])
table = model.get_layer("embedding").embeddings
table.assign(table * 0)
assert np.ptp(np.asarray(model(np.load("tokens.npy"))) - model.layers[-1].bias) == 0
"""
    done = run_python(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    received = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(received, model.predict(tokens(), verbose=0), rtol=1e-4, atol=1e-5)
    rates = [rate.multiplier for rate in model.optimizer.rates]
    assert len(set(rates)) > 2
    assert np.load(tmp_path / "rates.npy").tolist() == rates


def test_what_is_not_masked_out_does_not_count():
    head = heads.MaskedLanguageModel()
    model = rk.attach(bottom(), head)
    model.compile(**head.compile_args)
    weights = (np.random.default_rng(1).uniform(size=(4, 7)) < 0.3).astype("float32")
    loss, accuracy = model.evaluate(tokens(), tokens(), sample_weight=weights, verbose=0)
    logits = model.predict(tokens(), verbose=0)
    counted = weights > 0
    losses = keras.losses.sparse_categorical_crossentropy(tokens(), logits, from_logits=True)
    np.testing.assert_allclose(loss, np.asarray(losses)[counted].mean(), rtol=1e-5)
    right = logits.argmax(axis=-1) == tokens()
    np.testing.assert_allclose(accuracy, right[counted].mean(), rtol=1e-5)


def several_embeddings(kind=layers.Embedding) -> keras.Model:
    ids = keras.Input((7,), dtype="int32", name="ids")
    segments = keras.Input((7,), dtype="int32", name="segments")
    parts = [kind(20, 6, name="tokens")(ids), layers.Embedding(2, 6, name="kinds")(segments)]
    return keras.Model([ids, segments], layers.Add(name="sum")(parts), name="bottom")


def test_finds_the_reversible_among_several():
    below = several_embeddings(layers.ReversibleEmbedding)
    model = rk.attach(below, heads.MaskedLanguageModel(transform=False))
    assert model.output_shape == (None, 7, 20)
    assert rk.count_params(model).total == rk.count_params(below).total


def test_takes_the_one_that_is_named():
    below = several_embeddings()
    for embedding in ("tokens", below.get_layer("tokens")):
        model = rk.attach(below, heads.MaskedLanguageModel(embedding=embedding))
        assert model.output_shape == (None, 7, 20)


def test_an_embedding_inside_a_nested_model_is_found():
    ids = keras.Input((7,), dtype="int32", name="outer_ids")
    nested = keras.Model(ids, layers.Dense(6, name="after")(bottom()(ids)), name="outer")
    model = rk.attach(nested, heads.MaskedLanguageModel(embedding="bottom/embedding"))
    assert model.output_shape == (None, 7, 20)
    assert rk.split(model, "head_transform").verify(tokens()).parameters_conserved


def test_bert_is_trained_as_it_was(tmp_path):
    """Masked tokens, and a class from the first token, on KerasHub's own backbone."""
    keras_hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    bert = keras_hub.models.BertBackbone(
        vocabulary_size=20,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=7,
        dropout=0.0,
    )
    below = rk.extract(bert, "transformer_layer_1")
    tasks = {"words": heads.MaskedLanguageModel(), "next": heads.Classifier(2, pooling="token")}
    head = heads.Multitask(tasks)
    model = rk.attach(below, head)
    model.compile(keras.optimizers.Adam(0.01), **head.compile_args)
    ones = np.ones_like(tokens())
    x = {"token_ids": tokens(), "segment_ids": ones * 0, "padding_mask": ones}
    y = {"words": tokens(), "next": np.arange(4) % 2}
    losses = model.fit(x, y, epochs=8, verbose=0).history["words_loss"]
    assert losses[-1] < 0.95 * losses[0]
    # Two layers and their weights are new: 8 to 8 with a normalization, and 8 to 2.
    assert rk.count_params(model).total == rk.count_params(below).total + (72 + 16) + 18
    assert rk.split(model, "transformer_layer_0").verify(x).parameters_conserved
    model.save(tmp_path / "bert.keras")
    loaded = keras.saving.load_model(tmp_path / "bert.keras")
    received = loaded(x)
    for task, output in model(x).items():
        np.testing.assert_allclose(received[task], output, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_tied_is_refused():
    with pytest.raises(rk.errors.HeadError, match=r"'tokens', 'kinds'.* embedding=None"):
        rk.attach(several_embeddings(), heads.MaskedLanguageModel())
    with pytest.raises(rk.errors.HeadError, match=r"'tokens', 'kinds'.* embedding='sum'"):
        rk.attach(several_embeddings(), heads.MaskedLanguageModel(embedding="sum"))
    with pytest.raises(rk.errors.AddressError, match="Did you mean 'tokens'"):
        rk.attach(several_embeddings(), heads.MaskedLanguageModel(embedding="token"))
    with pytest.raises(rk.errors.HeadError, match="to tie the head to: none"):
        x = keras.Input((7, 6))
        rk.attach(keras.Model(x, layers.Dense(6)(x)), heads.MaskedLanguageModel())
    with pytest.raises(
        rk.errors.HeadError, match=r"'embedding'.* embedding=<Embedding name=foreign"
    ):
        foreign = layers.Embedding(20, 6, name="foreign")
        rk.attach(bottom(), heads.MaskedLanguageModel(embedding=foreign))
    with pytest.raises(rk.errors.HeadError, match="no bottom to find it in"):
        heads.MaskedLanguageModel().build((7, 6))
    with pytest.raises(rk.errors.HeadError, match=r"either a vocabulary.*or an embedding"):
        heads.MaskedLanguageModel(20, embedding="tokens")
    with pytest.raises(rk.errors.HeadError, match=r"as wide as the embedding, 6.*\(None, 9\)"):
        rk.attach(bottom(), heads.MaskedLanguageModel(transform=False))
    with pytest.raises(rk.errors.HeadError, match=r"\(length, channels\).*\(4, 4, 6\)"):
        heads.MaskedLanguageModel(20).build((4, 4, 6))
