"""Adam with one operation for each variable."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reusekit.errors import ReusekitError


@keras.saving.register_keras_serializable(package="reusekit")
class FusedAdam(keras.optimizers.Optimizer):
    """Keras's Adam, computed by TensorFlow's own kernel: one pass over each variable a step.

    Keras composes the update of about ten operations, each of which reads and writes an array of
    the variable's size; with few examples a step that takes as long as the gradients do. The kernel
    (`ResourceApplyAdam`) has the same formula, but takes 1 - beta from beta rounded to float32
    where Keras rounds 1 - beta itself; the learning rate makes up for that, so that both give the
    same numbers to rounding. For TensorFlow and float32 variables only.

    The gradient of an embedding that looks a row up several times in a batch is summed before it is
    squared, as that of any other variable; Keras's Adam squares the parts.

    Args:
        learning_rate: A number or a Keras schedule.
        beta_1: Decay of the mean of gradients.
        beta_2: Decay of the mean of squared gradients.
        epsilon: Added to the root of the latter.
        **kwargs: What every Keras optimizer takes, such as `weight_decay`.

    Raises:
        ReusekitError: In `build`, a variable is not float32: 1 - beta would be lost in the kernel.

    Example:
        >>> weights = []
        >>> for optimizer in (FusedAdam(0.1), keras.optimizers.Adam(0.1)):
        ...     variable = keras.Variable([1.0, -2.0, 3.0])
        ...     for _ in range(10):
        ...         optimizer.apply([2 * keras.ops.convert_to_tensor(variable)], [variable])
        ...     weights.append(variable.numpy())
        >>> np.testing.assert_allclose(*weights, rtol=1e-6)
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        self._slots: dict[Any, tuple[keras.Variable, keras.Variable]] = {}

    def build(self, variables: list[keras.Variable]) -> None:
        """Make the two slots of each variable."""
        if self.built:
            return
        for variable in variables:
            if variable.dtype != "float32":
                raise ReusekitError(
                    f"Expected float32 variables. {variable.path!r} is {variable.dtype}; use "
                    "keras.optimizers.Adam."
                )
        super().build(variables)
        for variable in variables:
            self._slots[variable.value.ref()] = (
                self.add_variable_from_reference(variable, "momentum"),
                self.add_variable_from_reference(variable, "velocity"),
            )

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Update all variables; see `keras.optimizers.Optimizer.apply`."""
        step = tf.cast(self.iterations + 1, tf.float64)
        rate = tf.cast(self.learning_rate, tf.float64)
        rate *= tf.sqrt(_lag(self.beta_2, step)) / _lag(self.beta_1, step)
        step = tf.cast(step, tf.float32)
        self._now = {  # the same for each variable
            "lr": tf.cast(rate, tf.float32),
            "beta1_power": tf.pow(tf.constant(self.beta_1, tf.float32), step),
            "beta2_power": tf.pow(tf.constant(self.beta_2, tf.float32), step),
        }
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable; called by Keras with the rate that `apply` has seen."""
        if isinstance(variable, keras.Variable):
            variable = variable.value
        momentum, velocity = self._slots[variable.ref()]
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.value.handle,
            v=velocity.value.handle,
            grad=tf.convert_to_tensor(gradient),  # embeddings have sparse ones
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            **self._now,
        )

    def get_config(self) -> dict[str, Any]:
        """Its arguments."""
        mine = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return super().get_config() | mine


def _lag(beta: float, step: tf.Tensor) -> tf.Tensor:
    """The kernel's moving average of a constant after some steps, as a share of Keras's."""
    rounded = float(np.float32(beta))
    complement = float(np.float32(1 - beta))
    return (1 - tf.pow(tf.constant(rounded, tf.float64), step)) / (
        1 - tf.pow(tf.constant(1 - complement, tf.float64), step)
    )
