"""The hypermodel of a cut search: the features of every cut are there, a trial builds a head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import keras_tuner
import numpy as np

from reusekit.features import feed
from reusekit.search.space import CUT, SearchSpace
from reusekit.training.fit import Fit, fit_classifier
from reusekit.training.heads import classifier


@dataclass(frozen=True)
class TrialData:
    """What trials are trained and compared on: pooled features of every cut, with labels.

    Attributes:
        train: Features by cut, each of shape (examples, channels).
        train_labels: Shape (examples,).
        validation: The same for the validation examples.
        validation_labels: Shape (validation examples,).
        classes: The number of classes.
    """

    train: Mapping[str, np.ndarray]
    train_labels: np.ndarray
    validation: Mapping[str, np.ndarray]
    validation_labels: np.ndarray
    classes: int


class CutHyperModel(keras_tuner.HyperModel):
    """Builds and trains the head that a trial asks for, on the features of the cut it asks for.

    The backbone ran before the search and takes no part in it, so building is cheap. Works with any
    of keras-tuner's tuners; the objective is `val_accuracy` or `val_loss`.

    Args:
        data: The features of every cut in the space.
        space: What trials may vary.
        epochs: At most that many passes over the training examples a trial.
        patience: Stop a trial after that many epochs without a lower validation loss.
        batch_size: Examples a step.
        seed: Decides initial weights, dropout and the order of the batches, alike in every trial.

    Example:
        >>> import numpy as np
        >>> features = {"shallow": np.zeros((8, 4)), "deep": np.ones((8, 6))}
        >>> labels = np.arange(8) % 2
        >>> data = TrialData(features, labels, features, labels, classes=2)
        >>> hypermodel = CutHyperModel(data, SearchSpace(cuts=["shallow", "deep"]))
        >>> hp = keras_tuner.HyperParameters()
        >>> hypermodel.build(hp).input_shape
        (None, 4)
    """

    def __init__(
        self,
        data: TrialData,
        space: SearchSpace,
        epochs: int = 60,
        patience: int = 10,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__(name="cut_search")
        self.data, self.space = data, space
        self.epochs, self.patience, self.batch_size, self.seed = epochs, patience, batch_size, seed

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The untrained head of a trial, on the pooled features of its cut."""
        values = self.space.sample(hp)
        keras.utils.set_random_seed(self.seed)
        features = self.data.train[values[CUT]]
        head = classifier(
            self.data.classes,
            units=values["units"],
            dropout=values["dropout"],
            standardize=features,
        )
        return head.build(features.shape[1:])

    def train(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        epochs: int | None = None,
        initial_epoch: int = 0,
    ) -> Fit:
        """Train a built head and leave it at its best epoch.

        Args:
            hp: The trial's hyperparameters.
            model: The head that `build` made for them.
            callbacks: Keras callbacks that watch.
            epochs: The epoch to end at, where a tuner sets it; else the hypermodel's own.
            initial_epoch: The epoch to begin at, where a tuner goes on with a trial.
        """
        cut = hp.get(CUT)
        return fit_classifier(
            model,
            feed(self.data.train[cut], self.data.train_labels, self.batch_size, self.seed),
            feed(self.data.validation[cut], self.data.validation_labels, 256),
            learning_rate=hp.get("learning_rate"),
            epochs=epochs or self.epochs,
            initial_epoch=initial_epoch,
            patience=self.patience,
            callbacks=callbacks or (),
        )

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Train as keras-tuner's own tuners ask for it; returns the metrics of the best epoch."""
        fit = self.train(
            hp,
            model,
            kwargs.get("callbacks"),
            epochs=kwargs.get("epochs"),
            initial_epoch=kwargs.get("initial_epoch", 0),
        )
        return fit.metrics
