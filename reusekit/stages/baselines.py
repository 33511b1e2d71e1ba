"""The rivals of transfer: the same network from scratch, and a linear pixel model."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression

from reusekit.features import feed
from reusekit.progress import EpochProgress
from reusekit.settings import BaselineSettings
from reusekit.stages.evaluation import Evaluation, evaluate, record
from reusekit.stages.inputs import INFERENCE_BATCH, Splits
from reusekit.surgery import clone
from reusekit.tracking import log_history, step_run
from reusekit.training.fit import Fit, fit_classifier

_STRENGTHS = np.logspace(-3, 3, 7)  # inverse regularisation strengths tried for the linear model


@dataclass(frozen=True)
class Baseline:
    """A rival of the fine-tuned model, tuned on the same validation data.

    Attributes:
        name: What it is.
        choice: What was chosen for it, in words.
        validation_accuracy: By which it was chosen.
        test: How good it is.
    """

    name: str
    choice: str
    validation_accuracy: float
    test: Evaluation


def run_baselines(
    whole: keras.Model, splits: Splits, settings: BaselineSettings, folder: Path, seed: int
) -> list[Baseline]:
    """Train and evaluate the baselines that the settings ask for.

    Args:
        whole: The fine-tuned model, whose architecture is trained from scratch.
        splits: The same data.
        settings: Which baselines, and how they are tuned.
        folder: Where decoded images are kept meanwhile.
        seed: Decides initial weights and the order of batches.

    Returns:
        The baselines asked for.
    """
    baselines = []
    if settings.from_scratch:
        baselines.append(from_scratch(whole, splits, settings, folder, seed))
    if settings.pixels:
        baselines.append(linear_on_pixels(splits))
    return baselines


def from_scratch(
    whole: keras.Model, splits: Splits, settings: BaselineSettings, folder: Path, seed: int
) -> Baseline:
    """Train the same network from random weights, all of it, at each rate; keep the best.

    Each rate gets a nested run of the active MLflow run. Arguments as for `run_baselines`.

    Returns:
        The rate with the highest validation accuracy.
    """
    best: tuple[Fit, keras.Model, float] | None = None
    with TemporaryDirectory(dir=folder) as scratch:
        inputs, labels = splits.train.arrays(Path(scratch) / "train.npy")
        train = feed(inputs, labels, settings.batch_size, seed).repeat(settings.passes)
        held = splits.validation.arrays(Path(scratch) / "validation.npy")
        validation = feed(held[0], held[1], INFERENCE_BATCH)
        for rate in settings.learning_rates:
            keras.utils.set_random_seed(seed)
            model = clone(whole, weights="fresh")
            for layer in model.layers:
                layer.trainable = True
            with (
                step_run(f"from scratch {rate:g}", "phase", {"learning_rate": rate}),
                EpochProgress(f"From scratch at rate {rate:g}", settings.epochs) as progress,
            ):
                fit = fit_classifier(
                    model,
                    train,
                    validation,
                    optimizer=keras.optimizers.Adam(rate),
                    epochs=settings.epochs,
                    patience=settings.patience,
                    callbacks=[progress],
                )
                log_history(fit.history)
            if best is None or fit.metrics["val_accuracy"] > best[0].metrics["val_accuracy"]:
                best = fit, model, rate
    assert best is not None  # at least one rate is tried
    fit, model, rate = best
    return Baseline(
        name="same network from scratch",
        choice=f"learning rate {rate:g}, epoch {fit.best_epoch + 1}",
        validation_accuracy=fit.metrics["val_accuracy"],
        test=evaluate(model, splits.test, "test from scratch", outside=False),
    )


def linear_on_pixels(splits: Splits) -> Baseline:
    """Fit logistic regression on the pixels, scaled to [0, 1]; its regularisation is tuned.

    Args:
        splits: The data, which must fit into memory.

    Returns:
        The regularisation with the highest validation accuracy.
    """
    (x, y), (vx, vy), (tx, ty) = (
        _flat(split.arrays()) for split in (splits.train, splits.validation, splits.test)
    )
    models = [LogisticRegression(C=strength, max_iter=1000).fit(x, y) for strength in _STRENGTHS]
    accuracies = [model.score(vx, vy) for model in models]
    chosen = int(np.argmax(accuracies))
    probabilities = _over_all_classes(models[chosen], tx, splits.train.classes)
    return Baseline(
        name="logistic regression on pixels",
        choice=f"C = {_STRENGTHS[chosen]:.2g}",
        validation_accuracy=accuracies[chosen],
        test=record(
            probabilities, ty, splits.test, "test logistic regression", {"C": _STRENGTHS[chosen]}
        ),
    )


def _flat(arrays: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = arrays
    return inputs.reshape(len(inputs), -1) / 255.0, labels


def _over_all_classes(model, inputs: np.ndarray, classes: int) -> np.ndarray:
    """Return the model's probabilities with a column for each class, absent ones among them."""
    probabilities = np.zeros((len(inputs), classes))
    probabilities[:, model.classes_] = model.predict_proba(inputs)
    return probabilities
