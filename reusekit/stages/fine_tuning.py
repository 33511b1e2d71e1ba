"""The fine-tuning stage: from a head on a frozen bottom on, the top of the bottom with it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from reusekit.backbones import Backbone
from reusekit.digests import array_digest, digest
from reusekit.features import FeatureSource, FeatureStore
from reusekit.graph import cut_points, find_layers, keras_internals, read
from reusekit.planning import Costs, Trials
from reusekit.progress import EpochProgress, console
from reusekit.search.objective import monitor_of, with_metric
from reusekit.settings import FineTuneSettings, HeadSettings
from reusekit.sharing import count_params
from reusekit.stages.cuts import candidate_cuts
from reusekit.stages.evaluation import validated
from reusekit.stages.features import frozen_features
from reusekit.stages.inputs import INFERENCE_BATCH, Splits
from reusekit.stages.search import Searched
from reusekit.surgery import Split, clone, extract, split
from reusekit.tasks import TaskRules, rules_of
from reusekit.tracking import EpochMetrics, log_artifact, log_metrics, log_params, step_run
from reusekit.training import (
    Fit,
    GradualUnfreezing,
    Resumption,
    attach,
    fit_model,
    fold_standardization,
    freeze,
    layerwise_optimizer,
)
from reusekit.training.drawing import draw_cut
from reusekit.training.heads import Head

_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.RMSNormalization,
)


@dataclass(frozen=True)
class Phase:
    """One training phase.

    Attributes:
        name: `search` or `head`, and then `finetune`.
        fit: What happened in it.
        kept: Whether its weights are those of the result; a phase that made its objective no
            better is undone.
    """

    name: str
    fit: Fit
    kept: bool = True


@dataclass(frozen=True)
class Begun:
    """The start of fine-tuning: a whole model after its first phase.

    Attributes:
        whole: From raw input to the outputs of the head; its weights are its own.
        cut: Where the backbone was cut.
        phase: How it was trained.
        head: What was put on, whose loss and metrics train on.
        costs: The speeds of this machine, where they were measured for it.
        frozen_up_to: The cut before which nothing was trained; None where the head alone was.
    """

    whole: keras.Model
    cut: str
    phase: Phase
    head: Head
    costs: Costs | None = None
    frozen_up_to: str | None = None


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned model.

    Attributes:
        whole: From raw input to the outputs of the head.
        parts: The same model in two; they share its weights. They meet where training began, so
            that the bottom is what the backbone has up to there, and others have it, too.
        cut: Where the backbone was cut and the head attached.
        frozen_up_to: The cut before which nothing was trained; `cut` where the head alone was.
        phases: What was trained, in order.
        head: What was put on.
        rules: The rules of the task, with what was chosen on the validation split.
        validation: The measure of the task on that split.
    """

    whole: keras.Model
    parts: Split
    cut: str
    frozen_up_to: str
    phases: tuple[Phase, ...]
    head: Head
    rules: TaskRules
    validation: float

    @property
    def choice(self) -> str:
        """The choice, in words."""
        alone = self.frozen_up_to == self.cut
        trained = "" if alone else f", trained on from {self.frozen_up_to}"
        return f"cut {self.cut}{trained}"


def best_trial(searched: Searched) -> Begun:
    """Return the whole model of the best trial of a search, as it was trained there."""
    best, found = searched.result.best, searched.search.best_model(folded=False)
    plan = searched.search.plan_of(best.spec.backbone)
    assert best.fit is not None  # the best trial was trained to the end
    # Not compiled: a part of it is trained on, and its optimizer would be stored for nothing.
    whole = keras.Model(found.input, found.output, name=found.name)
    search = searched.search
    head = search.space.head(best.spec, search.hypermodel.rules)
    costs = plan.costs if plan else None
    phase = Phase("search", best.fit)
    return Begun(whole, best.cut, phase, head, costs, best.spec.frozen_up_to)


