"""The making of a plan: measures this machine, then applies the rule to every cut.

Nautilus (Nakandala and Kumar, SIGMOD 2022) chooses with fixed speeds; here they are measured.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import keras
import psutil
from annotated_types import MinLen
from pydantic import NonNegativeInt, PositiveInt
from rich.filesize import decimal

from reusekit.arguments import Seed, checked
from reusekit.data import DataSplit
from reusekit.errors import ConfigError
from reusekit.features.key import described
from reusekit.features.padding import Padding
from reusekit.features.randomness import refuse_mixing
from reusekit.features.store import FeatureStore
from reusekit.features.stored import check_dtype, check_examples
from reusekit.graph import Graph, read
from reusekit.graph.addresses import resolve_one
from reusekit.graph.padding_mask import AUTO
from reusekit.planning.costs import Costs
from reusekit.planning.facts import TRAIN, VALIDATION, VIEWS, CutFacts, survey
from reusekit.planning.planned import Extraction, Plan, PlannedFeatures, PlannedGroup, Trials
from reusekit.planning.rule import Decision, schedule

_SHARE_OF_DISK = 0.9  # of what is free


def check_backend() -> None:
    """Refuse other backends of Keras than TensorFlow.

    Raises:
        ConfigError: Keras runs on another one.
    """
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            "Expected the TensorFlow backend of Keras, on which plans and searches run. Received: "
            f"{keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow."
        )


@checked(ConfigError)
def plan(
    model: keras.Model | Graph,
    trials: Annotated[Sequence[Trials], MinLen(1)],
    train: DataSplit,
    validation: DataSplit,
    store: FeatureStore,
    *,
    dtype: str | None = None,
    padding: Padding | None = None,
    preprocessing: Any = None,
    compute_dtype: str | None = None,
    disk: NonNegativeInt | None = None,
    memory: NonNegativeInt | None = None,
    augmented_views: NonNegativeInt = 0,
    seed: Seed = 0,
    batch_size: PositiveInt = 64,
    mask: Any = AUTO,
    costs: Costs | None = None,
) -> Plan:
    """Choose what to compute once, store and read, and which trials to train together.

    A cut's features are stored where it takes fewer seconds to make, write and read them than to
    compute them in every pass; where not all fit, what saves the most seconds a byte is stored
    first. Nothing is computed but the first batch, twice, to measure the bottom and to see that it
    gives the same both times; and not even that where all is stored already.

    Args:
        model: The backbone; what is before a trial's cut runs in inference mode.
        trials: What is to be trained.
        train: The examples to train on.
        validation: Those to compare on; they are never augmented.
        store: Where features are kept.
        dtype: What features are stored as; None for what the model computes.
        padding: How examples of different lengths are brought to one.
        preprocessing: What is done to the examples that neither the model nor the data sets'
            fingerprints say; see `feature_keys`.
        compute_dtype: "bfloat16" has the bottom compute in that; None in the model's own precision.
        disk: Bytes that the features may take; None for the store's budget, or else for most of
            what is free on its disk.
        memory: Bytes that training may take; None for half of what the machine has available.
        augmented_views: Where random augmentation lies before a cut, how many augmented views of
            the training examples to store. With 0 the bottom runs on every batch instead.
        seed: Augmentation follows from this.
        batch_size: Examples a batch of a pass.
        mask: Which positions pooling passes over, as for `rk.extract`. It crosses with whole maps,
            after all else, so that a head can pool these.
        costs: The speeds, where they are known; None measures them.

    Returns:
        The plan. Print it; `obtain` then does what it says.

    Raises:
        ConfigError: There are no trials, a budget is negative, or Keras runs on another backend
            than TensorFlow.
        CacheError: Features cannot be named, or the store cannot be written.
        DataError: The data set holds no example, or none that the model takes.
        AddressError: A trial's cut names no tensor of the model, or several.

    Example:
        >>> import tempfile
        >>> import reusekit as rk
        >>> train = rk.data.load("sklearn_digits", "train[:50]",
        ...                      treatment=rk.data.Treatment(image_size=(32, 32)))
        >>> test = rk.data.load("sklearn_digits", "test[:20]",
        ...                     treatment=rk.data.Treatment(image_size=(32, 32)))
        >>> model = rk.load_backbone("reusekit/glyphnet").model
        >>> cuts = [Trials(at, "avg", count=3) for at in ("stem_out", "block7_out")]
        >>> made = plan(model, cuts, train, test, FeatureStore(tempfile.mkdtemp()))
        >>> [(one.at, one.how) for one in made.features]
        [('stem_out', 'tap'), ('block7_out', 'tap')]
    """
    check_backend()
    check_dtype(dtype)
    graph = read(model, keep_masks=mask is not None)
    splits = {TRAIN: train, VALIDATION: validation}
    for name, split in splits.items():
        check_examples(graph, split, name, padding)
    refuse_mixing(graph, [trial.at for trial in trials])
    extraction = Extraction(
        dtype=dtype,
        padding=padding,
        preprocessing=described(preprocessing),
        compute_dtype=compute_dtype,
        mask=mask if mask is None or isinstance(mask, str) else resolve_one(graph, mask).address,
        batch_size=batch_size,
        seed=seed,
        views=augmented_views,
    )
    facts = survey(graph, trials, splits, store, extraction, costs)
    if memory is None:
        memory = psutil.virtual_memory().available // 2
    budgets = [budget for budget in (disk, store.budget) if budget is not None]
    if budgets:
        room = min(budgets)
    else:
        there = sum(entry.nbytes for one in facts.cuts for entry in one.entries)
        room = int(there + _SHARE_OF_DISK * shutil.disk_usage(store.path).free)
    decision = Decision(facts, memory, room)
    if not decision.inputs_fit:
        window = int(memory / 4 / max(1, facts.input_bytes))
        extraction = replace(extraction, window=window)
    left = memory - sum(map(decision.bytes, decision.in_memory)) - decision.held_inputs
    groups = {one: decision.groups(one, one in decision.stored, left) for one in facts.cuts}
    features = [_features(decision, one, groups[one], extraction) for one in facts.cuts]
    seconds = sum(one.seconds for one in features)
    if decision.held_inputs:
        seconds += (train.size + validation.size) * facts.costs.input_seconds
    return Plan(
        features=tuple(features),
        groups=tuple(group for those in groups.values() for group in those),
        extraction=extraction,
        costs=facts.costs,
        seconds=seconds,
        plain_seconds=_plain_seconds(decision),
        notes=tuple(_notes(decision, extraction)),
    )


def _features(
    decision: Decision, one: CutFacts, groups: Sequence[PlannedGroup], extraction: Extraction
) -> PlannedFeatures:
    training = sum(group.feature_seconds + group.seconds for group in groups)
    passes = sum(group.passes for group in groups)
    stored = one in decision.stored
    return PlannedFeatures(
        at=one.at,
        pooling=one.frontier.pooling,
        how=_how(one, TRAIN, stored),
        validation=_how(one, VALIDATION, stored),
        varies=one.augmented or one.unsteady,
        in_memory=one in decision.in_memory,
        bytes=decision.bytes(one) if stored else 0,
        if_stored=decision.seconds(one, stored=True),
        if_computed=decision.seconds(one, stored=False),
        seconds=decision.making.get(one, 0.0) + training,
        reason=_reason(decision, one, passes, extraction),
    )


def _how(one: CutFacts, part: str, stored: bool) -> str:
    """Return the way to a cut's training or validation features."""
    if stored and part == TRAIN and VIEWS in one.kept:
        return "views"
    if not stored or part not in one.kept:
        return "recompute"
    return "tap" if part in one.missing else "stored"


