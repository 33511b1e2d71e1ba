"""The rivals of transfer: the same network from scratch, a linear model, and a constant."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import StandardScaler

from reusekit.data import DataSplit
from reusekit.data.task import joined
from reusekit.errors import ConfigError
from reusekit.features.source import AugmentedSource, FeatureSource
from reusekit.progress import EpochProgress
from reusekit.search.objective import with_metric
from reusekit.search.trial_data import ArrayFeatures
from reusekit.settings import BaselineSettings
from reusekit.stages.evaluation import Evaluation, evaluate, record, validated
from reusekit.stages.fine_tuning import FineTuned
from reusekit.stages.inputs import INFERENCE_BATCH, Splits
from reusekit.surgery import clone
from reusekit.tasks import repeated, rules_of
from reusekit.tracking import log_history, step_run
from reusekit.training import fit_model
from reusekit.training.fit import MONITORED, make_variables


@dataclass(frozen=True)
class Baseline:
    """A rival of the fine-tuned model, tuned on the same validation data.

    Attributes:
        name: What it is.
        choice: What was chosen for it, in words.
        validation: The measure of the task by which it was chosen.
        test: How good it is.
    """

    name: str
    choice: str
    validation: float
    test: Evaluation


def run_baselines(
    tuned: FineTuned, splits: Splits, settings: BaselineSettings, folder: Path, seed: int
) -> list[Baseline]:
    """Train and evaluate the baselines that the settings ask for.

    Args:
        tuned: The fine-tuned model, whose architecture is trained from scratch.
        splits: The same data.
        settings: Which baselines, and how they are tuned.
        folder: Where decoded images are kept meanwhile.
        seed: Decides initial weights and the order of batches.

    Returns:
        The baselines asked for.
    """
    baselines = []
    if settings.from_scratch:
        baselines.append(from_scratch(tuned, splits, settings, folder, seed))
    if settings.linear:
        baselines.append(linear_on_inputs(splits))
    if settings.constant:
        baselines.append(constant(splits))
    return baselines


def from_scratch(
    tuned: FineTuned, splits: Splits, settings: BaselineSettings, folder: Path, seed: int
) -> Baseline:
    """Train the same network from random weights, all of it, at each rate; keep the best.

    Training examples are augmented as those of the network that it is compared with. Each rate gets
    a nested run of the active MLflow run. Arguments as for `run_baselines`.

    Returns:
        The rate with the best measure on the validation split.
    """
    plain, best = rules_of(splits.train.task), None
    keras.utils.set_random_seed(seed)
    model = clone(tuned.whole, weights="fresh")
    for layer in model.layers:
        layer.trainable = True
    args = with_metric(tuned.head, MONITORED, plain, splits.train.mixes_labels)
    model.compile(keras.optimizers.Adam(), **args)
    with TemporaryDirectory(dir=folder) as scratch:
        train = _fed(splits.train, Path(scratch) / "train.npy", settings.batch_size, seed)
        train = train.repeat(settings.passes)
        validation = _fed(splits.validation, Path(scratch) / "validation.npy", INFERENCE_BATCH)
        make_variables(model, next(iter(validation)))
        begun = _values(model)
        for rate in settings.learning_rates:
            # The same model each time, since its steps are traced once.
            _assign(model, begun)
            model.optimizer.learning_rate = rate
            with (
                step_run(f"from scratch {rate:g}", "phase", {"learning_rate": rate}),
                EpochProgress(f"From scratch at rate {rate:g}", settings.epochs) as progress,
            ):
                fit = fit_model(
                    model,
                    train,
                    validation,
                    epochs=settings.epochs,
                    patience=settings.patience,
                    callbacks=[progress],
                )
                log_history(fit.history)
            rules, value = validated(model, fit.metrics, splits.validation, plain)
            if best is None or rules.better(value, best[0]):
                choice = f"learning rate {rate:g}, epoch {fit.best_epoch + 1}"
                best = value, rules, _values(model), choice
    assert best is not None  # at least one rate is tried
    value, rules, values, choice = best
    _assign(model, values)
    test = evaluate(model, splits.test, rules, "test from scratch", outside=False)
    return Baseline("same network from scratch", choice, value, test)


def _values(model: keras.Model) -> list[np.ndarray]:
    """Return all that training changes: weights, states of random numbers, the optimizer's own."""
    return [np.array(variable) for variable in _changing(model)]