def check_phases(splits: Splits, *phases: HeadSettings | FineTuneSettings) -> None:
    """Refuse settings of phases that the task has not, before any work.

    Args:
        splits: The data.
        *phases: The phases of training.

    Raises:
        ConfigError: An objective is no metric of the task.
        HeadError: Labels are to be smoothed that cannot be.
    """
    rules = rules_of(splits.train.task)
    for phase in phases:
        monitor_of(phase.objective, rules.head(), rules)
        if isinstance(phase, HeadSettings):
            rules.weighted(phase.loss_weights)
        if isinstance(phase, FineTuneSettings) and phase.label_smoothing:
            rules.head().smoothed_loss(phase.label_smoothing)


def train_head(
    backbone: Backbone,
    cut: str,
    settings: HeadSettings,
    splits: Splits,
    store: FeatureStore,
    seed: int,
) -> Begun:
    """Train a new head on the frozen bottom, in a nested run of the active MLflow run.

    Args:
        backbone: What to cut; it is left as it is.
        cut: Where to cut it.
        settings: The head and its training.
        splits: What to train and to validate on.
        store: Where the features at the cut are kept.
        seed: Decides initial weights and the order of batches.

    Raises:
        CacheError: The features are not finite, or cannot be stored.
        ConfigError: The objective is no metric of the task.
    """
    check_phases(splits, settings)
    training = Trials(cut, "avg", epochs=settings.epochs, batch_size=settings.batch_size)
    features = frozen_features(backbone.model, training, splits, store, seed)
    bottom = clone(extract(backbone.model, cut, pooling="avg"), weights="copy")
    for layer in bottom.layers:
        layer.trainable = False
    rules = rules_of(splits.train.task).fitted(features.train.labels)
    rules = rules.weighted(settings.loss_weights)
    keras.utils.set_random_seed(seed)
    head = rules.head(settings.units, settings.dropout, _in_memory(features.train))
    monitor = monitor_of(settings.objective, head, rules)
    top = head.build(bottom.output_shape[1:])
    top.compile(
        keras.optimizers.Adam(settings.learning_rate),
        **with_metric(head, settings.objective, rules, splits.train.mixes_labels),
    )
    with (
        step_run("phase head", "phase", settings.model_dump()),
        EpochProgress("Training the head", settings.epochs) as progress,
    ):
        fit = fit_model(
            top,
            features.train.batches(settings.batch_size, seed),
            features.validation.batches(INFERENCE_BATCH),
            epochs=settings.epochs,
            patience=settings.patience,
            monitor=monitor,
            callbacks=[EpochMetrics(), progress],
        )
    return Begun(attach(bottom, top), cut, Phase("head", fit), head, features.costs)


def _in_memory(source: FeatureSource) -> np.ndarray:
    """Pooled features of all examples, computed where they are not stored."""
    stored: Any = source.arrays()
    if stored is not None:
        return stored
    return np.concatenate([np.asarray(batch) for batch, *_ in source.batches(INFERENCE_BATCH)])


