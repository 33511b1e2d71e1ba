"""The making of a plan: measures this machine, then applies the rule to every cut.

Nautilus (Nakandala and Kumar, SIGMOD 2022) chooses with fixed speeds; here they are measured.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import keras
import psutil
from annotated_types import MinLen
from rich.filesize import decimal

from reusekit.arguments import checked
from reusekit.data import DataSplit
from reusekit.errors import ConfigError
from reusekit.features.batches import example_batches
from reusekit.features.bottoms import Bottom, in_compute_dtype, tapped
from reusekit.features.frontiers import Features, frontier
from reusekit.features.key import EXAMPLE_BYTES, Extraction, described, feature_keys
from reusekit.features.known import known_by_all, known_examples
from reusekit.features.lengths import frontier_lengths
from reusekit.features.randomness import random_before, refuse_mixing, refuse_stateful
from reusekit.features.store import FeatureStore
from reusekit.features.stored import check_examples
from reusekit.graph import Flops, Graph, ancestors, count_flops, read
from reusekit.graph.addresses import resolve_one
from reusekit.planning.costs import REHEARSED_BATCHES, Costs, Rehearsal, measure, rehearse
from reusekit.planning.notes import notes_of
from reusekit.planning.planned import (
    JointPlan,
    Plan,
    PlannedFeatures,
    PlannedGroup,
    Resources,
    Trials,
    workers_of,
)
from reusekit.planning.rule import (
    TRAIN,
    VALIDATION,
    VIEWS,
    CutFacts,
    Decision,
    schedule,
    stored_of,
)
from reusekit.workers import HERE, Workers

_SHARE_OF_DISK = 0.9  # of what is free


def check_backend() -> None:
    """Raise ConfigError on other backends of Keras than TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            "Expected the TensorFlow backend of Keras, on which plans and searches run. Received: "
            f"{keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow."
        )


def check_augmentation(train: DataSplit, validation: DataSplit, views: int) -> None:
    """Refuse augmented validation examples, and views of examples that are mixed."""
    if validation.augmentation is not None:
        raise ConfigError(
            "Expected validation examples without augmentation, by which trials are compared. "
            f"Received: {validation.augmentation}."
        )
    if views and train.mixes_labels:
        raise ConfigError(
            "Expected augmented_views to be 0 with MixUp or CutMix, which mix each example anew "
            f"with another in every pass. Received: {views}."
        )