def _plain_seconds(decision: Decision) -> float | None:
    """Return the seconds of each trial alone, the bottom run for every example in every pass."""
    facts, total = decision.facts, 0.0
    if facts.costs.bottom_seconds is None:
        return None
    for one in facts.cuts:
        example = facts.costs.input_seconds + decision.bottom(one.calls)
        reading = (facts.rows[TRAIN] + facts.rows[VALIDATION]) * example
        for trials in one.trials:
            single = [replace(trials, count=1)]
            alone = schedule(
                single, one.activations, facts.rows, reading, facts.costs, decision.memory
            )
            total += trials.count * (alone.feature_seconds + alone.seconds)
    return total


# --- in words -----------------------------------------------------------------------------------


def _reason(decision: Decision, one: CutFacts, passes: int, extraction: Extraction) -> str:
    """Explain why a cut's training features are stored or computed."""
    how = _how(one, TRAIN, one in decision.stored)
    if how == "stored":
        return f"found in the store; read {passes} times"
    if how == "views":
        return f"epoch e trains on stored view e % {extraction.views}"
    if one.unsteady:
        return "random in inference too, so never stored"
    if one.augmented:
        return "augmented anew in each pass; validation examples are not"
    if one in decision.crowded:
        return f"no room for {decimal(decision.bytes(one))} on the disk"
    read, computed = 1e3 * decision.read(one), 1e3 * decision.compute(one)
    each = f"{passes} passes at {read:.3g} ms an example read, {computed:.3g} ms computed"
    return f"in one pass; {each}" if how == "tap" else each


