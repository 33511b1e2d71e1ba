"""Laws of every head: it trains, is saved without a trace of reusekit, is cut again, is float32."""

from functools import cache
from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import layers
from processes import run_python
from sklearn.datasets import load_digits

import reusekit as rk
from reusekit import heads

COUNT = 256


class Case(NamedTuple):
    """A head, the bottom it goes on, what both are trained on, and where to cut the two."""

    bottom: keras.Model
    head: heads.Head
    x: object
    y: object
    weights: object
    cut: str


@cache
def digits():
    data = load_digits()
    return data.images[:COUNT, ..., None].astype("float32") / 16, data.target[:COUNT]


def convolutions() -> keras.Model:
    x = keras.Input((8, 8, 1), name="x")
    y = layers.Conv2D(8, 3, activation="relu", name="early")(x)
    return keras.Model(x, layers.Conv2D(12, 3, activation="relu", name="late")(y), name="bottom")


def on_images(head, cut, y=None) -> Case:
    x, labels = digits()
    return Case(convolutions(), head, x, labels if y is None else y, None, cut)


def labels_of_bits() -> np.ndarray:
    return (digits()[1][:, None] >> np.arange(4)) & 1


def ink() -> np.ndarray:
    return digits()[0].mean(axis=(1, 2, 3))


def multitap(**options) -> Case:
    x, labels = digits()
    taps = rk.extract(convolutions(), {"deep": "late", "shallow": "early"})
    return Case(taps, heads.Multitap(10, **options), x, labels, None, "head_features")


def siamese(join, **options) -> Case:
    """Return a case of pairs of digits, half of which are the same one."""
    x, labels = digits()
    x = 4 * x
    order = np.random.default_rng(0).permutation(COUNT)
    twin = [np.flatnonzero(labels == label)[-1] for label in labels]
    right = np.where(np.arange(COUNT) % 2, order, twin)
    same = (labels == labels[right]).astype("float32")
    head = heads.Siamese(join, **options)
    return Case(convolutions(), head, [x, x[right]], same, None, f"head_{join}")


def language_model() -> Case:
    """Guess the pixels of a digit that were masked out from those around."""
    pixels = (digits()[0].reshape(COUNT, -1) * 16).astype("int32")
    masked = np.random.default_rng(0).uniform(size=pixels.shape) < 0.2
    ids = keras.Input((64,), dtype="int32", name="ids")
    x = layers.ReversibleEmbedding(18, 6, name="embedding")(ids)
    x = layers.Conv1D(12, 9, padding="same", activation="relu", name="mix")(x)
    head = heads.MaskedLanguageModel()
    tokens, weights = np.where(masked, 17, pixels), masked.astype("float32")
    cut = "head_normalization"
    return Case(keras.Model(ids, x, name="bottom"), head, tokens, pixels, weights, cut)


def language_model_beside_a_classifier() -> Case:
    """The same with an output of its own, and which digit it is from the first position."""
    case = language_model()
    head = heads.Multitask(
        {
            "pixels": heads.MaskedLanguageModel(vocabulary=18),
            "digit": heads.Classifier(10, pooling="token"),
        }
    )
    labels = digits()[1]
    return case._replace(
        head=head,
        y={"pixels": case.y, "digit": labels},
        weights={"pixels": case.weights, "digit": np.ones(len(labels))},
        cut="head_pixels_normalization",
    )


