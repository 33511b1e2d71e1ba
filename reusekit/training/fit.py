"""The training of a model, which stops early and keeps its best epoch."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal
from zipfile import BadZipFile

import keras
import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import checked
from reusekit.errors import ConfigError, TrainingError, nearest

MONITORED = "val_loss"


@dataclass(frozen=True)
class Monitor:
    """The metric that decides which epoch is the best.

    Attributes:
        name: The metric, as Keras reports it after each epoch.
        maximize: Whether more of it is better.
    """

    name: str = MONITORED
    maximize: bool = False


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


class Resumption(keras.callbacks.Callback):
    """Keeps a training in a file after each epoch, so that the same one goes on there after a kill.

    Beside weights, the optimizer and the states of random numbers it has the history and the best
    epoch so far, which Keras's `BackupAndRestore` does not keep. The file goes when training ends.

    Args:
        file: An `.npz` file; its folder is made if it is not there.

    Attributes:
        history: Each metric's value by epoch, so far.
        epochs: How many of them an earlier process trained.
        ended: Whether that had stopped the training early before it was killed.
    """

    def __init__(self, file: str | os.PathLike) -> None:
        super().__init__()
        self.file = Path(file)
        self.history: dict[str, list[float]] = {}
        self.epochs, self.ended = 0, False
        self._stopping: Stopping | None = None
        self._kept: dict[str, np.ndarray] = {}

    def read(self, stopping: Stopping) -> int:
        """Read what is kept, if anything is; return the number of epochs that were trained."""
        self._stopping, self.history, self._kept = stopping, {}, {}
        try:
            with np.load(self.file) as kept:
                self._kept = dict(kept)
                self.history = json.loads(str(self._kept["history"]))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # damaged, and of no use
            self._kept = {}
        self.ended = bool(self._kept.get("ended", False))
        self.epochs = max(map(len, self.history.values()), default=0)
        return self.epochs

    def on_train_begin(self, logs: Any = None) -> None:
        """Bring everything back to where the training was."""
        if not self._kept:
            return
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        for number, variable in enumerate(self._variables()):
            variable.assign(self._kept[f"variable {number}"])
        stopping: Any = self._stopping
        for name in ("best", "wait", "best_epoch"):
            value = self._kept[name]
            setattr(stopping, name, None if np.isnan(value) else value.item())
        best = [self._kept[name] for name in self._kept if name.startswith("best weight")]
        stopping.best_weights = best or None
        self._kept = {}

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Write everything down, beside and renamed, so that no kill leaves half of a file."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        stopping: Any = self._stopping
        kept: dict[str, Any] = {"ended": self.model.stop_training} | {
            f"variable {number}": keras.ops.convert_to_numpy(variable)
            for number, variable in enumerate(self._variables())
        }
        for name in ("best", "wait", "best_epoch"):
            value = getattr(stopping, name)
            kept[name] = np.nan if value is None else value
        for number, weight in enumerate(stopping.best_weights or ()):
            kept[f"best weight {number}"] = weight
        self.file.parent.mkdir(parents=True, exist_ok=True)
        beside = self.file.with_suffix(".part")
        with beside.open("wb") as file:
            np.savez(file, history=json.dumps(self.history), **kept)
        beside.replace(self.file)

    def on_train_end(self, logs: Any = None) -> None:
        """Remove the file, and its folder where nothing else is in it."""
        self.file.unlink(missing_ok=True)
        with suppress(OSError):
            self.file.parent.rmdir()

    def _variables(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.model.optimizer.variables]


def make_variables(model: keras.Model, batch: tuple[Any, ...]) -> None:
    """Make the variables of a compiled model's metrics and optimizer, given (inputs, labels).

    Made while a step is compiled, as Keras does, they have it traced twice on TensorFlow.
    """
    inputs, labels, weights = (*batch, None)[:3]
    told = {"x": inputs, "y": labels, "y_pred": model(inputs, training=False)}
    model.compute_loss(**told, sample_weight=weights, training=False)
    model.compute_metrics(**told, sample_weight=weights)
    model.reset_metrics()
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


@checked(TrainingError)
def fit_model(
    model: keras.Model,
    train: Any,
    validation: Any,
    *,
    epochs: PositiveInt,
    patience: NonNegativeInt,
    monitor: Monitor = Monitor(),
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Fit:
    """Train a compiled model and leave it at its best epoch.

    Args:
        model: A compiled model whose optimizer was not used before.
        train: Batches of (inputs, labels), freshly shuffled at each pass: a `tf.data.Dataset` or
            what else Keras takes. (Plain arrays would do, but Keras then spends a tenth of a second
            an epoch on setting up its own pipeline.)
        validation: Batches in a fixed order; they decide which epoch is the best.
        epochs: At most that many passes.
        patience: Stop after that many epochs without a better one.
        monitor: The metric by which an epoch is better.
        callbacks: Keras callbacks that watch the training. With a `Resumption` among them it goes
            on where the same training was killed.

    Returns:
        The history, epoch by epoch.
    """
    stopping = Stopping(monitor.name, patience, "max" if monitor.maximize else "min")
    resumption = next((one for one in callbacks if isinstance(one, Resumption)), None)
    begun = 0 if resumption is None else resumption.read(stopping)
    for _ in range(begun):
        next(iter(train))  # so that each epoch has the pass that it would have had
    start = perf_counter()
    # Last of all: another callback may build the optimizer for more than is trainable now.
    making = keras.callbacks.LambdaCallback(
        on_train_begin=lambda _: make_variables(model, next(iter(validation)))
    )
    history = model.fit(
        train,
        validation_data=validation,
        epochs=epochs,
        initial_epoch=epochs if resumption is not None and resumption.ended else begun,
        shuffle=False,  # the batches come shuffled
        callbacks=[stopping, *callbacks, making],
        verbose=0,
    ).history
    if resumption is not None:
        history = resumption.history
    best = best_epoch(history, monitor.name, monitor.maximize)
    return Fit(history, best, perf_counter() - start)


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
                f"Expected the {what} to be finite. Received: one that was never finite in "
                f"{len(values)} epochs. Choose a lower learning rate."
            )
    return (max if maximize else min)(finite, key=values.__getitem__)