def finetune(
    begun: Begun,
    backbone: Backbone,
    settings: FineTuneSettings,
    splits: Splits,
    store: FeatureStore,
    folder: Path,
    seed: int,
) -> FineTuned:
    """Go on with the top of the bottom unfrozen, at a lower rate.

    The phase is a nested run of the active MLflow run, and its steps go on where those of the first
    phase end. The frozen part of the bottom runs once over the data and stays in inference mode;
    BatchNormalization stays so in the unfrozen part, too, unless the settings say otherwise. They
    also say whether rates fall towards the input, and whether it is unfrozen block by block. The
    phase is kept in a file after each epoch, beside the folder: killed, and asked for again with
    the same data and settings, it goes on there.

    Args:
        begun: The model after its first phase. It is trained on.
        backbone: What it was cut from.
        settings: The phase.
        splits: What to train and to validate on.
        store: Where the features are kept at which the unfrozen part begins.
        folder: Where `phases.csv` and `model.png`, a drawing of the model, are written.
        seed: Decides dropout and the order of batches.

    Returns:
        The model, its parts at the cut, and what each phase did.

    Raises:
        ConfigError: The objective is no metric of the task.
        HeadError: Labels are to be smoothed that cannot be.
    """
    keras.utils.set_random_seed(seed)
    phases = [begun.phase]
    frozen_up_to = _frozen_up_to(backbone, begun.cut, settings)
    if frozen_up_to != begun.cut:
        phases.append(_train_top(begun, frozen_up_to, settings, splits, store, folder, seed))
    pd.concat(
        pd.DataFrame(phase.fit.history).assign(phase=phase.name, kept=phase.kept)
        for phase in phases
    ).to_csv(folder / "phases.csv", index_label="epoch")
    whole = fold_standardization(begun.whole)
    title = f"{backbone.source} on {splits.train.name}"
    draw_cut(whole, begun.cut, title).savefig(folder / "model.png", dpi=120)
    log_artifact(folder / "model.png")
    since = begun.frozen_up_to or begun.cut
    frozen_up_to = _first(begun.whole, since, frozen_up_to if phases[-1].kept else since)
    last = [phase for phase in phases if phase.kept][-1]
    rules = rules_of(splits.train.task)
    # Of a phase in another precision, the whole in its own says something else.
    exact = last is begun.phase or settings.precision is None
    known = last.fit.metrics if exact else {}
    rules, validation = validated(whole, known, splits.validation, rules)
    return FineTuned(
        whole,
        split(whole, frozen_up_to),
        begun.cut,
        frozen_up_to,
        tuple(phases),
        begun.head,
        rules,
        validation,
    )


def _first(model: keras.Model, *addresses: str) -> str:
    """Return the one of some addresses that comes first in a model."""
    graph = read(model)
    return min(addresses, key=lambda at: graph.maker[graph.names[at]].index)


def _frozen_up_to(backbone: Backbone, cut: str, settings: FineTuneSettings) -> str:
    """Return the cut before which nothing is trained: one of the backbone's, or where it is cut."""
    including = [at for at in (cut, settings.frozen_up_to) if at is not None]
    addresses = [point.at for point in candidate_cuts(backbone, including=including)]
    before = addresses[: addresses.index(cut)]
    if settings.frozen_up_to is None:
        opened = math.ceil(settings.share * len(before))
        return before[-opened] if opened else cut
    if settings.frozen_up_to not in before:
        console.print(
            f"Nothing of the bottom is trained on: frozen_up_to {settings.frozen_up_to!r} does not "
            f"lie before the cut, {cut!r}."
        )
        return cut
    return settings.frozen_up_to