@checked(ConfigError)
def plan(
    model: keras.Model | Graph,
    trials: Annotated[Sequence[Trials], MinLen(1)],
    train: DataSplit,
    validation: DataSplit,
    store: FeatureStore,
    extraction: Extraction = Extraction(),
    resources: Resources = Resources(),
) -> Plan:
    """Choose what to compute once, store and read, and which trials to train together.

    A cut's features are stored where it takes fewer seconds to make, write and read them than to
    compute them in every pass; where not all fit, what saves the most seconds a byte is stored
    first. Nothing is computed but the first batch, twice, to measure the bottom and to see that it
    gives the same both times; and not even that where all is stored already.

    Args:
        model: The backbone; what is before a trial's cut runs in inference mode.
        trials: What is to be trained.
        train: The examples to train on. Where they are augmented, their features are computed in
            every pass, or stored as `extraction.augmented_views`.
        validation: Those to compare on; they are never augmented.
        store: Where features are kept.
        extraction: How features are computed. The mask crosses with whole maps, after all else, so
            that a head can pool these.
        resources: The room that there is, the speeds where they are known, and the number of
            workers, where the plan is to say what it takes on 1, 2, 4 and more of them.

    Returns:
        The plan. Print it; `obtain` then does what it says.

    Raises:
        ConfigError: There are no trials, or Keras runs on another backend than TensorFlow.
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
    asked = Asked(model, trials, train, validation, extraction)
    return plan_all({"": asked}, store, resources).plans[""]


@dataclass(frozen=True)
class Asked:
    """The work that is asked for on one backbone; see `plan`."""

    model: keras.Model | Graph
    trials: Sequence[Trials]
    train: DataSplit
    validation: DataSplit
    extraction: Extraction = Extraction()


def plan_all(
    asked: Mapping[str, Asked], store: FeatureStore, resources: Resources = Resources()
) -> JointPlan:
    """Plan the work on several backbones, which share the disk by one rule, and memory evenly.

    Args:
        asked: The work on each backbone, by its name.
        store: Where features are kept.
        resources: The room for all of them.

    Raises:
        ConfigError, CacheError, DataError, AddressError: As `plan` raises them.
    """
    check_backend()
    # One alone is expected: workers keep few models, and this one comes first.
    first = next(iter(asked), None)
    looked = {
        name: _looked_at(one, store, store.workers if name == first else HERE)
        for name, one in asked.items()
    }
    costs, speeds = resources.costs, {}
    for name, one in looked.items():
        speeds[name] = one.speeds(store, costs)
        if resources.costs is None:
            costs = replace(speeds[name], bottom_seconds=None)
    memory = resources.memory
    if memory is None:
        memory = psutil.virtual_memory().available // 2
    memory //= len(asked)
    budgets = [budget for budget in (resources.disk, store.budget) if budget is not None]
    there = sum(cut.there for one in looked.values() for cut in one.cuts)
    free = there + _SHARE_OF_DISK * shutil.disk_usage(store.path).free
    disk = min(budgets, default=int(free))
    decisions = [one.decision(speeds[name], memory, disk) for name, one in looked.items()]
    chosen = stored_of(decisions, disk)
    decisions = [replace(one, chosen=chosen.intersection(one.cuts)) for one in decisions]
    plans = {
        name: _planned(decision, one)
        for (name, one), decision in zip(looked.items(), decisions, strict=True)
    }
    if resources.workers is None:
        return JointPlan(plans)
    told = {
        name: replace(made, workers=workers_of([made], resources.workers))
        for name, made in plans.items()
    }
    return JointPlan(told, workers_of(list(told.values()), resources.workers))


@dataclass(frozen=True)
class _Looked:
    """The facts of one backbone: what is asked for, what is stored, and a first batch."""

    asked: Asked
    extraction: Extraction
    flops: Flops
    cuts: Sequence[CutFacts]
    rehearsal: Rehearsal | None

    @property
    def read_bytes(self) -> int:
        """Bytes of an example's input and label; 0 where nothing has to run."""
        return self.rehearsal.input_bytes + self.rehearsal.label_bytes if self.rehearsal else 0

    def speeds(self, store: FeatureStore, costs: Costs | None) -> Costs:
        """Return the speeds, of this machine as they are known, of the bottom as it was rehearsed.

        Args:
            store: Its disk is measured where nothing is known.
            costs: The speeds that are known.
        """
        rehearsal = self.rehearsal
        if costs is not None and (costs.bottom_seconds is not None or rehearsal is None):
            return costs
        ran = {call for one in self.cuts if one.may_run for call in one.calls}
        flops = sum(self.flops.per_call[call] for call in ran)
        parameters = max(each.parameters for one in self.cuts for each in one.trials)
        costs = costs or measure(store, rehearsal, flops, parameters)
        if rehearsal is not None:  # the deepest cut may be stored already
            deepest = max(one.flops for one in self.cuts)
            seconds = rehearsal.bottom_seconds * (deepest / flops if flops else 1)
            costs = replace(
                costs,
                bottom_seconds=seconds,
                trace_seconds=rehearsal.trace_seconds,
                input_seconds=rehearsal.input_seconds,
                augment_seconds=rehearsal.augment_seconds,
            )
        return costs

    def decision(self, costs: Costs, memory: int, disk: int) -> Decision:
        """Return the rule applied to the facts."""
        rows = {part: split.size for part, split in self.splits.items()}
        rows[VIEWS] = self.extraction.augmented_views * self.asked.train.size
        share = self.rehearsal.length_share if self.rehearsal else 1.0
        facts = rows, costs, self.flops.per_call, self.read_bytes, memory, disk
        return Decision(self.cuts, *facts, length_share=share)

    @property
    def splits(self) -> dict[str, DataSplit]:
        """The examples by part."""
        return {TRAIN: self.asked.train, VALIDATION: self.asked.validation}


def _looked_at(asked: Asked, store: FeatureStore, workers: Workers) -> _Looked:
    """Look at what is asked for, at what is stored, and run the first batch where it may run.

    Meanwhile workers load and trace what they will most likely be asked for.
    """
    extraction, train = asked.extraction, asked.train
    mask, graph = extraction.mask, read(asked.model, keep_masks=extraction.mask is not None)
    splits = {TRAIN: train, VALIDATION: asked.validation}
    for name, split in splits.items():
        check_examples(graph, split, name, extraction.padding)
    for refuse in (refuse_mixing, refuse_stateful):
        refuse(graph, [trial.at for trial in asked.trials])
    check_augmentation(train, asked.validation, extraction.augmented_views)
    extraction = replace(
        extraction,
        preprocessing=described(extraction.preprocessing),
        mask=mask if mask is None or isinstance(mask, str) else resolve_one(graph, mask).address,
        carries_mask=True,
    )
    flops = count_flops(graph)
    cuts = _cuts(graph, flops, asked.trials, extraction, train)
    _find(cuts, splits, store, extraction)
    if workers is not HERE:
        _expect(workers, graph, cuts, train, extraction)
    return _Looked(asked, extraction, flops, cuts, _rehearsed(graph, cuts, train, extraction))


