"""Batches of examples whose lengths differ."""

from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf
from pydantic import PositiveInt

from reusekit.arguments import checked
from reusekit.errors import CacheError


@checked(CacheError)
@dataclass(frozen=True)
class Padding:
    """A rule to bring examples of different lengths to one.

    Every axis that the inputs leave open is filled up at its end. A model's predictions stay what
    they were where it is told what is filling: by a mask among its inputs, which is filled with
    False or 0, or by an embedding that masks `value`.

    Attributes:
        length: The length of each open axis afterwards.
        longer: What becomes of a longer example: `refuse` is an error, `truncate` cuts its end off.
        value: What numbers are filled up with; boolean inputs are with False.

    Example:
        >>> examples = tf.data.Dataset.from_tensor_slices([3, 1]).map(tf.range)
        >>> [batch.tolist() for batch in Padding(4, value=9).batch(examples, 2).as_numpy_iterator()]
        [[[0, 1, 2, 9], [0, 9, 9, 9]]]
    """

    length: PositiveInt
    longer: Literal["refuse", "truncate"] = "refuse"
    value: float = 0

    @checked(CacheError)
    def batch(self, examples: tf.data.Dataset, batch_size: PositiveInt) -> tf.data.Dataset:
        """Return batches of examples padded to one length; the last may be smaller."""
        spec = examples.element_spec
        return examples.map(lambda *example: self._fitting(_one(example))).padded_batch(
            batch_size,
            tf.nest.map_structure(self._shape, spec),
            tf.nest.map_structure(self._filling, spec),
        )

    def _shape(self, spec: tf.TensorSpec) -> list[int]:
        return [self.length if size is None else size for size in spec.shape]

    def _filling(self, spec: tf.TensorSpec) -> tf.Tensor:
        if spec.dtype.is_floating or spec.dtype.is_integer:
            return tf.cast(self.value, spec.dtype)
        return tf.zeros((), spec.dtype)  # False, or an empty string

    def _fitting(self, example: Any) -> Any:
        def fit(part: tf.Tensor) -> tf.Tensor:
            open_axes = [axis for axis, size in enumerate(part.shape) if size is None]
            if self.longer == "truncate":
                ends = [self.length if axis in open_axes else None for axis in range(part.ndim)]
                return part[tuple(slice(end) for end in ends)]
            checks = [
                tf.debugging.assert_less_equal(
                    tf.shape(part)[axis],
                    self.length,
                    f"An example is longer than Padding(length={self.length}) and is refused.",
                )
                for axis in open_axes
            ]
            with tf.control_dependencies(checks):
                return tf.identity(part)

        return tf.nest.map_structure(fit, example)


def _one(example: tuple) -> Any:
    """Return an element as it was, where `map` has spread a tuple over several arguments."""
    return example if len(example) > 1 else example[0]
