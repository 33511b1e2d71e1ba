"""Augmentation: layers that vary training examples, in the same way for the same seed."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reusekit.backbones.digest import described_operation
from reusekit.data.task import Task
from reusekit.digests import digest
from reusekit.errors import DataError, nearest
from reusekit.graph import keras_internals

Recipe = Sequence[str | Mapping[str, Mapping[str, Any] | None]] | str
"""Names of Keras layers, each alone or with its options, as a configuration file has them."""

_MIXING = (keras.layers.MixUp, keras.layers.CutMix)
_NOISE = (
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)
_TRIED = 32  # for the length of an axis that is left open, where layers are tried out


class Augmentation:
    """Layers that vary training examples, one after another.

    What they draw follows from the integers that `__call__` is given, and from the layers
    themselves. The layers are copies, so that those of the caller stay as they are.

    Args:
        layers: As `layers_of` takes them.
        spec: The spec of an example: (input, label) or (input, label, weight).
        task: What labels state.

    Attributes:
        layers: The layers.
        recipe: The layers in words, such as `RandomFlip(mode='horizontal')`.
        digest: Equal where the layers are.
        mixes: Whether examples are mixed with each other. Labels are then shares of classes, or
            mixed numbers, shape (batch, outputs).

    Raises:
        DataError: A layer does not vary examples, or cannot take such ones.
    """

    def __init__(self, layers: Any, spec: tuple[Any, ...], task: Task) -> None:
        self._spec = spec
        self.layers = tuple(map(_copied, layers_of(layers)))
        self.recipe = tuple(map(_in_words, self.layers))
        described = [described_operation(layer, layer.name) for layer in self.layers]
        self.digest = digest(described)
        self.mixes = any(isinstance(layer, _MIXING) for layer in self.layers)
        self._task = task
        self._sources = [
            ((place, number, int(digest(said), 16)), generator)
            for place, (layer, said) in enumerate(zip(self.layers, described, strict=True))
            for number, generator in enumerate(keras_internals.generators(layer))
        ]
        self._one_at_a_time = Lock()
        self._run = tf.function(self._vary, autograph=False, reduce_retracing=True)
        self._try(spec)

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process as the configurations of the layers."""
        told = [keras.saving.serialize_keras_object(layer) for layer in self.layers]
        return _made_again, (told, self._spec, self._task)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Augmentation) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        return ", ".join(self.recipe)

    def reseed(self, *entropy: int) -> None:
        """Let what the layers draw next follow from some integers, none of them negative."""
        for numbers, generator in self._sources:
            state = np.random.SeedSequence([*entropy, *numbers]).generate_state(2)
            generator.state.assign((state % 2**31).astype("int32"))

    def __call__(self, entropy: Sequence[int], *batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Return a varied batch of inputs, labels and, where there are some, weights."""
        with self._one_at_a_time:
            self.reseed(*entropy)
            return self._run(*batch)

    def specs(self, spec: tuple[Any, ...]) -> tuple[tf.TensorSpec, ...]:
        """Return the specs of varied batches, by those of batches."""
        if not self.mixes:
            return spec
        inputs, labels, *weights = spec
        shape = labels.shape
        if self._task.kind == "classification":
            shape = (None, self._task.size)
        told = [tf.TensorSpec(shape, tf.float32)]
        return inputs, *told, *(tf.TensorSpec(one.shape, tf.float32) for one in weights)

    def _vary(self, inputs: tf.Tensor, labels: tf.Tensor, *weights: tf.Tensor) -> tuple[Any, ...]:
        dtype = inputs.dtype
        told: Any = self._as_shares(labels, *weights) if self.mixes else None
        for layer in self.layers:
            inputs, told = self._called(layer, inputs, told)
        inputs = tf.cast(inputs, dtype)
        if not self.mixes:
            return inputs, labels, *weights
        if weights:
            weight = told[:, -1:]
            told = tf.math.divide_no_nan(told[:, :-1], weight)
            weights = (tf.reshape(weight, tf.shape(weights[0])),)
        if self._task.kind != "classification":
            told = tf.reshape(told, tf.shape(labels))
        return inputs, told, *weights

    @staticmethod
    def _called(layer: keras.Layer, inputs: Any, told: Any) -> tuple[Any, Any]:
        if not isinstance(layer, _MIXING):
            return layer(inputs, training=True), told
        mixed = layer({"images": inputs, "labels": told}, training=True)
        return mixed["images"], mixed["labels"]

    def _as_shares(self, labels: tf.Tensor, *weights: tf.Tensor) -> tf.Tensor:
        """Return labels as layers mix them: shape (batch, outputs), with one for the weight.

        An example that counts for more counts for more in a mixed label as well: the loss of a
        mixed example is then the mixture of the losses, each with its weight.
        """
        size = self._task.size
        if self._task.kind == "classification":
            shares = tf.one_hot(tf.reshape(labels, (-1,)), size)
        else:
            shares = tf.reshape(tf.cast(labels, tf.float32), (-1, size))
        if not weights:
            return shares
        weight = tf.reshape(tf.cast(weights[0], tf.float32), (-1, 1))
        return tf.concat([shares * weight, weight], axis=1)

    def _try(self, spec: tuple[Any, ...]) -> None:
        """Refuse layers that do not fit the examples."""
        given = spec[0]
        if not isinstance(given, tf.TensorSpec) or not given.dtype.is_floating:
            received = given if isinstance(given, tf.TensorSpec) else type(given).__name__
            raise DataError(
                "Expected examples of one input of floats to augment, such as pictures or series. "
                f"Received: {received}."
            )
        if self.mixes and self._task.parts:
            raise DataError(
                "Expected one task an example for MixUp and CutMix, which mix its labels. "
                f"Received: {', '.join(self._task.names)}."
            )
        for layer in self.layers:
            self._fit(layer, tuple(given.shape))
        sizes = [2, *(size or _TRIED for size in given.shape)]
        inputs, told = tf.zeros(sizes, given.dtype), tf.zeros((2, self._task.size))
        for layer, name in zip(self.layers, self.recipe, strict=True):
            try:
                varied, told = self._called(layer, inputs, told)
            except Exception as error:  # whatever a layer raises
                raise DataError(
                    f"Expected layers that take examples of shape {tuple(given.shape)}. Received: "
                    f"{name}, which says: {_line(error)}"
                ) from error
            if varied.shape != inputs.shape:
                raise DataError(
                    f"Expected layers that keep the shape of examples, {tuple(given.shape)}. "
                    f"Received: {name}, which makes {tuple(varied.shape[1:])} of it."
                )
            if layer.weights:
                raise _no_augmentation(layer)

    def _fit(self, layer: keras.Layer, shape: tuple[int | None, ...]) -> None:
        kind = type(layer).__name__
        # Keras would take a batch of series for one picture.
        if len(shape) != 3 and _holds(layer, keras_internals.IMAGE_LAYER):
            raise DataError(
                f"Expected pictures, of shape (height, width, channels), for {kind}. Received: "
                f"examples of shape {shape}."
            )
        if isinstance(layer, keras.layers.CutMix) and self._task.kind == "regression":
            raise DataError(
                "Expected classes or labels for CutMix, which shares them out by area. Received: "
                "numbers to predict; MixUp mixes these."
            )


def _made_again(told: Sequence[Any], spec: tuple[Any, ...], task: Task) -> Augmentation:
    return Augmentation([keras.saving.deserialize_keras_object(one) for one in told], spec, task)


def layers_of(recipe: Any) -> list[keras.Layer]:
    """Return the layers that a recipe names.

    Args:
        recipe: Names of Keras layers, each alone or with its options, or layers; a list, or one.
            Names stand for `keras.layers.NAME`, or for a class that was registered with Keras. A
            `Sequential` and a `Pipeline` stand for their layers.

    Raises:
        DataError: A name is no layer of Keras, an option is wrong, or a layer does not vary
            examples in training alone.

    Example:
        >>> recipe = ["GaussianNoise", {"RandomFlip": {"mode": "horizontal"}}]
        >>> layers_of(recipe)
        Traceback (most recent call last):
        reusekit.errors.DataError: Expected options that GaussianNoise takes. Received: none, at
        which it says: GaussianNoise.__init__() missing 1 required positional argument: 'stddev'
        >>> [type(layer).__name__ for layer in layers_of(recipe[1:])]
        ['RandomFlip']
    """
    alone = isinstance(recipe, str | Mapping | keras.Layer) or not isinstance(recipe, Sequence)
    layers = [layer for part in ([recipe] if alone else recipe) for layer in _parts(part)]
    if not layers:
        raise DataError(f"Expected at least one layer that varies examples. Received: {recipe!r}.")
    for layer in layers:
        _check(layer)
    return layers


def _parts(part: Any) -> Iterator[keras.Layer]:
    if isinstance(part, keras.Sequential | keras.layers.Pipeline):
        for layer in part.layers:
            yield from _parts(layer)
    elif isinstance(part, keras.Layer):
        yield part
    elif isinstance(part, str):
        yield _made(part, {})
    elif isinstance(part, Mapping) and len(part) == 1:
        ((name, options),) = part.items()
        yield _made(name, {} if options is None else options)
    else:
        raise DataError(
            "Expected a layer, its name, or its name with its options, such as "
            f"{{'RandomRotation': {{'factor': 0.1}}}}. Received: {part!r}."
        )


def _made(name: Any, options: Any) -> keras.Layer:
    kind = getattr(keras.layers, str(name), None) or keras.saving.get_registered_object(str(name))
    if not inspect.isclass(kind) or not issubclass(kind, keras.Layer):
        valid = [
            each
            for each, found in vars(keras.layers).items()
            if inspect.isclass(found) and issubclass(found, (keras_internals.IMAGE_LAYER, *_NOISE))
        ]
        raise DataError(
            "Expected the name of a layer of Keras that varies examples. Received: "
            f"{name!r}. {nearest(str(name), valid)}"
        )
    try:
        # Whatever precision models use, and whatever the user's Keras prefers.
        settings = {"dtype": "float32", **options}
        if issubclass(kind, keras_internals.IMAGE_LAYER):
            settings = {"data_format": "channels_last", **settings}
        return kind(**settings)
    except Exception as error:  # whatever a layer raises
        raise DataError(
            f"Expected options that {name} takes. Received: {options or 'none'}, at which it "
            f"says: {_line(error)}"
        ) from error


def _check(layer: keras.Layer) -> None:
    """Refuse a layer that does not vary examples in training alone, and alike for a seed."""
    if not keras_internals.generators(layer) or not keras_internals.takes(layer, "training"):
        raise _no_augmentation(layer)
    if _holds(layer, keras.layers.AugMix):
        raise DataError(
            "Expected layers that vary examples alike for the same seed. Received: AugMix, of "
            "which Keras draws a part without the seed; RandAugment is like it."
        )
    if not isinstance(layer, _MIXING) and _holds(layer, _MIXING):
        raise DataError(
            "Expected MixUp and CutMix as layers of their own, which mix labels too. Received: "
            f"one within {type(layer).__name__}."
        )


def _no_augmentation(layer: keras.Layer) -> DataError:
    return DataError(
        "Expected layers that vary examples by random numbers, in training alone, and train "
        f"nothing, such as RandomFlip or GaussianNoise. Received: {type(layer).__name__}."
    )


def _holds(layer: keras.Layer, kinds: Any) -> bool:
    return any(isinstance(part, kinds) for part in keras_internals.all_layers(layer))


def _copied(layer: keras.Layer) -> keras.Layer:
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:  # whatever a layer raises
        raise DataError(
            "Expected layers that come back from their configuration. Received: "
            f"{type(layer).__name__}, which says: {_line(error)}"
        ) from error


def _in_words(layer: keras.Layer) -> str:
    """Return a layer's class with the options that are not at their defaults."""
    parameters = inspect.signature(type(layer)).parameters
    try:
        config = layer.get_config()
    except NotImplementedError:
        config = {}
    said = [
        f"{name}={value!r}"
        for name, value in config.items()
        if name in parameters and name not in ("name", "data_format", "dtype")
        if value is not None and value != parameters[name].default
    ]
    return f"{type(layer).__name__}({', '.join(said)})" if said else type(layer).__name__


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