def _train_top(
    begun: Begun,
    frozen_up_to: str,
    settings: FineTuneSettings,
    splits: Splits,
    store: FeatureStore,
    folder: Path,
    seed: int,
) -> Phase:
    """Train what lies behind a cut; undo it where it does not help."""
    first, rules = begun.phase.fit, rules_of(splits.train.task)
    monitor = monitor_of(settings.objective, begun.head, rules)
    mixed = splits.train.mixes_labels
    compile_args = with_metric(begun.head, settings.objective, rules, mixed)
    if settings.label_smoothing:
        compile_args |= {"loss": begun.head.smoothed_loss(settings.label_smoothing)}
    top = split(begun.whole, frozen_up_to).top
    weights = top.get_weights()
    normalizations = find_layers(top, keras.layers.BatchNormalization)
    fixed = normalizations if settings.batch_norm == "frozen" and normalizations else None
    frozen = freeze(top, up_to=None, layers=fixed)
    training = Trials(
        frozen_up_to,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        parameters=count_params(top).trainable,
    )
    features = frozen_features(begun.whole, training, splits, store, seed, begun.costs)
    model = top if settings.precision is None else _in_precision(top, begun, settings.precision)
    steps = math.ceil(splits.train.size / settings.batch_size)
    model.compile(phase_optimizer(model, settings, steps), **compile_args)
    validation = features.validation.batches(INFERENCE_BATCH)
    said = [frozen_up_to, settings.model_dump(mode="json"), seed]
    said += [one.fingerprint for one in (splits.train, splits.validation)]
    if splits.train.augmentation is not None:
        said.append(splits.train.augmentation.digest)
    named = digest([*said, *map(array_digest, begun.whole.get_weights())])[:16]
    with (
        step_run(
            "phase finetune", "phase", settings.changed(frozen_up_to=frozen_up_to).model_dump()
        ),
        EpochProgress("Fine-tuning the top", settings.epochs) as progress,
    ):
        before = first.metrics.get(monitor.name)
        if before is None or settings.label_smoothing:  # of another loss
            measured = model.evaluate(validation, verbose=0, return_dict=True)
            before = measured[monitor.name.removeprefix("val_")]
        first_step = len(first.history["loss"])
        resumption = Resumption(folder.parent / "phases" / f"{named}.npz")
        callbacks = [EpochMetrics(first_step), progress, resumption]
        if settings.unfreeze_every:
            every = settings.unfreeze_every
            blocks = min(len(cut_points(model)), (settings.epochs - 1) // every)
            callbacks.append(GradualUnfreezing.evenly(model, blocks, every, layers=fixed))
        fit = fit_model(
            model,
            features.train.batches(settings.batch_size, seed),
            validation,
            epochs=settings.epochs,
            patience=settings.patience,
            monitor=monitor,
            callbacks=callbacks,
        )
        for epoch in range(resumption.epochs):  # of an earlier process, whose run has been ended
            told = {name: values[epoch] for name, values in fit.history.items()}
            log_metrics(told, first_step + epoch)
        reached = fit.metrics[monitor.name]
        kept = reached > before if monitor.maximize else reached < before
        log_params({"kept": kept})
    if kept and model is not top:
        top.set_weights(model.get_weights())
    if not kept:
        top.set_weights(weights)
        frozen.undo(top)
    return Phase("finetune", fit, kept)


def _in_precision(top: keras.Model, begun: Begun, precision: str) -> keras.Model:
    """Return a copy of the unfrozen part that computes in a precision, but for its head.

    The head costs little, and numbers, or probabilities of many classes, would be rounded.
    """
    model = clone(top, dtype=precision)
    head = {layer.name for layer in split(begun.whole, begun.cut).top.layers}
    for own, copied in zip(top.layers, model.layers, strict=True):
        if own.name in head:
            copied.dtype_policy = own.dtype_policy
    return model


def _not_decayed(model: keras.Model) -> list[keras.Variable]:
    """Return biases, and scales and offsets of normalizations, of any shape."""
    layers = keras_internals.all_layers(model)
    kept = {id(getattr(layer, "bias", None)) for layer in layers}
    kept |= {
        id(one) for layer in layers if isinstance(layer, _NORMALIZATIONS) for one in layer.weights
    }
    return [one for one in model.trainable_variables if one.ndim < 2 or id(one) in kept]


def phase_optimizer(
    model: keras.Model, settings: FineTuneSettings, steps: int
) -> keras.optimizers.Optimizer:
    """Return the optimizer of a phase of fine-tuning.

    Args:
        model: What it trains.
        settings: The phase.
        steps: Of an epoch.
    """
    rate: Any = settings.learning_rate
    if settings.warmup or settings.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if settings.warmup else rate,
            steps * (settings.epochs - settings.warmup),
            alpha=0.0 if settings.schedule == "cosine" else 1.0,
            warmup_target=rate if settings.warmup else None,
            warmup_steps=steps * settings.warmup,
        )
    optimizer: keras.optimizers.Optimizer
    if settings.weight_decay:
        optimizer = keras.optimizers.AdamW(
            rate, weight_decay=settings.weight_decay, global_clipnorm=settings.clip_norm
        )
        optimizer.exclude_from_weight_decay(var_list=_not_decayed(model))
    else:
        optimizer = keras.optimizers.Adam(rate, global_clipnorm=settings.clip_norm)
    if settings.decay < 1:
        optimizer = layerwise_optimizer(model, optimizer, settings.decay)
    if settings.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