CASES = {
    "classifier": lambda: on_images(
        heads.Classifier(digits()[1].max() + 1, units=np.int64(16)), "head_hidden"
    ),
    "classifier with everything": lambda: on_images(
        heads.Classifier(
            10,
            units=(16, 8),
            dropout=0.1,
            normalization="batch",
            pooling="attention",
            logits=True,
            name="top",
        ),
        "top_hidden_0",
    ),
    "classifier of both poolings": lambda: on_images(
        heads.Classifier(10, pooling="concatenated", normalization="layer"), "head_pooling"
    ),
    "classifier of flattened maps": lambda: on_images(
        heads.Classifier(10, pooling="flatten"), "head_pooling"
    ),
    "multilabel": lambda: on_images(
        heads.Multilabel(4, pooling="max"), "head_pooling", labels_of_bits()
    ),
    "multilabel logits": lambda: on_images(
        heads.Multilabel(4, logits=True), "head_pooling", labels_of_bits()
    ),
    "regression": lambda: on_images(
        heads.Regression(units=8, standardize=digits()[0].reshape(COUNT, -1)[:, 12:24]),
        "head_hidden",
        ink(),
    ),
    "multitask": lambda: on_images(
        heads.Multitask(
            {"digit": heads.Classifier(10, units=8), "ink": heads.Regression()},
            weights={"digit": 1.0, "ink": 2.0},
        ),
        "head_digit_hidden",
        {"digit": digits()[1], "ink": ink()},
    ),
    "multitask of a shared layer": lambda: on_images(
        heads.Multitask(
            {"digit": heads.Classifier(10), "ink": heads.Regression()}, units=8, dropout=0.1
        ),
        "head_hidden",
        {"digit": digits()[1], "ink": ink()},
    ),
    "multitap": multitap,
    "multitap of logits": lambda: multitap(logits=True),
    "siamese by difference": lambda: siamese("difference", units=8, pooling="attention"),
    "siamese by product": lambda: siamese("product"),
    "siamese by concatenation": lambda: siamese("concatenated", units=8),
    "siamese by cosine": lambda: siamese("cosine"),
    "siamese by distance": lambda: siamese("distance", logits=True, pooling="flatten"),
    "masked language model": language_model,
    "masked language model beside a classifier": language_model_beside_a_classifier,
}


class Trained(NamedTuple):
    """A case's model after training."""

    case: Case
    model: keras.Model
    losses: list[float]


@pytest.fixture(scope="module")
def trained():
    """Each case, trained when it is first asked for."""

    @cache
    def train(name: str) -> Trained:
        keras.utils.set_random_seed(0)
        case = CASES[name]()
        model = rk.attach(case.bottom, case.head)
        model.compile(keras.optimizers.Adam(0.02), **case.head.compile_args)
        history = model.fit(
            case.x, case.y, 32, epochs=6, sample_weight=case.weights, verbose=0
        ).history
        return Trained(case, model, history["loss"])

    return train


@pytest.mark.parametrize("name", CASES)
def test_its_loss_falls(trained, name):
    losses = trained(name).losses
    assert losses[-1] < 0.98 * losses[0]


LOAD_ALONE = """
import sys
sys.modules["reusekit"] = None  # so that an import of it fails
import keras, numpy as np
folder, names = sys.argv[1], sys.argv[2:]
for name in names:
    model = keras.saving.load_model(f"{folder}/{name}.keras")
    inputs = np.load(f"{folder}/{name}.inputs.npz")
    x = keras.tree.pack_sequence_as(model.input, [inputs[key] for key in inputs.files])
    np.savez(f"{folder}/{name}.outputs.npz", *map(np.asarray, keras.tree.flatten(model(x))))
    assert model.compiled and model.optimizer.iterations > 0
"""


