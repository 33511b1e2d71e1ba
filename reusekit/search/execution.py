"""Trials run: several at a time where they read the same batches, each as it would be alone."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import keras_tuner
import numpy as np
import tensorflow as tf

from reusekit.errors import ConfigError, TrainingError
from reusekit.features import feed
from reusekit.features.source import FeatureSource
from reusekit.search.folder import load, read_weights, trained_weights
from reusekit.search.hypermodel import VALIDATION_BATCH, CutHyperModel
from reusekit.search.joint import Member, fit_together
from reusekit.search.sizes import Sizes
from reusekit.search.space import TrialSpec
from reusekit.search.trial_data import ArrayFeatures
from reusekit.signals import interruptible
from reusekit.training.fit import Fit

MOST_TOGETHER = 64
"""Heads at most in one compiled step, since compiling takes longer the more there are."""

_VALUES = 4000
"""The values of an example that take a head as long as all else of its training."""


@dataclass(frozen=True)
class QueuedTrial:
    """A trial to be run.

    Attributes:
        number: The trial's number, from 0.
        spec: Its specification.
        epochs: The epoch to end at, at the latest.
        initial_epoch: The epoch to begin at.
        weights: The weights to go on from where it begins later, or the file of them.
    """

    number: int
    spec: TrialSpec
    epochs: int
    initial_epoch: int = 0
    weights: Any = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial, as plain data: the same wherever it was trained.

    Attributes:
        number: The trial's number.
        fit: Its training; None where it failed.
        weights: The weights that it trained, as `trained_weights` gives them.
        sizes: Of its whole model, from the backbone's inputs to the head's outputs.
        trained: The number of parameters that it trained.
        error: Why it failed; None where it did not.
    """

    number: int
    fit: Fit | None = None
    weights: Sequence[np.ndarray] = field(default=(), repr=False)
    sizes: Sizes = Sizes()  # noqa: RUF009  (immutable)
    trained: int = 0
    error: str | None = None


@dataclass(frozen=True)
class GroupTrainer:
    """Trains groups of trials, one group a call.

    Attributes:
        hypermodel: Builds their models.
        objective: The metric by which a trial is stopped.
        progress: Called after each epoch with a text, but where a copy trains elsewhere.
    """

    hypermodel: CutHyperModel
    objective: keras_tuner.Objective
    progress: Callable[[str], None] | None = None

    def __call__(self, group: Sequence[QueuedTrial]) -> Iterator[Outcome]:
        """Train a group; see `run`."""

        def tell(epoch: int, active: int) -> None:
            if self.progress is not None:
                self.progress(f"epoch {epoch + 1}, {active} of {len(group)} trials go on")

        return run(group, self.hypermodel, self.objective, tell)

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupTrainer, (self.hypermodel, self.objective)


def with_weights(trial: QueuedTrial) -> QueuedTrial:
    """Return the trial with the weights that it goes on from in the place of their file."""
    return trial if trial.weights is None else replace(trial, weights=read_weights(trial.weights))


def groups(
    trials: Sequence[QueuedTrial],
    hypermodel: CutHyperModel,
    together: Callable[[Any, int], int] = lambda features, batch_size: MOST_TOGETHER,
    workers: int = 1,
) -> list[list[QueuedTrial]]:
    """Group the trials that can be trained together: those that see the same batches.

    Heads on features in memory go together across cuts and backbones, which have the same examples
    in the same order. Others do where they begin with the same ones, so that these are read, or
    computed, once for all of them.

    Args:
        trials: Those to be run.
        hypermodel: Knows where they begin.
        together: The number of trials that may be trained at a time, by features and batch size.
        workers: The number of groups that are trained at the same time: none has more than its
            share of the trials; of heads on features in memory, of the work.
    """
    share = math.ceil(len(trials) / workers)
    alike: dict[Any, list[QueuedTrial]] = {}
    most: dict[Any, int] = {}
    work: dict[int, float] = {}
    for trial in trials:
        data, begins = hypermodel.data_of(trial.spec), hypermodel.begin(trial.spec)
        source = data.train[data.begin(trial.spec)]
        in_memory = isinstance(source, ArrayFeatures)
        if isinstance(source, ArrayFeatures):
            values = sum(math.prod(part.shape[1:]) for part in keras.tree.flatten(source.values))
            work[trial.number] = 1 + values / _VALUES
        key = (trial.spec.batch_size, trial.initial_epoch, None if in_memory else begins)
        alike.setdefault(key, []).append(trial)
        most[key] = 1
        if hypermodel.joint:
            allowed = MOST_TOGETHER if in_memory else together(begins, trial.spec.batch_size)
            most[key] = min(allowed, share)
    return [
        part for key, group in alike.items() for part in _parted(group, most[key], workers, work)
    ]


