"""One kernel for Adam's step gives Keras's own numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from reusekit.errors import ReusekitError
from reusekit.search.fused_adam import FusedAdam


def both(**kwargs):
    """The two optimizers, of the same arguments."""
    return FusedAdam(**kwargs), keras.optimizers.Adam(**kwargs)


def after(optimizer, steps, compiled=True):
    """Variables of several shapes after steps along the same noisy gradients."""
    numbers = np.random.default_rng(0)
    variables = [
        keras.Variable(numbers.normal(size=shape).astype("float32"), name=name)
        for name, shape in (("matrix", (7, 5)), ("vector", (5,)), ("scalar", ()))
    ]
    goals = [numbers.normal(size=variable.shape).astype("float32") for variable in variables]
    noise = [
        [(0.3 * numbers.normal(size=v.shape)).astype("float32") for v in variables]
        for _ in range(steps)
    ]

    def step(noise):
        gradients = [v - goal + n for v, goal, n in zip(variables, goals, noise, strict=True)]
        optimizer.apply(gradients, variables)

    optimizer.build(variables)
    run = tf.function(step) if compiled else step
    for each in noise:
        run([tf.constant(part) for part in each])
    return [variable.numpy() for variable in variables]


def schedule():
    return keras.optimizers.schedules.ExponentialDecay(0.05, 20, 0.7)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"learning_rate": 1e-3},
        {"learning_rate": 0.3},
        {"learning_rate": 0.01, "beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
        {"learning_rate": 0.02, "weight_decay": 0.1},
        {"learning_rate": 0.02, "clipnorm": 0.5},
        {"learning_rate": 0.02, "global_clipnorm": 0.5},
        {"learning_rate": 0.02, "clipvalue": 0.1},
        {"learning_rate": 0.02, "use_ema": True, "ema_overwrite_frequency": 7},
        {"learning_rate": 0.02, "gradient_accumulation_steps": 3},
        {"learning_rate": 0.02, "loss_scale_factor": 4.0},
    ],
    ids=lambda kwargs: ", ".join(kwargs),
)
def test_hundreds_of_steps_are_those_of_keras(kwargs):
    fused, stock = both(**kwargs)
    for one, other in zip(after(fused, 300), after(stock, 300), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert int(fused.iterations) == int(stock.iterations)


def test_the_first_steps_are_exact_to_rounding():
    for steps in (1, 2, 10):
        for one, other in zip(*(after(o, steps) for o in both(learning_rate=0.1)), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_schedule_sets_the_rate_of_each_step(compiled):
    fused, stock = FusedAdam(schedule()), keras.optimizers.Adam(schedule())
    for one, other in zip(after(fused, 60, compiled), after(stock, 60, compiled), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_rate_that_is_set_later_counts_from_there():
    ends = []
    for optimizer in both(learning_rate=0.1):
        variable = keras.Variable([1.0, -2.0])
        for rate in (0.1, 0.1, 0.01, 0.5):
            optimizer.learning_rate = rate
            optimizer.apply([2 * keras.ops.convert_to_tensor(variable)], [variable])
        ends.append(variable.numpy())
    np.testing.assert_allclose(*ends, rtol=1e-6)


def embedding_model(optimizer):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(50, 4)(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def test_sparse_gradients_of_an_embedding():
    numbers = np.random.default_rng(2)
    # No token comes twice in a batch of one, so that Keras squares what it has summed.
    tokens = np.array([numbers.permutation(30)[:6] for _ in range(40)])
    labels = numbers.integers(0, 3, 40)
    models = [embedding_model(optimizer) for optimizer in both(learning_rate=0.02)]
    untouched = models[0].layers[1].get_weights()[0][30:].copy()
    losses = []
    for model in models:
        fit = model.fit(tokens, labels, batch_size=1, epochs=5, shuffle=False, verbose=0)
        losses.append(fit.history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    # Tokens that never came keep their vectors.
    np.testing.assert_array_equal(models[0].layers[1].get_weights()[0][30:], untouched)


def test_a_row_that_is_looked_up_twice_is_summed_before_it_is_squared():
    sparse = tf.IndexedSlices(tf.constant([[1.5], [0.5], [0.5]]), [1, 3, 1], [5, 1])
    ends = []
    fused, stock = both(learning_rate=0.02)
    for optimizer, gradient in ((fused, sparse), (stock, tf.convert_to_tensor(sparse))):
        variable = keras.Variable(np.ones((5, 1)), dtype="float32")
        for _ in range(5):
            optimizer.apply([gradient], [variable])
        ends.append(variable.numpy())
    np.testing.assert_allclose(*ends, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes_are_refused_before_anything_is_changed(dtype):
    good, other = keras.Variable([1.0]), keras.Variable([1.0], dtype=dtype, name="odd")
    optimizer = FusedAdam(0.1)
    with pytest.raises(ReusekitError, match=f"'odd' is {dtype}"):
        optimizer.apply([keras.ops.ones(1)] * 2, [good, other])
    assert not optimizer.built
    np.testing.assert_array_equal(good, [1.0])


def test_two_slots_for_each_variable_and_no_more():
    variables = [keras.Variable(np.zeros(shape), dtype="float32") for shape in ((3, 2), (4,))]
    fused, stock = both(learning_rate=0.1)
    fused.build(variables), stock.build(variables)
    shapes = sorted(tuple(v.shape) for v in fused.variables)
    assert shapes == sorted(tuple(v.shape) for v in stock.variables)
    assert shapes == [(), (), (3, 2), (3, 2), (4,), (4,)]
    assert {v.dtype for v in fused.variables[2:]} == {"float32"}
    fused.build(variables)  # a second time changes nothing
    assert len(fused.variables) == 6


def test_its_configuration_comes_back():
    one = FusedAdam(schedule(), beta_1=0.8, beta_2=0.99, epsilon=1e-5, weight_decay=0.2, clipnorm=3)
    other = keras.optimizers.deserialize(keras.optimizers.serialize(one))
    assert type(other) is FusedAdam
    assert other.get_config() == one.get_config()
    assert (other.beta_1, other.beta_2, other.epsilon) == (0.8, 0.99, 1e-5)


def test_a_saved_model_goes_on_as_if_it_had_not_been_saved(tmp_path):
    numbers = np.random.default_rng(2)
    tokens, labels = numbers.integers(0, 30, (40, 6)), numbers.integers(0, 3, 40)
    model = embedding_model(FusedAdam(0.05))
    train = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(tokens, labels, epochs=3, **train)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 15
    fits = [each.fit(tokens, labels, epochs=3, **train).history for each in (model, loaded)]
    np.testing.assert_allclose(fits[0]["loss"], fits[1]["loss"], rtol=1e-6)


def test_an_unknown_variable_is_refused():
    optimizer = FusedAdam(0.1)
    optimizer.build([keras.Variable([1.0])])
    other = keras.Variable([1.0])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([keras.ops.ones(1)], [other])
