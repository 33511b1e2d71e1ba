"""The selection of examples, and their treatment on the way into a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf
from pydantic import Field, PositiveInt

from reusekit.arguments import Seed, Settings, checked
from reusekit.data.task import Kind
from reusekit.errors import DataError

Resize = Literal["stretch", "crop", "pad"]

_GREY_LEVELS = {tf.uint8: 255, tf.uint16: 65535}


def treatment_for(shape: Sequence[int | None]) -> dict[str, Any]:
    """Return the settings of a treatment that the shape of a model's input decides.

    Example:
        >>> treatment_for((32, 32, 1))
        {'image_size': (32, 32), 'channels': 1}
    """
    if len(shape) == 3:
        return {"image_size": tuple(shape[:2]), "channels": shape[2]}
    return {"length": shape[0]} if len(shape) in (1, 2) else {}


class Treatment(Settings):
    """The selection of examples, and their treatment on the way into a model.

    Example:
        >>> Treatment(image_size=(32, 32)).resize
        'stretch'
    """

    image_size: tuple[PositiveInt, PositiveInt] | None = Field(
        None, description="Height and width of pictures; null leaves them as they are."
    )
    channels: Literal[1, 3] | None = Field(
        None,
        description="1 or 3, converting between grey and colour; null leaves grey and colour as "
        "they are. Transparent pictures are laid on white.",
    )
    resize: Resize = Field("stretch", description="Treatment of pictures of another aspect ratio.")
    length: PositiveInt | None = Field(
        None,
        description="Steps of series, or samples of sounds, whose length differs: shorter ones are "
        "filled up with zeros, longer ones lose their end; null leaves them. Of texts, the tokens "
        "that `rk.CutSearch` makes of each.",
    )
    examples_per_class: PositiveInt | None = Field(
        None, description="Keep that many examples of each class, drawn by the seed; null: all."
    )
    seed: Seed = Field(0, description="Decides which examples are kept.")
    task: Kind | Mapping[str, Kind] | None = Field(
        None,
        description="Task that the labels are taken for, of several tasks by their names; null "
        "infers it from them.",
    )
    skip_unreadable: bool = Field(
        False, description="Leave out files that cannot be read, which are named; else refuse them."
    )

    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide the numbers that come out, as fingerprints have them.

        Of later settings only those that were chosen, so that features and versions of before keep
        their fingerprints.
        """
        task = dict(self.task) if isinstance(self.task, Mapping) else self.task
        later = {"task": task, "length": self.length}
        return {
            "image_size": self.image_size and list(self.image_size),
            "channels": self.channels,
            "resize": self.resize if self.image_size else "stretch",
            "examples_per_class": self.examples_per_class,
            "seed": self.seed if self.examples_per_class else 0,
            **{name: value for name, value in later.items() if value},
        }

    def of_inputs(self) -> dict[str, Any]:
        """Return the settings that decide what becomes of an input, whatever others there are."""
        chosen = ("examples_per_class", "seed", "task")
        return {name: v for name, v in self.decisive().items() if name not in chosen}

    @checked(DataError)
    def of(self, spec: tf.TensorSpec | Mapping[str, tf.TensorSpec]) -> Callable[[Any], Any]:
        """Return the function that turns stored inputs into what a model is fed.

        Args:
            spec: Shape and dtype of a stored input, or a dictionary of them. Pictures have three
                axes.

        Returns:
            A function for `tf.data.Dataset.map`. Pictures come out as float32 in [0, 255], whether
            8 or 16 bits are stored; inputs that are no pictures come out as they are.

        Raises:
            DataError: Resizing or converting where there is no picture, or a picture whose range or
                channels are unknown.
        """
        parts = tf.nest.flatten(spec)
        if (self.image_size or self.channels) and all(part.shape.rank != 3 for part in parts):
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise DataError(
                "Expected images of shape (height, width, channels), for image_size and channels. "
                f"Received: inputs of shape {shapes}."
            )
        treats = tf.nest.map_structure(self._of_one, spec)
        return lambda inputs: tf.nest.map_structure(lambda treat, x: treat(x), treats, inputs)

    def resizing(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return the function that brings a float32 picture to the size."""
        if self.image_size is None:
            return tf.identity
        return keras.layers.Resizing(
            *self.image_size,
            antialias=True,  # else fine detail turns into noise where images shrink
            crop_to_aspect_ratio=self.resize == "crop",
            pad_to_aspect_ratio=self.resize == "pad",
            data_format="channels_last",  # whatever the user's Keras prefers
            dtype="float32",  # whatever precision models use
        )

    @checked(DataError)
    def shortens(self, spec: tf.TypeSpec) -> bool:
        """Return whether stored inputs are brought to the length: open series, and texts as tokens.

        Args:
            spec: Shape and dtype of one.

        Example:
            >>> Treatment(length=4).shortens(tf.TensorSpec((None, 2)))
            True
        """
        series = spec.shape.rank in (1, 2) and spec.shape[0] is None
        return self.length is not None and (series or spec.dtype == tf.string)

    @checked(DataError)
    def fitting(self, spec: tf.TensorSpec) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return the function that brings a series to the length, where its own is open.

        Args:
            spec: Shape and dtype of the series, whose first axis are its steps.
        """
        length = self.length
        if spec.dtype == tf.string or not self.shortens(spec):
            return tf.identity

        def fit(series: tf.Tensor) -> tf.Tensor:
            series = series[:length]
            none = [[0, 0]] * (spec.shape.rank - 1)
            filled = tf.pad(series, [[0, length - tf.shape(series)[0]], *none])
            return tf.ensure_shape(filled, (length, *spec.shape[1:]))

        return fit

    def _of_one(self, spec: tf.TensorSpec) -> Callable[[tf.Tensor], tf.Tensor]:
        if spec.shape.rank in (1, 2):
            return self.fitting(spec)
        if spec.shape.rank != 3:
            return tf.identity
        if spec.dtype not in _GREY_LEVELS or spec.shape[-1] not in (1, 3, 4):
            raise DataError(
                "Expected images of 8 or 16 bits with 1 (grey), 3 (colour) or 4 (with alpha) "
                f"channels. Received: {spec.dtype.name} images of shape {tuple(spec.shape)}."
            )
        levels, transparent = _GREY_LEVELS[spec.dtype], spec.shape[-1] == 4
        opaque = spec.shape[-1] - transparent
        converters: dict[tuple[int, int | None], Any] = {
            (1, 3): tf.image.grayscale_to_rgb,
            (3, 1): tf.image.rgb_to_grayscale,
        }
        convert = converters.get((opaque, self.channels), tf.identity)
        resizing = self.resizing()

        def treat(image: tf.Tensor) -> tf.Tensor:
            image = tf.cast(image, tf.float32)
            if levels != 255:
                image *= 255 / levels
            if transparent:
                alpha = image[..., opaque:] / 255
                image = image[..., :opaque] * alpha + 255 * (1 - alpha)
            return resizing(convert(image))

        return treat
