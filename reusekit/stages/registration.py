"""The last stage: the parts logged, proved to be the whole, and registered."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import mlflow
import numpy as np
from mlflow.entities.model_registry import ModelVersion

from reusekit.backbones import Backbone
from reusekit.progress import say
from reusekit.settings import TrackingSettings
from reusekit.stages.baselines import Baseline
from reusekit.stages.evaluation import Evaluation
from reusekit.stages.fine_tuning import FineTuned
from reusekit.stages.inputs import Splits
from reusekit.stages.search import Searched
from reusekit.surgery import prepend, split
from reusekit.tasks import TaskRules
from reusekit.tracking import (
    ROLES,
    CardScore,
    Ledger,
    ModelCard,
    Registration,
    Usage,
    describe,
    log_params,
    model_card,
    prepare,
    requirements,
    send_models,
    take_ledgers,
)
from reusekit.tracking.names import THRESHOLDS


@dataclass(frozen=True)
class Scores:
    """The measured quality of a model, and what it is compared with.

    Attributes:
        test: How good it is on the test split.
        baselines: Its rivals.
        searched: The search that it won, if there was one.
    """

    test: Evaluation
    baselines: Sequence[Baseline] = ()
    searched: Searched | None = None


def register(
    tuned: FineTuned,
    backbone: Backbone,
    splits: Splits,
    scores: Scores,
    settings: TrackingSettings,
    folder: Path,
    standalone: bool = False,
) -> ModelVersion | None:
    """Log bottom, top and whole to the active run and register them.

    The first version becomes the champion; later ones only where that is asked for. A model that is
    registered already makes no new version.

    Args:
        tuned: The model and its parts.
        backbone: Where it comes from.
        splits: What it was trained on; a few test inputs show the parts to be the whole.
        scores: How good it is, and what it is compared with, for its model card.
        settings: The name and the alias in the registry.
        folder: Where the models are written before they are sent.
        standalone: Store the whole with weights of its own, so that it needs no reusekit where it
            is loaded. Otherwise a reference to its parts is stored, which are joined there.

    Returns:
        The version; None where the server is away and the models wait on disk.

    Raises:
        SurgeryError: Bottom and top do not compute what the whole computes.
        TrackingError: The registry refuses. The models are then kept in the folder.
    """
    tuned, splits = from_raw(tuned, splits)
    parts, test, baselines = tuned.parts, scores.test, scores.baselines
    few, *_ = next(iter(splits.test.batches(4)))
    parts.verify(keras.tree.map_structure(np.asarray, few))
    models = (parts.bottom, parts.top, parts.source)
    ledgers = dict(zip(ROLES, take_ledgers(models), strict=True))
    chosen = {"cut": tuned.cut, "frozen_up_to": tuned.frozen_up_to}
    log_params(chosen | ledgers["whole"].params())
    rules, measure = tuned.rules, tuned.rules.measure
    metrics = {
        **{f"test_{name}": value for name, value in test.scores.items() if np.isfinite(value)},
        f"val_{measure}": tuned.validation,
    }
    said = f"test {measure.replace('_', ' ')}"
    compared = [(said, test), *((b.name, b.test) for b in baselines)]
    # In two lines, since MLflow folds a description after a few.
    describe(
        f"{backbone.source} on {splits.train.name}: {tuned.choice}.\n"
        + "; ".join(f"{name}: {one.value:{rules.numbers}}" for name, one in compared)
    )
    card_scores = [
        CardScore("this model", test.value, tuned.validation, tuned.choice),
        *(CardScore(b.name, b.test.value, b.validation, b.choice) for b in baselines),
        *_runner_up(scores.searched, rules),
    ]
    card = _card(tuned, backbone, splits, ledgers["whole"], card_scores, settings, standalone)
    registration = Registration(
        settings.model,
        (splits.train.raw or splits.train).fingerprint,
        tuned.cut,
        settings.alias,
        metrics,
        card,
        standalone,
        _tags(rules),
        Usage.of(splits.train, getattr(rules, "thresholds", None)),
    )
    unsent = folder / "models"  # where they stay if nothing else can be done with them
    prepare(unsent, parts, backbone, ledgers, registration)
    version = send_models(unsent)
    shutil.rmtree(unsent)
    run = mlflow.active_run()
    if version is not None and run is not None and version.run_id != run.info.run_id:
        say(
            f"This model is version {version.version} of {version.name} already: nothing new is "
            "registered."
        )
    return version


def from_raw(tuned: FineTuned, splits: Splits) -> tuple[FineTuned, Splits]:
    """Return the model and the data as they were before texts became tokens, where they did."""
    if splits.tokenizer is None:
        return tuned, splits
    whole = prepend(tuned.whole, splits.tokenizer)
    return replace(tuned, whole=whole, parts=split(whole, tuned.frozen_up_to)), splits.raw


def _tags(rules: TaskRules) -> dict[str, str]:
    """Return the choices of a task's rules on the validation split, as tags."""
    chosen = getattr(rules, "thresholds", None)
    if chosen is None:
        return {}
    rounded = keras.tree.map_structure(lambda one: float(f"{one:.6g}"), chosen)
    return {THRESHOLDS: json.dumps(rounded)}


def _runner_up(searched: Searched | None, rules: TaskRules) -> list[CardScore]:
    """Return the best of the cuts that were not chosen, which nobody tested."""
    if searched is None:
        return []
    result = searched.result
    others = [trial for trial in result.completed if trial.named_cut != result.best.named_cut]
    if not others:
        return []
    second = others[0]
    return [
        CardScore(f"runner-up: cut {second.label}", None, second.metrics.get(rules.reported or ""))
    ]


def _card(
    tuned: FineTuned,
    backbone: Backbone,
    splits: Splits,
    ledger: Ledger,
    scores: Sequence[CardScore],
    settings: TrackingSettings,
    standalone: bool,
) -> str:
    whole = tuned.whole
    shapes = {tensor.name: tuple(tensor.shape[1:]) for tensor in whole.inputs}
    alone = next(iter(shapes.values())) if len(shapes) == 1 else None
    images = alone is not None and len(alone) == 3
    texts = all(tensor.dtype == "string" for tensor in whole.inputs)
    kind = "images" if images else "texts" if texts else "examples"
    ranges = {"images": "pixels from 0 to 255", "texts": "strings"}
    return model_card(
        ModelCard(
            name=settings.model,
            alias=settings.promoted,
            task=tuned.rules.sentence(kind),
            measure=tuned.rules.measure,
            numbers=tuned.rules.numbers,
            source=backbone.source,
            cut=tuned.cut,
            frozen_up_to=tuned.frozen_up_to,
            train=splits.train,
            test=splits.test,
            costs=ledger,
            scores=scores,
            input_shape=shapes if alone is None else alone,
            input_range=ranges.get(kind, "what it was trained on"),
            bottom=f"{backbone.name}-bottom",
            top=f"{settings.model}-top",
            parent=backbone.parent and f"{backbone.source} ({backbone.parent})",
            requirements=requirements(whole, by_reference=not standalone),
        )
    )
