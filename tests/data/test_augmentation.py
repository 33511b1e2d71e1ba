"""Augmentation follows from its seed alone, mixes labels with weights, and refuses what is none."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reusekit.data import DataSplit, Task
from reusekit.errors import DataError
from reusekit.tasks import rules_of

SIZE = 6
CLASSES = Task("classification", ("a", "b", "c"))


def split(inputs=None, labels=None, weights=None, task=CLASSES) -> DataSplit:
    # Picture i is 1 in channel i, so that a mixed one says of what it is mixed.
    inputs = np.eye(SIZE, dtype="float32").reshape(SIZE, 1, 1, SIZE) if inputs is None else inputs
    labels = np.arange(len(inputs)) % 3 if labels is None else labels
    parts = (inputs, labels) if weights is None else (inputs, labels, weights)
    examples = tf.data.Dataset.from_tensor_slices(parts)
    return DataSplit("made", "train", examples, len(inputs), task, "print")


def drawn(data: DataSplit, *entropy: int) -> list[np.ndarray]:
    """One varied batch of all examples."""
    batch = next(iter(data.batches(data.size)))
    return [np.asarray(part) for part in data.augmentation(entropy or (0,), *batch)]


def test_what_is_drawn_follows_from_the_integers_and_the_layers():
    flip = layers.RandomFlip("horizontal")
    images = np.random.default_rng(0).uniform(0, 255, (SIZE, 8, 8, 1)).astype("float32")
    state = flip.generator.state.numpy()
    one, other = (
        split(images).augmented(r) for r in ([flip], {"RandomFlip": {"mode": "horizontal"}})
    )
    assert one.augmentation == other.augmentation
    assert one.fingerprint == split(images).fingerprint
    first, labels = drawn(one, 3, 0, 1)
    np.testing.assert_array_equal(first, drawn(other, 3, 0, 1)[0])
    np.testing.assert_array_equal(first, drawn(one, 3, 0, 1)[0])
    assert any(not np.array_equal(first, drawn(one, 3, 0, n)[0]) for n in (2, 3))
    np.testing.assert_array_equal(labels, np.arange(SIZE) % 3)
    np.testing.assert_array_equal(flip.generator.state.numpy(), state)
    # By hand.
    other.augmentation.reseed(3, 0, 1)
    (layer,) = other.augmentation.layers
    np.testing.assert_array_equal(first, layer(images, training=True))
    with pytest.raises(DataError, match="without augmentation, which searches"):
        one.batches(2, shuffle_seed=0)
    assert len(list(one.batches(2))) == 3


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_a_mixed_batch_is_the_mixture_of_the_losses(weighted):
    weights = np.array([1, 2, 0.5, 3, 0, 1], "float32") if weighted else None
    inputs, labels, *found = drawn(split(weights=weights).augmented(layers.MixUp(1.0)))
    of = inputs.reshape(SIZE, SIZE)  # of which examples each is mixed
    assert ((of > 0.01) & (of < 0.99)).any()
    each = np.ones(SIZE) if weights is None else weights
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)

    rules = rules_of(CLASSES)
    head = rules.head()
    model = head.build(inputs.shape[1:])
    args = rules.with_shares(head, head.compile_args)
    model.compile("sgd", **args)
    outputs = model.predict(inputs, verbose=0)
    entropies = -np.log(outputs[:, np.arange(SIZE) % 3])  # of each picture with each label
    expected = (of * each * entropies).sum(axis=1).mean()
    batch = tf.data.Dataset.from_tensors((inputs, labels, *found))
    measured = model.evaluate(batch, verbose=0, return_dict=True)
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)
    right = (outputs.argmax(axis=1) == labels.argmax(axis=1)).mean()
    assert measured["accuracy"] == pytest.approx(right)
    # Labels as they are, of a validation split, count as ever.
    plain = np.arange(SIZE) % 3
    as_ever = head.build(inputs.shape[1:])
    as_ever.set_weights(model.get_weights())
    as_ever.compile("sgd", **head.compile_args)
    one, other = (m.evaluate(inputs, plain, verbose=0) for m in (model, as_ever))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_several_labels_and_numbers_are_mixed_in_proportion():
    several, numbers = np.eye(SIZE)[:, :3].astype("float32"), np.arange(SIZE, dtype="float32")
    tasks = (Task("multilabel", ("a", "b", "c")), several), (Task("regression", ("n",)), numbers)
    for task, labels in tasks:
        inputs, mixed = drawn(split(labels=labels, task=task).augmented(["MixUp"]))
        np.testing.assert_allclose(mixed, inputs.reshape(SIZE, SIZE) @ labels, atol=1e-5)
        rules = rules_of(task)
        model = rules.head().build((3,))
        model.compile("sgd", **rules.with_shares(rules.head(), rules.head().compile_args))
        assert np.isfinite(model.evaluate(np.ones((SIZE, 3)), mixed, verbose=0)).all()


def test_mixed_labels_are_shares_for_other_metrics_too():
    rules, head = rules_of(CLASSES), rules_of(CLASSES).head()
    metrics = [rules.metric(name) for name in ("f1", "sparse_top_k_categorical_accuracy")]
    args = rules.with_shares(head, head.compile_args | {"metrics": metrics})
    outputs = np.eye(3, dtype="float32")
    for metric in args["metrics"]:
        metric.update_state(np.array([[0.3, 0.7, 0], [1, 0, 0]]), outputs[[1, 0]])
        metric.update_state(np.array([2]), outputs[[2]])
        np.testing.assert_allclose(keras.ops.convert_to_numpy(metric.result()), 1, rtol=1e-6)


@keras.saving.register_keras_serializable("test_augmentation")
class Shift(layers.Layer):
    """A layer of one's own that holds a generator."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.numbers = keras.random.SeedGenerator()

    def call(self, x, training=False):
        return x + keras.random.uniform(keras.ops.shape(x), seed=self.numbers) if training else x


