"""The training of a classifier, which stops early and keeps its best epoch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import keras
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import checked
from reusekit.errors import ConfigError, TrainingError, nearest

MONITORED = "val_loss"


@dataclass(frozen=True)
class Fit:
    """The result of one call of `fit`.

    Attributes:
        history: Each metric's value by epoch.
        best_epoch: The epoch (from 0, in `history`) whose weights the model now holds.
        seconds: The time that it took.
    """

    history: dict[str, list[float]]
    best_epoch: int
    seconds: float

    @property
    def metrics(self) -> dict[str, float]:
        """Each metric at the best epoch."""
        return {name: values[self.best_epoch] for name, values in self.history.items()}


class Stopping(keras.callbacks.EarlyStopping):
    """Keras's early stopping that goes back to the best epoch; what is not finite is the worst.

    Keras finds nothing better than a NaN in the first epoch, and goes back to that.
    """

    def __init__(self, monitor: str, patience: int, mode: Literal["min", "max"]) -> None:
        super().__init__(monitor=monitor, patience=patience, mode=mode, restore_best_weights=True)

    def get_monitor_value(self, logs: dict[str, float] | None) -> float | None:
        """Return what an epoch reached, as `EarlyStopping` asks for it."""
        value = super().get_monitor_value(logs)
        if value is None or math.isfinite(value):
            return value
        return math.inf if self.mode == "min" else -math.inf


@checked(TrainingError)
def fit_classifier(
    model: keras.Model,
    train: Any,
    validation: Any,
    *,
    optimizer: keras.optimizers.Optimizer,
    epochs: PositiveInt,
    patience: NonNegativeInt,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Fit:
    """Train a model of class probabilities and leave it at its best epoch.

    Args:
        model: From inputs to probabilities, shape (batch, classes).
        train: Batches of (inputs, labels), freshly shuffled at each pass: a `tf.data.Dataset` or
            what else Keras takes. (Plain arrays would do, but Keras then spends a tenth of a second
            an epoch on setting up its own pipeline.)
        validation: Batches in a fixed order; their loss decides which epoch is the best.
        optimizer: A Keras optimizer, not used before.
        epochs: At most that many passes.
        patience: Stop after that many epochs without a lower validation loss.
        callbacks: Keras callbacks that watch the training.

    Returns:
        The history, epoch by epoch.
    """
    model.compile(
        optimizer=optimizer,
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    stopping = Stopping(MONITORED, patience, "min")
    start = perf_counter()
    history = model.fit(
        train,
        validation_data=validation,
        epochs=epochs,
        shuffle=False,  # the batches come shuffled
        callbacks=[stopping, *callbacks],
        verbose=0,
    ).history
    return Fit(history, best_epoch(history), perf_counter() - start)


def best_epoch(
    history: dict[str, list[float]], monitored: str = MONITORED, maximize: bool = False
) -> int:
    """Return the first epoch with the best value of a metric, which `Stopping` goes back to.

    Args:
        history: Each metric's value by epoch.
        monitored: The metric.
        maximize: Whether more of it is better.

    Raises:
        ConfigError: There is no such metric.
        TrainingError: The validation loss or the metric was never finite.

    Example:
        >>> best_epoch({"val_loss": [0.5, 0.2, float("nan"), 0.2]})
        1
    """
    if monitored not in history:
        raise ConfigError(
            f"Expected a metric that is reported after each epoch. Received: {monitored!r}. "
            f"{nearest(monitored, history)}"
        )
    for name in (MONITORED, monitored):
        values = history[name]
        finite = [epoch for epoch, value in enumerate(values) if math.isfinite(value)]
        if not finite:
            what = "validation loss" if name == MONITORED else name
            raise TrainingError(
                f"The {what} was never finite in {len(values)} epochs. Try a lower learning rate."
            )
    return (max if maximize else min)(finite, key=values.__getitem__)