def _planned(decision: Decision, looked: _Looked) -> Plan:
    """Return the plan of one backbone."""
    costs, memory, extraction = decision.costs, decision.memory, looked.extraction
    train, validation = looked.splits.values()
    left = memory - sum(map(decision.bytes, decision.in_memory)) - decision.held_inputs
    groups = {one: decision.groups(one, one in decision.stored, left) for one in decision.cuts}
    features = [_features(decision, one, groups[one], extraction) for one in decision.cuts]
    seconds = sum(one.seconds for one in features)
    if decision.held_inputs:
        seconds += (train.size + validation.size) * costs.input_seconds
    passes = {part for one in decision.making for part in one.missing}
    # What measured the bottom is what runs over all parts but views.
    seconds += costs.trace_seconds * ((VIEWS in passes) + decision.running)
    window = None if decision.inputs_fit else int(memory / 4 / max(1, looked.read_bytes))
    return Plan(
        features=tuple(features),
        groups=tuple(group for those in groups.values() for group in those),
        extraction=extraction,
        window=window,
        costs=costs,
        seconds=seconds,
        plain_seconds=_plain_seconds(decision),
        notes=tuple(notes_of(decision, extraction, window, not train.mixes_labels)),
        one_pass=decision.one_pass(extraction.batch_size),
    )


# --- the facts ----------------------------------------------------------------------------------


def _cuts(
    graph: Graph, flops: Flops, trials: Sequence[Trials], extraction: Extraction, train: DataSplit
) -> list[CutFacts]:
    """Return the facts about each cut that model and augmentation tell, shallow to deep."""
    alike: dict[Features, list[Trials]] = {}
    for each in trials:
        alike.setdefault((each.at, each.pooling), []).append(each)
    cuts = []
    for (at, pooling), those in alike.items():
        one = frontier(graph, at, pooling, extraction.mask, carries_mask=True)
        masks = set() if one.mask is None else {one.mask}
        calls = ancestors(graph, {*one.crossing, *masks})
        found = random_before(graph, one.crossing)
        if train.augmentation is not None:
            found = replace(found, augmenting=(*train.augmentation.recipe, *found.augmenting))
        kept = set() if found.always else {TRAIN, VALIDATION}
        if kept and found.augmenting:
            kept.remove(TRAIN)
            if extraction.augmented_views and not found.unseeded:  # else it could not come again
                kept.add(VIEWS)
        indices = frozenset(call.index for call in calls if not call.is_input)
        cost = sum(flops.per_call[index] for index in indices)
        top = 0
        if pooling is None:  # at most the whole top is trained
            after = (call for call in graph.calls if one.cut.top[call.index])
            top = sum(4 * math.prod(flops.shapes[t]) for call in after for t in call.outputs)
        cuts.append(CutFacts(one, those, indices, cost, top, found, kept))
    return sorted(cuts, key=lambda o: (o.flops, len(o.calls), o.frontier.pooling or ""))


def _find(
    cuts: Sequence[CutFacts],
    splits: dict[str, DataSplit],
    store: FeatureStore,
    extraction: Extraction,
) -> None:
    """Look for the entries that are stored already."""
    parts: list[tuple[str, DataSplit, int | None]] = [(*part, None) for part in splits.items()]
    parts += [(VIEWS, splits[TRAIN], view) for view in range(extraction.augmented_views)]
    for part, split, view in parts:
        those = [one for one in cuts if part in one.kept]
        keys = feature_keys([one.frontier for one in those], split, extraction, view)
        lacking = []
        for one, key in zip(those, keys, strict=True):
            entry = store.get(key)
            if entry is None:
                lacking.append((one, key))
            else:
                one.there += entry.nbytes
                one.example_bytes = entry.nbytes // split.size
        known = known_by_all(known_examples(store, [key for _, key in lacking]))
        for one, _ in lacking:
            one.missing.add(part)
            if known:
                one.known[part] = known


