"""Keras's Adam in one pass over each large variable, to the same bits."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from reusekit.graph import keras_internals

LARGE = 1 << 17
"""Numbers in a variable from which one pass saves more than it costs to compile and launch."""


@contextmanager
def adam_in_one_pass(optimizers: Iterable[keras.optimizers.Optimizer]) -> Iterator[None]:
    """Have Keras's Adam optimizers go over each large variable once a step.

    Keras composes the update of about a dozen operations, each of which reads and writes arrays of
    the variable's size; with few examples in a batch that takes as long as the gradients do. Within
    this context they are compiled into one loop by XLA, with equal bits as the result. What is no
    plain Adam, is small, sparse or not float32, or runs on a GPU stays as it is.

    Args:
        optimizers: Built optimizers; they are what they were again at the end.

    Example:
        >>> once, as_keras = (keras.Variable(keras.ops.linspace(-1, 1, LARGE)) for _ in range(2))
        >>> for variable, optimizers in ((once, 1), (as_keras, 0)):
        ...     optimizer = keras.optimizers.Adam(0.1)
        ...     optimizer.build([variable])
        ...     with adam_in_one_pass([optimizer] * optimizers):
        ...         optimizer.apply([variable * variable], [variable])
        >>> bool((once.numpy() == as_keras.numpy()).all())
        True
    """
    changed = [optimizer for optimizer in optimizers if _is_plain_adam(optimizer)]
    for optimizer in changed:
        optimizer.update_step = partial(_update_step, optimizer)
    try:
        yield
    finally:
        for optimizer in changed:
            del optimizer.update_step


def _is_plain_adam(optimizer: keras.optimizers.Optimizer) -> bool:
    return (
        type(optimizer).update_step is keras.optimizers.Adam.update_step
        and not keras_internals.has_scaled_rate(optimizer)
        and not optimizer.amsgrad
        and not tf.config.list_logical_devices("GPU")
    )


def _update_step(
    optimizer: keras.optimizers.Adam, gradient: Any, variable: tf.Variable, learning_rate: Any
) -> None:
    """What `Adam.update_step` does."""
    if (
        isinstance(gradient, tf.IndexedSlices)
        or variable.dtype != tf.float32
        or variable.shape.num_elements() < LARGE
    ):
        type(optimizer).update_step(optimizer, gradient, variable, learning_rate)
        return
    momentum, velocity = keras_internals.adam_slots(optimizer, variable)
    step = ops.cast(optimizer.iterations + 1, "float32")
    lag_1, lag_2 = (
        1 - ops.power(ops.cast(beta, "float32"), step)
        for beta in (optimizer.beta_1, optimizer.beta_2)
    )
    _one_pass(
        variable,
        momentum.value,
        velocity.value,
        tf.cast(gradient, tf.float32),
        ops.cast(learning_rate, "float32") * ops.sqrt(lag_2) / lag_1,
        tf.constant(1 - optimizer.beta_1, tf.float32),
        tf.constant(1 - optimizer.beta_2, tf.float32),
        tf.constant(optimizer.epsilon, tf.float32),
        # 0, as no compiler can know.
        tf.cast(tf.minimum(optimizer.iterations.value, 0), tf.int32),
    )


@partial(tf.function, jit_compile=True, autograph=False)
def _one_pass(
    variable: tf.Variable,
    momentum: tf.Variable,
    velocity: tf.Variable,
    gradient: tf.Tensor,
    rate: tf.Tensor,
    share_1: tf.Tensor,
    share_2: tf.Tensor,
    epsilon: tf.Tensor,
    zero: tf.Tensor,
) -> None:
    """The loop; compiled once for each shape in a process."""

    def product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        # A processor can multiply and add in one instruction, which rounds once where Keras's
        # operations round twice. What happens to the bits in between keeps the compiler from it.
        bits = tf.bitcast(a * b, tf.int32)
        return tf.bitcast(tf.bitwise.bitwise_xor(bits, zero), tf.float32)

    mean = momentum + product(gradient - momentum, share_1)
    square = velocity + product(product(gradient, gradient) - velocity, share_2)
    momentum.assign(mean)
    velocity.assign(square)
    variable.assign_sub(product(mean, rate) / (tf.sqrt(square) + epsilon))