def _notes(decision: Decision, extraction: Extraction) -> Iterator[str]:
    """Yield the notes that a reader needs beside the tables."""
    masks: dict[str, list[CutFacts]] = {}
    for one in decision.facts.cuts:
        yield from one.frontier.doubts
        if one.frontier.mask is not None:
            masks.setdefault(one.frontier.mask.address, []).append(one)
    for address, cuts in masks.items():
        yield f"Pooling passes over what {address!r} leaves out, at {_listed(cuts)}."
    yield from _about_randomness(decision, extraction.views)
    if decision.crowded:
        budget, cuts = decimal(int(decision.disk)), decision.crowded
        yield f"The budget of {budget} on the disk does not hold {_listed(cuts)} as well."
    if decision.held_inputs:
        yield "The inputs are read once and held in memory."
    elif decision.running:
        yield (
            "The inputs do not fit into memory: each pass reads the data set itself, shuffled "
            f"within a window of {extraction.window:,} examples, so that batches come in another "
            "order than those of stored features."
        )


def _about_randomness(decision: Decision, views: int) -> Iterator[str]:
    cuts = decision.facts.cuts
    augmented = [one for one in cuts if one.augmented]
    viewed = [one for one in augmented if VIEWS in one.kept and one in decision.stored]
    others = [one for one in augmented if one not in viewed]
    if views and not augmented:
        yield "No random augmentation lies before a cut, so no augmented views are stored."
    if viewed:
        layers = _named(layer for one in viewed for layer in one.randomness.augmenting)
        yield (
            f"Random augmentation ({layers}) lies before {_listed(viewed)}: {views} augmented "
            "views of the training examples are stored, and each pass reads the next. Validation "
            "examples are not augmented."
        )
    if others:
        layers = _named(layer for one in others for layer in one.randomness.augmenting)
        yield (
            f"Random augmentation ({layers}) lies before {_listed(others)}: the training "
            "examples' features are not stored, the bottom runs on every batch and augments it "
            "anew. Validation examples are not augmented."
            + ("" if views else " augmented_views=k would store k views instead.")
        )
    unseeded = [one for one in others if views and one.randomness.unseeded]
    if unseeded:
        layers = _named(layer for one in unseeded for layer in one.randomness.unseeded)
        yield (
            f"No views are stored of {_listed(unseeded)}: what {layers} draw cannot be drawn again."
        )
    unsteady = [one for one in cuts if one.unsteady]
    if unsteady:
        yield (
            f"What crosses {_listed(unsteady)} is random in inference too: it is never stored, and "
            "the bottom runs on every batch."
        )
    silenced = _named(layer for one in cuts for layer in one.randomness.silenced)
    if silenced:
        yield (
            f"The frozen bottom runs in inference mode, where {silenced} drop nothing and add no "
            "noise."
        )


def _named(layers: Iterable[str]) -> str:
    return ", ".join(repr(layer) for layer in dict.fromkeys(layers))


def _listed(cuts: Iterable[CutFacts]) -> str:
    return ", ".join(map(str, cuts))