def test_series_layers_of_ones_own_and_sequential_models_augment():
    series = split(np.zeros((SIZE, 20, 2), "float32"))
    noisy, _ = drawn(series.augmented([{"GaussianNoise": {"stddev": 0.5}}]))
    assert 0.3 < noisy.std() < 0.7
    moved, _ = drawn(series.augmented("test_augmentation>Shift"))
    assert 0.3 < moved.mean() < 0.7
    both = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])
    found = split(np.zeros((SIZE, 8, 8, 1), "float32")).augmented(both).augmentation
    assert str(found) == "RandomFlip, RandomRotation(factor=(-0.1, 0.1))"


REFUSED = [
    ("RandomFlp", "'RandomFlp'. Did you mean 'RandomFlip'"),
    ([{"RandomRotation": {"factor": 9}}], "options that RandomRotation takes.*factor=9"),
    (["RandomRotation"], "Received: none, at which it says.*'factor'"),
    ([layers.Dense(1)], "vary examples by random numbers.*Received: Dense"),
    ([{"Rescaling": {"scale": 2}}], "Received: Rescaling"),
    ([layers.LSTM(3, dropout=0.1)], "examples of shape"),
    ([layers.MultiHeadAttention(1, 1, dropout=0.1)], "MultiHeadAttention"),
    (["AugMix"], "AugMix.*RandAugment is like it"),
    ([{"RandomCrop": {"height": 4, "width": 4}}], r"keep the shape of examples, \(8, 8, 1\)"),
    ([{"RandomFlip": {}, "MixUp": {}}], "its name with its options"),
    ([], "at least one layer"),
    ([3], "Received: 3"),
]


@pytest.mark.parametrize(("recipe", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_does_not_augment_is_refused(recipe, said):
    with pytest.raises(DataError, match=said):
        split(np.zeros((2, 8, 8, 1), "float32")).augmented(recipe)


def test_examples_that_cannot_be_augmented_are_refused():
    numbers = Task("regression", ("n",))
    with pytest.raises(DataError, match="CutMix, which shares them out by area"):
        split(task=numbers, labels=np.zeros(SIZE, "float32")).augmented(["CutMix"])
    with pytest.raises(DataError, match=r"pictures.*for MixUp. Received: examples of shape \(9, 2"):
        split(np.zeros((2, 9, 2), "float32")).augmented(["MixUp"])
    for inputs in (np.array(["a", "b"]), np.zeros((2, 4), "int32")):
        with pytest.raises(DataError, match="one input of floats"):
            split(inputs).augmented([{"GaussianNoise": {"stddev": 0.1}}])
    several = replace(split(), examples=split().examples.map(lambda x, y: ({"a": x, "b": x}, y)))
    with pytest.raises(DataError, match="Received: dict"):
        several.augmented(["RandomFlip"])