def _assign(model: keras.Model, values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(_changing(model), values, strict=True):
        variable.assign(value)


def _changing(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.optimizer.variables]


def linear_on_inputs(splits: Splits) -> Baseline:
    """Fit a linear model of the task on the raw input; its regularisation is tuned.

    Pixels are scaled to [0, 1], other numbers to mean 0 and variance 1. Texts become the weights
    (TF-IDF) of their words, or of parts of words where that suits the validation split better.

    Args:
        splits: The data, which must fit into memory.

    Returns:
        The regularisation with the best measure on the validation split.

    Raises:
        ConfigError: The inputs are neither pictures, numbers nor texts.
    """
    plain, best = rules_of(splits.train.task), None
    inputs, told = [], []
    for part in (splits.train, splits.validation, splits.test):
        given, labels, *weights = part.arrays()
        inputs.append(part.raw.arrays()[0] if splits.tokenizer and part.raw else given)
        told.append((plain.targets(joined(labels), part.split), *weights))
    (y, *weights), (vy, *_), (ty, *_) = told
    for name, (x, vx, tx) in _linear_features(inputs).items():
        outputs, chosen = plain.best_linear((x, y, weights[0] if weights else None), (vx, vy))
        guessed = outputs(vx)
        rules = plain.tuned(guessed, vy)
        value = rules.value(guessed, vy)
        if best is None or rules.better(value, best[0]):
            best = value, rules, outputs(tx), name, chosen
    assert best is not None  # at least one kind of features is tried
    value, rules, guessed, name, chosen = best
    return Baseline(
        name=f"{rules.linear} on {name}",
        choice=", ".join(f"{option} = {strength:.2g}" for option, strength in chosen.items()),
        validation=value,
        test=record(guessed, ty, splits.test, f"test {rules.linear}", rules, chosen),
    )


def constant(splits: Splits) -> Baseline:
    """Give every example the outputs that fit training best: a floor for models that look.

    Args:
        splits: The data, of which the inputs are not looked at.
    """
    plain = rules_of(splits.train.task)
    (y, vy, ty) = (
        plain.targets(_labels(split), split.split)
        for split in (splits.train, splits.validation, splits.test)
    )
    row = plain.constant(y)
    rules = plain.tuned(repeated(row, len(vy)), vy)
    return Baseline(
        name="constant",
        choice="the same for every example",
        validation=rules.value(repeated(row, len(vy)), vy),
        test=record(repeated(row, len(ty)), ty, splits.test, "test constant", rules),
    )


def _labels(split: DataSplit) -> np.ndarray:
    labels = split.examples.map(lambda inputs, label, *weight: label).batch(4096)
    return np.concatenate(list(map(joined, labels.as_numpy_iterator())))


def _fed(split: DataSplit, file: Path, batch_size: int, seed: int | None = None) -> Any:
    """Return batches of a split's examples, decoded into a file and augmented in training."""
    source: FeatureSource = ArrayFeatures(*split.arrays(file))
    if split.augmentation is not None:
        source = AugmentedSource(source, split.augmentation)
    return source.batches(batch_size, seed)


def _linear_features(parts: Sequence[Any]) -> dict[str, list[Any]]:
    """Return features for a linear model, by their kind, of the inputs of each part."""
    inputs = [keras.tree.flatten(part) for part in parts]
    if all(one.dtype == object for one in inputs[0]):
        train, *others = ([b" ".join(row) for row in zip(*part, strict=True)] for part in inputs)
        kinds = {
            "words": TfidfVectorizer(sublinear_tf=True),
            "parts of words": TfidfVectorizer(
                sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5)
            ),
        }
        return {
            name: [kind.fit_transform(train), *map(kind.transform, others)]
            for name, kind in kinds.items()
        }
    if len(inputs[0]) != 1 or inputs[0][0].dtype.kind not in "fiu":
        received = ", ".join(f"{one.dtype} of shape {one.shape[1:]}" for one in inputs[0])
        raise ConfigError(
            "Expected pictures, numbers or texts for a linear model on the raw input "
            f"(baselines.linear). Received: {received}."
        )
    flat = [part.reshape(len(part), -1) for (part,) in inputs]
    if inputs[0][0].ndim == 4:
        return {"pixels": [part / 255.0 for part in flat]}
    scaler = StandardScaler().fit(flat[0])
    return {"numbers": [scaler.transform(part) for part in flat]}
