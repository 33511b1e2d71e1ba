"""The fine-tuning stage: a head on the frozen bottom first, then the top of the bottom with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import mlflow

from reusekit.backbones import Backbone
from reusekit.features import extract_features, feed
from reusekit.graph import CutPoint
from reusekit.progress import EpochProgress
from reusekit.search import TrialData
from reusekit.settings import FineTuneSettings, HeadSettings
from reusekit.stages.inputs import Splits
from reusekit.surgery import Split, clone, extract, split
from reusekit.tracking import EpochMetrics, step_run
from reusekit.training.attach import attach
from reusekit.training.fit import Fit, fit_classifier
from reusekit.training.heads import classifier

_EXTRACTION_BATCH = 64
_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Phase:
    """One training phase.

    Attributes:
        name: `head` or `finetune`.
        fit: What happened in it.
        kept: Whether its weights are those of the result; a phase that made the validation loss no
            lower is undone.
    """

    name: str
    fit: Fit
    kept: bool


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model.

    Attributes:
        whole: From raw input to class probabilities.
        parts: The same model in two, at the cut; they share its weights.
        cut: Where the backbone was cut.
        unfrozen_from: The cut from which on the bottom was trained; None where it was all frozen.
        phases: What was trained, in order.
    """

    whole: keras.Model
    parts: Split
    cut: str
    unfrozen_from: str | None
    phases: tuple[Phase, ...]


def finetune(
    backbone: Backbone,
    cut: str,
    cuts: Sequence[CutPoint],
    head: HeadSettings,
    settings: FineTuneSettings,
    data: TrialData,
    splits: Splits,
    folder: Path,
    seed: int,
) -> FineTuned:
    """Train a head on a frozen bottom, then go on with the top of the bottom unfrozen.

    Each phase is a nested run of the active MLflow run, and the steps of the second go on where
    those of the first end. The frozen part of the bottom runs once over the data and stays in
    inference mode; BatchNormalization stays so in the unfrozen part, too. The backbone itself is
    left as it was: the result has its own copy of the weights.

    Args:
        backbone: What to cut.
        cut: Where to cut it.
        cuts: All candidate cuts, shallow to deep; the unfrozen part begins at one of them.
        head: The head and its training.
        settings: The second phase.
        data: Pooled features at the cut.
        splits: The data themselves.
        folder: Where features are kept meanwhile.
        seed: Decides initial weights and the order of batches.
    """
    unfreeze_from = _unfreeze_from(cut, cuts, settings)
    keras.utils.set_random_seed(seed)
    features = data.train[cut]
    trained_head = classifier(
        features.shape[1:],
        data.classes,
        units=head.units,
        dropout=head.dropout,
        standardize=features,
    )
    with (
        step_run("phase head", "phase", head.model_dump()),
        EpochProgress("Training the head", head.epochs) as progress,
    ):
        first = fit_classifier(
            trained_head,
            feed(features, data.train_labels, head.batch_size, seed),
            feed(data.validation[cut], data.validation_labels, _EVALUATION_BATCH),
            learning_rate=head.learning_rate,
            epochs=head.epochs,
            patience=head.patience,
            callbacks=[EpochMetrics(), progress],
        )
    bottom = clone(extract(backbone.model, cut, pooling="avg"), weights="copy")
    for layer in bottom.layers:
        layer.trainable = False
    whole = attach(bottom, trained_head)
    phases = [Phase("head", first, kept=True)]
    if unfreeze_from is not None:
        phases.append(
            _second_phase(whole, unfreeze_from, settings, data, splits, folder, seed, first)
        )
    return FineTuned(whole, split(whole, cut), cut, unfreeze_from, tuple(phases))


def _unfreeze_from(cut: str, cuts: Sequence[CutPoint], settings: FineTuneSettings) -> str | None:
    """The cut from which on the bottom is trained, or None where no part of it is."""
    addresses = [point.at for point in cuts]
    before = addresses[: addresses.index(cut)]
    if settings.unfreeze_from is None:
        opened = math.ceil(settings.share * len(before))
        return before[-opened] if opened else None
    return settings.unfreeze_from if settings.unfreeze_from in before else None


def _second_phase(
    whole: keras.Model,
    unfreeze_from: str,
    settings: FineTuneSettings,
    data: TrialData,
    splits: Splits,
    folder: Path,
    seed: int,
    first: Fit,
) -> Phase:
    """Train what lies behind a cut on what is computed before it; undo it if it does not help."""
    top = split(whole, unfreeze_from).top
    for layer in top.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    frozen = extract(whole, {"frozen": unfreeze_from})
    before = [keras.ops.convert_to_numpy(weight) for weight in top.weights]
    first_step = len(first.history["loss"])
    parameters = {**settings.model_dump(), "unfreeze_from": unfreeze_from}
    with (
        TemporaryDirectory(dir=folder) as scratch,
        step_run("phase finetune", "phase", parameters),
        EpochProgress("Fine-tuning the top", settings.epochs) as progress,
    ):
        features = {}
        for part in ("train", "validation"):
            (Path(scratch) / part).mkdir()
            features[part] = extract_features(
                frozen,
                getattr(splits, part).batches(_EXTRACTION_BATCH),
                getattr(splits, part).size,
                folder=Path(scratch) / part,
                description=f"Frozen features of {part}",
            )["frozen"]
        fit = fit_classifier(
            top,
            feed(features["train"], data.train_labels, settings.batch_size, seed),
            feed(features["validation"], data.validation_labels, settings.batch_size),
            learning_rate=settings.learning_rate,
            epochs=settings.epochs,
            patience=settings.patience,
            callbacks=[EpochMetrics(first_step), progress],
        )
        kept = fit.metrics["val_loss"] < first.metrics["val_loss"]
        mlflow.log_param("kept", kept)
    if not kept:
        top.set_weights(before)
    return Phase("finetune", fit, kept)
