"""One loop for Adam's step gives the bits of Keras's dozen operations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from reusekit.search.one_pass import LARGE, adam_in_one_pass


def gradients(shapes, steps):
    """From nothing at all over what underflows when it is squared to large ones."""
    numbers = np.random.default_rng(0)
    for _ in range(steps):
        sizes = [10.0 ** numbers.uniform(-30, 4, shape) for shape in shapes]
        signs = [numbers.integers(-1, 2, shape) for shape in shapes]
        yield [(a * b).astype("float32") for a, b in zip(sizes, signs, strict=True)]


def loops(compiled):
    """How many variables are gone over in one pass."""
    calls = [op for op in compiled.graph.get_operations() if op.type == "StatefulPartitionedCall"]
    return sum(call.get_attr("_XlaMustCompile") for call in calls)


def trained(optimizer, shapes, in_one_pass, steps=20):
    """The variables and the optimizer's after some compiled steps, and how many loops ran."""
    variables = [keras.Variable(np.full(shape, 0.5, "float32")) for shape in shapes]
    optimizer.build(variables)
    given = [tf.TensorSpec(shape, tf.float32) for shape in shapes]

    @tf.function(input_signature=[given], autograph=False)
    def step(values):
        optimizer.apply(values, variables)

    with adam_in_one_pass([optimizer] if in_one_pass else []):
        compiled = step.get_concrete_function()
    for values in gradients(shapes, steps):
        compiled([tf.constant(value) for value in values])
    return [v.numpy() for v in [*variables, *optimizer.variables]], loops(compiled)


SHAPES = [(3, 3, 128, 128), (LARGE,), (LARGE - 1,), (5, 7), ()]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: keras.optimizers.Adam(1e-3), 2),
        (lambda: keras.optimizers.Adam(0.1, beta_1=0.5, beta_2=0.9, epsilon=1e-3), 2),
        (lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1, clipnorm=1.0), 2),
        (lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 10)), 2),
        (lambda: keras.optimizers.Adam(1e-3, use_ema=True), 2),
        (lambda: keras.optimizers.Adam(1e-3, amsgrad=True), 0),
        (lambda: keras.optimizers.Nadam(1e-3), 0),
        (lambda: keras.optimizers.SGD(1e-3, momentum=0.9), 0),
    ],
    ids=["adam", "betas", "adamw", "schedule", "ema", "amsgrad", "nadam", "sgd"],
)
def test_numbers_are_bit_equal_to_those_of_keras(make, expected):
    alone, _ = trained(make(), SHAPES, in_one_pass=False)
    fused, seen = trained(make(), SHAPES, in_one_pass=True)
    assert seen == expected
    for one, other in zip(alone, fused, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.tobytes() == other.tobytes()  # the signs of zeros as well


def test_an_optimizer_is_what_it_was_afterwards():
    optimizer = keras.optimizers.Adam()
    optimizer.build([keras.Variable(1.0)])
    before = optimizer.get_config(), optimizer.update_step
    with pytest.raises(ZeroDivisionError), adam_in_one_pass([optimizer]):
        assert optimizer.update_step != before[1]
        raise ZeroDivisionError
    assert (optimizer.get_config(), optimizer.update_step) == before


def test_lookups_and_other_types_of_numbers_are_left_to_keras():
    embedding = keras.layers.Embedding(LARGE, 2)
    half = keras.Variable(np.zeros(LARGE), dtype="float16")
    optimizer = keras.optimizers.Adam(0.1)
    embedding.build()
    variables = [embedding.embeddings, half]
    optimizer.build(variables)

    @tf.function(autograph=False)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(embedding(tf.constant([3, 3, 5])))
            loss += tf.cast(tf.reduce_sum(half.value), tf.float32)
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    with adam_in_one_pass([optimizer]):
        compiled = step.get_concrete_function()
    assert loops(compiled) == 0
    before = embedding.embeddings.numpy()
    compiled()
    changed = np.flatnonzero((embedding.embeddings.numpy() != before).any(axis=1))
    assert changed.tolist() == [3, 5]
    assert (half.numpy() < 0).all()