def _expect(
    workers: Workers,
    graph: Graph,
    cuts: Sequence[CutFacts],
    train: DataSplit,
    extraction: Extraction,
) -> None:
    """Have workers prepare the one pass, as it is where all that can be stored is."""
    missing = tuple(one.frontier for one in cuts if one.missing & {TRAIN, VALIDATION})
    bottom = Bottom(graph, missing, extraction)
    if missing and bottom.lengths is None:  # texts go by windows
        inputs, *_ = next(iter(example_batches(train, 0, 1, extraction.padding, 1)))
        workers.expect(bottom, (0, inputs))


def _rehearsed(
    graph: Graph, cuts: Sequence[CutFacts], train: DataSplit, extraction: Extraction
) -> Rehearsal | None:
    """Run the first batch through the bottoms that may be needed; None where none is."""
    those = [one for one in cuts if one.may_run]
    if not those:
        return None
    running = in_compute_dtype(graph, extraction.compute_dtype)
    seen = [one.frontier for one in those]
    size = extraction.batch_size
    stop = min(train.size, REHEARSED_BATCHES * size)
    batches = example_batches(train, 0, stop, extraction.padding, size)
    lengths = frontier_lengths([one.frontier for one in those if one.kept])
    run, _ = tapped(running, seen, augment=False)
    rehearsal = rehearse(run, batches, train.augmentation, lengths)
    for one, outputs, differs in zip(those, rehearsal.outputs, rehearsal.unsteady, strict=True):
        if differs or one.randomness.always:
            one.unsteady, one.kept, one.missing = True, set(), set()
        if not one.example_bytes:
            one.example_bytes = rehearsal.label_bytes
            one.example_bytes += EXAMPLE_BYTES * (train.contents is not None)
            for name in one.frontier.names:
                spec = outputs[name]
                if extraction.dtype is not None and keras.backend.is_float_dtype(spec.dtype):
                    spec = replace(spec, dtype=extraction.dtype)
                one.example_bytes += spec.row_bytes
    return rehearsal


# --- in words -----------------------------------------------------------------------------------


def _features(
    decision: Decision, one: CutFacts, groups: Sequence[PlannedGroup], extraction: Extraction
) -> PlannedFeatures:
    stored, passes = one in decision.stored, sum(group.passes for group in groups)

    def how(part: str) -> str:
        if part not in one.kept or not stored:
            return "recompute"
        return "tap" if part in one.missing else "stored"

    training = "views" if stored and VIEWS in one.kept else how(TRAIN)
    read, computed = 1e3 * decision.read(one), 1e3 * decision.compute(one)
    reason = f"{passes} passes at {read:.3g} ms an example read, {computed:.3g} ms computed"
    if training == "stored":
        reason = f"found in the store; read {passes} times"
    elif training == "views":
        reason = f"epoch e trains on stored view e % {extraction.augmented_views}"
    elif one.unsteady:
        reason = "random in inference too, so never stored"
    elif one.randomness.augmenting:
        reason = "augmented anew in each pass; validation examples are not"
    elif one in decision.crowded:
        reason = f"no room for {decimal(decision.bytes(one))} on the disk"
    elif training == "tap":
        reason = f"in one pass; {reason}"
    return PlannedFeatures(
        at=one.trials[0].at,
        pooling=one.frontier.pooling,
        how=training,
        validation=how(VALIDATION),
        varies=bool(one.randomness.augmenting) or one.unsteady,
        in_memory=one in decision.in_memory,
        bytes=decision.bytes(one) if stored else 0,
        if_stored=decision.seconds(one, stored=True),
        if_computed=decision.seconds(one, stored=False),
        seconds=decision.making.get(one, 0.0)
        + sum(group.feature_seconds + group.seconds for group in groups),
        reason=reason,
        known=sum(one.known.values()) if stored else 0,
    )


def _plain_seconds(decision: Decision) -> float | None:
    """Return the seconds of each trial alone, the bottom run for every example in every pass."""
    costs, rows, total = decision.costs, decision.rows, 0.0
    if costs.bottom_seconds is None:
        return None
    for one in decision.cuts:
        example = costs.input_seconds + decision.bottom(one.calls)
        reading = rows[TRAIN] * (example + costs.augment_seconds) + rows[VALIDATION] * example
        for trials in one.trials:
            single = [replace(trials, count=1)]
            alone = schedule(single, one.activations, rows, reading, costs, decision.memory)
            total += trials.count * (alone.feature_seconds + alone.seconds)
    return total
