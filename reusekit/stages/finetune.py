"""The fine-tuning stage: a head on the frozen bottom first, then the top of the bottom with it."""

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import mlflow
import pandas as pd

from reusekit.backbones import Backbone
from reusekit.data import DataSplit
from reusekit.features import extract_features, feed
from reusekit.progress import EpochProgress
from reusekit.search import TrialData
from reusekit.settings import FineTuneSettings, HeadSettings
from reusekit.stages.cuts import candidate_cuts
from reusekit.stages.inputs import INFERENCE_BATCH, Splits
from reusekit.surgery import Split, clone, extract, split
from reusekit.tracking import EpochMetrics, step_run
from reusekit.training import Fit, attach, fit_classifier
from reusekit.training.heads import classifier


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
    kept: bool = True


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model.

    Attributes:
        whole: From raw input to class probabilities.
        parts: The same model in two, at the cut; they share its weights.
        cut: Where the backbone was cut.
        unfrozen_from: The cut from which on the bottom was trained; None where all of it is as it
            was.
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
    *,
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
        head: The head and its training.
        settings: The second phase.
        data: Pooled features at the cut.
        splits: The data themselves.
        folder: Where features are kept meanwhile, and where `phases.csv` is written.
        seed: Decides initial weights and the order of batches.

    Returns:
        The model, its parts at the cut, and what each phase did.
    """
    keras.utils.set_random_seed(seed)
    trained_head, first = _train_head(cut, head, data, seed)
    bottom = clone(extract(backbone.model, cut, pooling="avg"), weights="copy")
    for layer in bottom.layers:
        layer.trainable = False
    whole = attach(bottom, trained_head)
    phases = [Phase("head", first)]
    unfreeze_from = _unfreeze_from(backbone, cut, settings)
    if unfreeze_from is not None:
        second = _train_top(whole, unfreeze_from, settings, splits, folder, seed, first)
        phases.append(second)
    pd.concat(
        pd.DataFrame(phase.fit.history).assign(phase=phase.name, kept=phase.kept)
        for phase in phases
    ).to_csv(folder / "phases.csv", index_label="epoch")
    if not phases[-1].kept:
        unfreeze_from = None
    return FineTuned(whole, split(whole, cut), cut, unfreeze_from, tuple(phases))


def _train_head(
    cut: str, settings: HeadSettings, data: TrialData, seed: int
) -> tuple[keras.Model, Fit]:
    """The first phase: a new head on the features of the frozen bottom."""
    features = data.train[cut]
    head = classifier(
        data.classes,
        units=settings.units,
        dropout=settings.dropout,
        standardize=features,
    ).build(features.shape[1:])
    with (
        step_run("phase head", "phase", settings.model_dump()),
        EpochProgress("Training the head", settings.epochs) as progress,
    ):
        fit = fit_classifier(
            head,
            feed(features, data.train_labels, settings.batch_size, seed),
            feed(data.validation[cut], data.validation_labels, INFERENCE_BATCH),
            learning_rate=settings.learning_rate,
            epochs=settings.epochs,
            patience=settings.patience,
            callbacks=[EpochMetrics(), progress],
        )
    return head, fit


def _unfreeze_from(backbone: Backbone, cut: str, settings: FineTuneSettings) -> str | None:
    """The cut from which on the bottom is trained, or None where no part of it is."""
    including = [at for at in (cut, settings.unfreeze_from) if at is not None]
    addresses = [point.at for point in candidate_cuts(backbone, including=including)]
    before = addresses[: addresses.index(cut)]
    if settings.unfreeze_from is None:
        opened = math.ceil(settings.share * len(before))
        return before[-opened] if opened else None
    return settings.unfreeze_from if settings.unfreeze_from in before else None


def _train_top(
    whole: keras.Model,
    unfreeze_from: str,
    settings: FineTuneSettings,
    splits: Splits,
    folder: Path,
    seed: int,
    first: Fit,
) -> Phase:
    """The second phase: train what lies behind a cut; undo it where it does not help."""
    top = split(whole, unfreeze_from).top
    flags = [layer.trainable for layer in top.layers]
    weights = top.get_weights()
    for layer in top.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    frozen = extract(whole, {"frozen": unfreeze_from})

    with (
        TemporaryDirectory(dir=folder) as scratch,
        step_run("phase finetune", "phase", settings.model_dump() | {"from": unfreeze_from}),
        EpochProgress("Fine-tuning the top", settings.epochs) as progress,
    ):

        def batches(part: DataSplit, name: str, seed: int | None = None):
            features, labels = extract_features(
                frozen,
                part.batches(INFERENCE_BATCH),
                part.size,
                folder=Path(scratch) / name,
                description=f"Frozen features of {name}",
            )
            return feed(features["frozen"], labels, settings.batch_size, seed)

        fit = fit_classifier(
            top,
            batches(splits.train, "train", seed),
            batches(splits.validation, "validation"),
            learning_rate=settings.learning_rate,
            epochs=settings.epochs,
            patience=settings.patience,
            callbacks=[EpochMetrics(first_step=len(first.history["loss"])), progress],
        )
        kept = fit.metrics["val_loss"] < first.metrics["val_loss"]
        mlflow.log_param("kept", kept)
    if not kept:
        top.set_weights(weights)
        for layer, flag in zip(top.layers, flags, strict=True):
            layer.trainable = flag
    return Phase("finetune", fit, kept)
