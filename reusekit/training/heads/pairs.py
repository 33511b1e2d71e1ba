"""A head on two inputs of one bottom, which tells whether they match."""

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import keras
from keras import layers

from reusekit.arguments import checked
from reusekit.errors import HeadError
from reusekit.graph import keras_internals, read
from reusekit.graph.padding_mask import AUTO
from reusekit.surgery import flatten, prepend
from reusekit.training.heads.dense import DenseHead
from reusekit.training.heads.head import Features, as_booleans, one_tensor, with_masks
from reusekit.training.heads.pooling import pool

Join = Literal["difference", "product", "concatenated", "cosine", "distance"]
_ONE_NUMBER = ("cosine", "distance")
_SIDES = ("left", "right")


@checked(HeadError)
@dataclass(frozen=True)
class Siamese(DenseHead):
    """A head that tells whether two inputs match; `rk.attach` calls the one bottom on both.

    The attached model takes `[left, right]`, each in the bottom's own input structure. The second
    call of the bottom's layers has addresses such as `conv1@1`.

    Args:
        join: The function of the two feature vectors: "difference" (absolute), "product",
            "concatenated", "cosine" (one number) or "distance" (squared Euclidean, one number).
        logits: Whether to give a logit rather than the probability that the two match.
        pooling: As of `Classifier`, for each of the two, with one set of weights.
        units: Width of the ReLU layer on what was joined, or widths of several; 0 for none.
        dropout: Share that is dropped while training.
        normalization: "batch", "layer" or None.
        standardize: Pooled features (examples, channels) whose mean and variance are removed from
            each of the two.
        name: The name of the head; its layers' names begin with it.

    Raises:
        HeadError: An unknown way to join, hidden layers on one number, or what `Classifier` would
            refuse.

    Example:
        >>> import reusekit as rk
        >>> bottom = rk.load_backbone("reusekit/glyphnet", weights=None).model
        >>> head = rk.heads.Siamese(join="cosine")
        >>> model = rk.attach(bottom, head)
        >>> model.input_shape, model.output_shape
        ([(None, 32, 32, 1), (None, 32, 32, 1)], (None, 1))
        >>> rk.count_params(model).total - rk.count_params(bottom).total
        2
    """

    join: Join = "difference"
    _: KW_ONLY
    logits: bool = False

    def __post_init__(self) -> None:
        """Check that nothing comes behind a single number."""
        if self.join in _ONE_NUMBER and (any(self._widths()) or self.dropout or self.normalization):
            raise HeadError(
                f"Expected no hidden layers, dropout or normalization where join={self.join!r} "
                f"gives one number. Received: units={self.units!r}, dropout={self.dropout!r}, "
                f"normalization={self.normalization!r}."
            )

    @property
    def compile_args(self) -> dict[str, Any]:
        """Binary cross-entropy and accuracy; the label is 1 where the two match."""
        return {
            "loss": keras.losses.BinaryCrossentropy(from_logits=self.logits),
            "metrics": [
                keras.metrics.BinaryAccuracy("accuracy", threshold=0.0 if self.logits else 0.5)
            ],
        }

    @checked(HeadError)
    def connect(self, features: Features) -> keras.KerasTensor:
        """Call the head's layers on a pair of features, [left, right]; see `Head.connect`."""
        if not isinstance(features, list | tuple) or len(features) != 2:
            raise HeadError(f"Expected a pair of features, [left, right]. Received: {features!r}.")
        left, right = features
        # Both sides go through one model, so that what it learns is shared.
        x = keras.Input(batch_shape=left.shape, dtype=left.dtype)
        masks: list[Any] = [keras_internals.mask_of(each) for each in features]
        inputs, sides = x, [left, right]
        if None not in masks:
            mask = keras.Input(batch_shape=masks[0].shape, dtype=masks[0].dtype)
            keras_internals.attach_mask(x, mask)
            inputs, sides = [x, mask], [[left, masks[0]], [right, masks[1]]]
        side = keras.Model(inputs, self._standardized(pool(x, self.pooling, self.name)))
        side.supports_masking = True  # it takes its mask as an input
        return self._output(self._hidden(self._joined([side(each) for each in sides])))

    @checked(HeadError)
    def build_like(self, features: Features) -> keras.Model:
        """Make the head as a model of two inputs, each like the features."""
        like = one_tensor(features, "siamese")
        inputs = [
            keras.Input(batch_shape=like.shape, dtype=like.dtype, name=f"{self.name}_{side}")
            for side in _SIDES
        ]
        mask, fed = keras_internals.mask_of(like), inputs
        if mask is not None:
            masks = [
                keras.Input(batch_shape=mask.shape, dtype=mask.dtype, name=f"{self.name}_{s}_mask")
                for s in _SIDES
            ]
            for each, its_mask in zip(inputs, masks, strict=True):
                keras_internals.attach_mask(each, as_booleans(its_mask, self.name))
            fed = [inputs, masks]
        return flatten(keras.Model(fed, self.connect(inputs), name=self.name))

    @checked(HeadError)
    def attach_to(self, bottom: keras.Model, mask: Any = AUTO) -> keras.Model:
        """Return the bottom called on two inputs, with this head on both; `rk.attach` says more."""
        name = f"{bottom.name}_{self.name}"
        structure = read(bottom).input_structure
        bottom, features = with_masks(bottom, mask)
        head = self.build_like(features)
        sides = [
            keras.tree.map_structure(
                lambda x, side=side: keras.Input(
                    batch_shape=x.shape, dtype=x.dtype, name=f"{x.address}_{side}"
                ),
                structure,
            )
            for side in _SIDES
        ]
        made = [keras.tree.flatten(bottom(side)) for side in sides]
        both = keras.Model(sides, [each for pair in zip(*made, strict=True) for each in pair])
        return prepend(head, flatten(both), name=name)

    def _joined(self, vectors: list[keras.KerasTensor]) -> keras.KerasTensor:
        name = f"{self.name}_{self.join}"
        if self.join == "difference":
            high = layers.Maximum(name=f"{self.name}_maximum")(vectors)
            low = layers.Minimum(name=f"{self.name}_minimum")(vectors)
            return layers.Subtract(name=name)([high, low])
        if self.join == "distance":
            difference = layers.Subtract(name=f"{self.name}_difference")(vectors)
            return layers.Dot(axes=-1, name=name)([difference, difference])
        if self.join == "cosine":
            return layers.Dot(axes=-1, normalize=True, name=name)(vectors)
        kinds = {"product": layers.Multiply, "concatenated": layers.Concatenate}
        return kinds[self.join](name=name)(vectors)

    def _output(self, x: keras.KerasTensor) -> keras.KerasTensor:
        activation, what = (None, "logit") if self.logits else ("sigmoid", "probability")
        return layers.Dense(1, activation=activation, dtype="float32", name=f"{self.name}_{what}")(
            x
        )