def _parted(
    group: Sequence[QueuedTrial], most: int, workers: int, work: Mapping[int, float]
) -> list[list[QueuedTrial]]:
    """Part trials, in their order, into as few groups as give each worker as many.

    Args:
        group: The trials.
        most: How many are in a group at most.
        workers: The number of groups that are trained at the same time.
        work: How much each is, by its number, where that is told; then several workers have groups
            of as much work each.
    """
    count = math.ceil(len(group) / most)
    if count > 1 and workers > 1 and work:
        count = workers * math.ceil(count / workers)
        most = math.ceil(len(group) / count)
    even = [list(group[first : first + most]) for first in range(0, len(group), most)]
    size = np.array([work.get(trial.number, 1.0) for trial in group])
    if workers == 1 or len({*size}) == 1:
        return even
    # The middle of each trial's work tells which part it belongs to.
    middles = size.cumsum() - size / 2
    parts: list[list[QueuedTrial]] = [[] for _ in even]
    for trial, part in zip(group, len(even) * middles // size.sum(), strict=True):
        parts[int(part)].append(trial)
    return even if max(map(len, parts)) > MOST_TOGETHER else [part for part in parts if part]


def run(
    group: Sequence[QueuedTrial],
    hypermodel: CutHyperModel,
    objective: keras_tuner.Objective,
    progress: Callable[[int, int], None] = lambda epoch, active: None,
) -> Iterator[Outcome]:
    """Train the trials of a group at the same time.

    Where one of them fails, each is tried alone, so that the others do not fail with it.

    Args:
        group: Trials that `groups` put together.
        hypermodel: Builds their models.
        objective: The metric by which a trial is stopped.
        progress: Called after each epoch with its number and how many trials go on.

    Yields:
        The outcome of each, in their order.

    Raises:
        ConfigError: The objective is none of the metrics that the models report.
    """
    if len(group) > 1:
        try:
            with interruptible():
                trained = _trained(group, hypermodel, objective, progress)
        except ConfigError:
            raise
        except Exception:  # whose fault it is will show
            trained = []
        if trained:
            yield from _outcomes(group, trained, hypermodel)
            return
        gc.collect()  # only now that the error is gone, which held the models
    for trial in group:
        try:
            with interruptible():
                trained = _trained([trial], hypermodel, objective, progress)
                (outcome,) = _outcomes([trial], trained, hypermodel)
        except ConfigError:
            raise
        except Exception as error:  # whatever a layer, a head or the memory raises
            outcome = Outcome(trial.number, error=_told(error))
        yield outcome


def _trained(
    group: Sequence[QueuedTrial],
    hypermodel: CutHyperModel,
    objective: keras_tuner.Objective,
    progress: Callable[[int, int], None],
) -> list[tuple[keras.Model, Fit | TrainingError]]:
    """Return the model of each trial with its training, or with the reason why that failed."""
    models = []
    for trial in group:
        model = hypermodel.build_for(trial.spec)
        if trial.weights is not None:
            load(model, trial.weights)
        models.append(model)
    if hypermodel.joint:
        fits = _fit_together(group, models, hypermodel, objective, progress)
    else:
        (trial,), (model,) = group, models
        epochs = trial.epochs, trial.initial_epoch
        fits = [hypermodel.train(trial.spec, model, objective, (), *epochs)]
    return list(zip(models, fits, strict=True))


def _outcomes(
    group: Sequence[QueuedTrial],
    trained: Sequence[tuple[keras.Model, Fit | TrainingError]],
    hypermodel: CutHyperModel,
) -> Iterator[Outcome]:
    """Yield what became of each trial; weights are copied one trial at a time."""
    for trial, (model, fit) in zip(group, trained, strict=True):
        if isinstance(fit, Fit):
            counter = hypermodel.counters[trial.spec.backbone]
            yield Outcome(
                trial.number,
                fit,
                trained_weights(model),
                counter.whole(trial.spec, model),
                sum(int(keras.ops.size(variable)) for variable in model.trainable_variables),
            )
        else:
            yield Outcome(trial.number, error=_told(fit))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _fit_together(
    group: Sequence[QueuedTrial],
    models: Sequence[keras.Model],
    hypermodel: CutHyperModel,
    objective: keras_tuner.Objective,
    progress: Callable[[int, int], None],
) -> list:
    begun = {hypermodel.begin(trial.spec): trial.spec for trial in group}
    members = [
        Member(
            model,
            _name(hypermodel.begin(trial.spec)),
            trial.epochs,
            hypermodel.stopping(objective),
            objective.name,
            objective.direction == "max",
        )
        for trial, model in zip(group, models, strict=True)
    ]
    train, validation = (
        {
            begins: getattr(hypermodel.data_of(spec), part)[hypermodel.data_of(spec).begin(spec)]
            for begins, spec in begun.items()
        }
        for part in ("train", "validation")
    )
    batch_size = group[0].spec.batch_size
    return fit_together(
        members,
        _batches(train, batch_size, hypermodel.config.seed),
        _batches(validation, VALIDATION_BATCH),
        initial_epoch=group[0].initial_epoch,
        progress=progress,
        optimized=any(hypermodel.data_of(one.spec).trunk(one.spec) is not None for one in group),
    )


def _name(begins: Sequence[str | None]) -> str:
    """Return the name of features in the batches."""
    return " ".join(part or "whole" for part in begins)


def _batches(
    sources: Mapping[Any, FeatureSource], batch_size: int, seed: int | None = None
) -> tf.data.Dataset:
    """Return batches of (features by name, labels, ...) of several cuts, on the same examples."""
    if all(isinstance(source, ArrayFeatures) for source in sources.values()):
        in_memory = {_name(one): source.values for one, source in sources.items()}  # type: ignore[attr-defined]  # see above
        one = next(iter(sources.values()))
        return feed(in_memory, one.labels, batch_size, seed, one.weights)
    batches = {_name(one): source.batches(batch_size, seed) for one, source in sources.items()}
    first = next(iter(batches))
    return tf.data.Dataset.zip(batches).map(
        lambda found: ({name: batch[0] for name, batch in found.items()}, *found[first][1:])
    )
