"""One linear classifier on the features of several cuts."""

from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Annotated, Any

import keras
import numpy as np
from keras import layers, ops
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from reusekit.arguments import checked
from reusekit.errors import HeadError
from reusekit.graph import keras_internals
from reusekit.training.heads.dense import Classifier
from reusekit.training.heads.head import Classes, Features, Head
from reusekit.training.heads.pooling import Pooling, pool


@checked(HeadError)
@dataclass(frozen=True)
class Multitap(Head):
    """A linear classifier on the features of several cuts at once, as `rk.extract` gives them.

    Each cut's features are pooled, brought to mean 0 and variance 1 in each example, and put side
    by side. What the last layer of a backbone has lost may still be there at an earlier one;
    `select` then keeps the features that matter. After Head2Toe (Evci et al., ICML 2022).

    Args:
        classes: How many classes to tell apart. Labels are their numbers, from 0.
        logits: Whether to give logits rather than probabilities; the loss then takes them.
        pooling: As of `classifier`, for each cut. "flatten" has most features, for `select`.
        kept: The places, in the features side by side, of those to use; None uses all. `select`
            finds them.
        name: The name of the head; its layers' names begin with it.

    Raises:
        HeadError: Fewer than two classes, an unknown pooling, or places that are not there.

    Example:
        >>> import reusekit as rk
        >>> backbone = rk.load_backbone("reusekit/glyphnet", weights=None).model
        >>> taps = rk.extract(backbone, ["block2_out", "block4_out", "block7_out"])
        >>> model = rk.attach(taps, rk.heads.Multitap(classes=10))
        >>> model.get_layer("head_features").output.shape
        (None, 144)
        >>> model.output_shape
        (None, 10)
    """

    classes: Classes
    _: KW_ONLY
    logits: bool = False
    pooling: Pooling = "avg"
    kept: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the places to keep, which may be an array."""
        if self.kept is not None and not _are_places(self.kept):
            raise HeadError(
                "Expected different places from 0 to keep, as a list of whole numbers, or None. "
                f"Received: {self.kept!r}."
            )

    @property
    def compile_args(self) -> dict[str, Any]:
        """Those of a classifier."""
        return Classifier(self.classes, logits=self.logits).compile_args

    @checked(HeadError)
    def connect(self, features: Features) -> keras.KerasTensor:
        """Call the head's layers on the features of one or several cuts; see `Head.connect`."""
        joined = self._joined(features)
        if self.kept is not None:
            if max(self.kept) >= joined.shape[-1]:
                raise HeadError(
                    f"Expected to keep some of the {joined.shape[-1]} features. Received place "
                    f"{max(self.kept)}: they were selected on other cuts, or pooled otherwise."
                )
            places = [int(place) for place in self.kept]
            joined = keras_internals.take(joined, places, axis=-1, name=f"{self.name}_kept")
        return Classifier(self.classes, logits=self.logits, name=self.name).connect(joined)

    @checked(HeadError)
    def select(
        self,
        features: Any,
        labels: Any,
        *,
        fraction: Annotated[float, Field(gt=0, le=1)],
        penalty: NonNegativeFloat = 1e-2,
        epochs: PositiveInt = 20,
        batch_size: PositiveInt = 64,
        learning_rate: PositiveFloat = 1e-2,
    ) -> "Multitap":
        """Keep the features that matter most.

        A linear classifier is trained on all of them under a group lasso, which presses all of a
        feature's weights to zero together; a feature matters as much as the norm of its weights.
        The result is a new head, with weights of its own, to be trained without the penalty.

        Args:
            features: What the cuts give for the training examples, in their own structure, as
                `rk.extract(model, [...]).predict(x)` does.
            labels: The numbers of the classes, shape (examples,).
            fraction: The share of the features to keep, above 0; one feature at least is kept.
            penalty: How much the norms of the weights count beside the loss.
            epochs: How often to pass over the examples.
            batch_size: Examples a step.
            learning_rate: Adam's.

        Returns:
            This head with `kept` set, in ascending order.

        Raises:
            HeadError: A fraction that is none, labels that are not one class for each example, a
                negative penalty, no epochs or no batch.

        Example:
            >>> labels = np.arange(64) % 2
            >>> shallow, deep = np.random.default_rng(0).normal(size=(2, 64, 6))
            >>> deep[:, 3] += 5 * labels
            >>> head = Multitap(classes=2)
            >>> head.select([shallow, deep], labels, fraction=0.1, batch_size=8).kept
            (9,)
        """
        try:
            sizes = {len(np.asarray(each)) for each in keras.tree.flatten(features)}
            given = np.asarray(labels)
        except (TypeError, ValueError):
            sizes, given = set(), None
        if len(sizes) != 1:
            raise HeadError(
                "Expected arrays of features, (examples, ...) each, and labels of the same "
                f"examples. Received: features of {' and '.join(map(str, sizes)) or 'no'} examples."
            )
        self._check_labels(given, *sizes)  # type: ignore[arg-type]
        shapes = keras.tree.map_structure(lambda x: (None, *np.shape(x)[1:]), features)
        inputs = self._inputs(keras.tree.map_shape_structure(keras.KerasTensor, shapes))
        joined = keras.Model(inputs, self._joined(inputs)).predict(features, verbose=0)
        linear = layers.Dense(
            int(self.classes),
            activation="softmax",
            dtype="float32",
            kernel_initializer="zeros",  # what never matters stays there
            kernel_regularizer=lambda kernel: penalty * ops.sum(_norms(kernel)),
        )
        model = keras.Sequential([keras.Input(joined.shape[1:]), linear])
        model.compile(
            keras.optimizers.Adam(float(learning_rate)), "sparse_categorical_crossentropy"
        )
        model.fit(joined, labels, epochs=epochs, batch_size=batch_size, verbose=0)
        relevance = ops.convert_to_numpy(_norms(linear.kernel))
        count = max(1, round(fraction * len(relevance)))
        kept = np.sort(np.argsort(-relevance, kind="stable")[:count])
        return replace(self, kept=tuple(kept.tolist()))

    def _check_labels(self, labels: np.ndarray, examples: int) -> None:
        """Not every backend refuses a class that there is not; the loss is then no number."""
        found = f"shape {labels.shape}"
        if labels.shape == (examples,):
            if np.isin(labels, range(self.classes)).all():
                return
            found = f"labels from {labels.min()} to {labels.max()}"
        raise HeadError(
            f"Expected labels from 0 to {self.classes - 1}, shape ({examples},). Received: {found}."
        )

    def _joined(self, features: Any) -> keras.KerasTensor:
        """Return all features, pooled and normalized for each cut, side by side.

        Unit norm, as in the paper, would leave the features of a wide cut so small that training
        takes ten times as long.
        """
        taps = []
        for number, tap in enumerate(keras.tree.flatten(features)):
            name = f"{self.name}_tap_{number}"
            vector = pool(tap, self.pooling, name)
            normalization = layers.LayerNormalization(
                center=False, scale=False, name=f"{name}_normalization"
            )
            taps.append(normalization(vector))
        if len(taps) == 1:
            return taps[0]
        return layers.Concatenate(name=f"{self.name}_features")(taps)


def _are_places(kept: Any) -> bool:
    """Return whether these are places in features, at least one and none twice."""
    try:
        places = np.asarray(kept)
    except ValueError:  # a symbolic tensor
        return False
    return (
        places.ndim == 1
        and places.dtype.kind in "iu"
        and places.size == len(np.unique(places)) > 0
        and bool(places.min() >= 0)
    )


def _norms(kernel: Any) -> Any:
    """Return the norm of each feature's weights, kept off zero for a finite slope."""
    return ops.sqrt(ops.sum(ops.square(kernel), axis=-1) + 1e-12)