@pytest.fixture(scope="module")
def loaded_alone(trained, tmp_path_factory):
    """From each case to the outputs of its saved model in a process without reusekit."""
    folder = tmp_path_factory.mktemp("heads")
    for name in CASES:
        case, model, _ = trained(name)
        model.save(folder / f"{name}.keras")
        np.savez(folder / f"{name}.inputs.npz", *keras.tree.flatten(case.x))
    done = run_python(LOAD_ALONE, folder, *CASES, folder=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: list(np.load(folder / f"{name}.outputs.npz").values()) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_loads_where_there_is_no_reusekit(trained, loaded_alone, name):
    case, model, _ = trained(name)
    expected = keras.tree.flatten(model(case.x))
    assert len(loaded_alone[name]) == len(expected)
    for received, output in zip(loaded_alone[name], expected, strict=True):
        np.testing.assert_allclose(received, output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_is_cut_again_inside_the_head(trained, name):
    case, model, _ = trained(name)
    certificate = rk.split(model, case.cut).verify(
        keras.tree.map_structure(lambda x: x[:8], case.x)
    )
    assert certificate.parameters_conserved


@pytest.mark.parametrize("name", CASES)
def test_parameters_count_once(trained, name):
    case, model, _ = trained(name)
    counts = rk.count_params(model)
    assert counts.total == model.count_params() >= rk.count_params(case.bottom).total
    assert counts.trainable == sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.parametrize("name", CASES)
def test_is_flat_and_keeps_the_weights_of_the_bottom(trained, name):
    case, model, _ = trained(name)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    for layer in case.bottom.layers:
        if layer.weights:
            assert model.get_layer(layer.name) is layer
    own = [layer.name for layer in model.layers if layer not in case.bottom.layers]
    placeholders = [tensor.name for tensor in model.inputs]
    # What the bottom gives keeps the bottom's name (surgery F13).
    kept = [*placeholders, case.bottom.name]
    assert all(name.startswith(case.head.name) for name in own if name not in kept)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_outputs_are_float32_under_mixed_precision(name, policy):
    keras.config.set_dtype_policy(policy)
    try:
        case = CASES[name]()
        model = rk.attach(case.bottom, case.head)
    finally:
        keras.config.set_dtype_policy("float32")
    outputs = keras.tree.flatten(model(keras.tree.map_structure(lambda x: x[:2], case.x)))
    assert {keras.backend.standardize_dtype(output.dtype) for output in outputs} == {"float32"}
    assert all(np.isfinite(np.asarray(output)).all() for output in outputs)


def test_probabilities_and_logits_are_of_one_model():
    features = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    for build in (heads.Classifier, heads.Multilabel):
        model, raw = build(3).build((6,)), build(3, logits=True).build((6,))
        raw.set_weights(model.get_weights())
        activation = keras.ops.softmax if build is heads.Classifier else keras.ops.sigmoid
        np.testing.assert_allclose(model(features), activation(raw(features)), rtol=1e-5)


@pytest.mark.parametrize("build", [heads.Classifier, heads.Multilabel])
def test_the_loss_and_the_metrics_fit_logits_and_probabilities_alike(build):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 6)).astype("float32")
    y = (
        generator.integers(0, 3, 40)
        if build is heads.Classifier
        else generator.integers(0, 2, (40, 3))
    )
    results = []
    for logits in (False, True):
        head = build(3, logits=logits)
        model = head.build((6,))
        model.set_weights([np.arange(18).reshape(6, 3) / 10 - 0.9, np.zeros(3)])
        model.compile(**head.compile_args)
        results.append(model.evaluate(features, y, verbose=0))
    np.testing.assert_allclose(*results, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "offset"), [("float32", 1e6), ("float16", 2000)])
def test_standardizing_many_features_far_from_0_finds_their_variance(dtype, offset):
    features = np.random.default_rng(0).normal(offset, 4, (3000, 6)).astype(dtype)
    head = heads.Classifier(3, standardize=features).build((6,))
    (layer,) = (one for one in head.layers if isinstance(one, layers.Normalization))
    exact = features.astype("float64").var(axis=0)
    np.testing.assert_allclose(np.ravel(layer.adapt_variance), exact, rtol=1e-6)


def test_standardizing_takes_out_scale_and_offset():
    features = np.random.default_rng(0).normal(size=(100, 6)).astype("float32")
    head = heads.Classifier(3, standardize=features).build((6,))
    scaled = heads.Classifier(3, standardize=features * 1000 + 50).build((6,))
    scaled.layers[-1].set_weights(head.layers[-1].get_weights())
    np.testing.assert_allclose(scaled(features * 1000 + 50), head(features), rtol=1e-3, atol=1e-4)


def test_standardizing_leaves_the_scale_of_what_never_varied():
    """A channel that is silent in training may speak up later."""
    features = np.random.default_rng(0).normal(size=(100, 6)).astype("float32")
    features[:, 2] = 0.3
    head = heads.Classifier(3, standardize=features, logits=True).build((6,))
    other = features + np.eye(6, dtype="float32")[2]
    kernel = head.layers[-1].get_weights()[0]
    np.testing.assert_allclose(head(other) - head(features), [kernel[2]] * 100, rtol=1e-3)


def test_hidden_layers_are_normalized_and_dropped_in_order():
    head = heads.Classifier(3, units=[8, 4], normalization="layer", dropout=0.5)
    assert [layer.name for layer in head.build((4, 6)).layers] == [
        "head_input",
        "head_pooling",
        "head_features_layer_normalization",
        "head_hidden_0",
        "head_hidden_0_layer_normalization",
        "head_dropout_0",
        "head_hidden_1",
        "head_hidden_1_layer_normalization",
        "head_dropout_1",
        "head_probabilities",
    ]
    plain = heads.Classifier(3, dropout=0.5).build((6,))
    assert [layer.name for layer in plain.layers][1:] == ["head_dropout", "head_probabilities"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: heads.Classifier(1), "classes to be .* at least 2.* a multilabel.*: 1"),
        (lambda: heads.Classifier((6,)), r"classes to be .*Received: \(6,\)"),
        (lambda: heads.Classifier(3, name="a/b"), "name to be text without \"/\".*'a/b'"),
        (lambda: heads.Multilabel(-1), "labels to be .* at least 1"),
        (lambda: heads.Regression(outputs=0), "outputs to be .* at least 1"),
        (lambda: heads.Classifier(3, units=-1), "units to be .* at least 0.*-1"),
        (lambda: heads.Classifier(3, units=(8, "4")), r"units\[1\] to be .*'4'"),
        (lambda: heads.Classifier(3, units=True), "units to be .* at least 0.*True"),
        (lambda: heads.Classifier(3, dropout=1), "dropout to be .* below 1"),
        (lambda: heads.Classifier(3, dropout="0.5"), "dropout to be .*'0.5'"),
        (lambda: heads.Classifier(3, normalization="bach"), "Did you mean 'batch'"),
        (lambda: heads.Classifier(3, standardize=np.ones((9, 5))).build((6,)), r"\(examples, 6\)"),
        (lambda: heads.Classifier(3, standardize=np.ones((0, 6))).build((6,)), r"shape \(0, 6\)"),
        (lambda: heads.Classifier(3).build(6), "without the batch axis.*Received: 6"),
        (lambda: heads.Classifier(3).build([]), "without the batch axis"),
        (lambda: heads.Classifier(3).build([(6,), (6,)]), "one tensor of features"),
        (lambda: heads.Regression().build((None,)), "a known number of channels"),
        (lambda: heads.Multitask({}), "tasks to be a dictionary, not empty"),
        (lambda: heads.Multitask({"a": heads.Siamese()}), "one output for the task 'a'"),
        (lambda: heads.Multitask({"a": "regression"}), "to be a Head. Received: 'reg"),
        (
            lambda: heads.Multitask({"a": heads.Regression()}, weights={"b": 1.0}),
            r"numbers for the tasks \['a'\]. Received: {'b': 1.0}",
        ),
        (
            lambda: heads.Multitask({"a": heads.Regression()}, weights={"a": "1"}),
            r"weights\['a'\] to be a number",
        ),
        (lambda: heads.Multitask({"a": heads.Regression()}, weights={"a": -1}), "at least 0.*-1"),
        (
            lambda: heads.Multitask({"a/b": heads.Regression()}),
            "key of tasks to be text",
        ),
    ],
)
def test_what_makes_no_head_is_refused(make, message):
    with pytest.raises(rk.errors.HeadError, match=message):
        make()
