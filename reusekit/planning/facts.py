"""The facts that a plan is made from: cuts, randomness, entries in the store, speeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import keras

from reusekit.data import DataSplit
from reusekit.features.bottoms import in_compute_dtype, mask_of
from reusekit.features.entry import Entry
from reusekit.features.frontiers import Frontier, frontier
from reusekit.features.key import FeatureKey, feature_keys
from reusekit.features.randomness import Randomness, random_before
from reusekit.features.source import example_batches
from reusekit.features.store import FeatureStore
from reusekit.graph import Flops, Graph, Tensor, ancestors, count_flops
from reusekit.planning.costs import REHEARSED_BATCHES, Costs, Rehearsal, measure, rehearse
from reusekit.planning.planned import Extraction, Trials
from reusekit.surgery import extract

TRAIN, VALIDATION, VIEWS = "train", "validation", "views"
"""The parts of a cut's features: training examples, validation examples, augmented views."""

_REHEARSED = 32  # examples


@dataclass(eq=False)
class CutFacts:
    """The facts about one cut's features; prints as the cut is named in notes.

    Attributes:
        frontier: The cut, with its pooling.
        calls: The calls that compute it from the inputs, by index.
        flops: FLOPs of all of them.
        randomness: What is random before it.
        kept: The parts that may be stored.
        trials: What is trained on them.
        found: The parts that are in the store, with their entries: several for several views.
        example_bytes: Bytes of one example with its label.
        activations: Bytes of one example in the trained part, both ways.
        unsteady: Whether the features are random in inference too.
    """

    at: str
    frontier: Frontier
    calls: frozenset[int]
    flops: int
    randomness: Randomness
    kept: frozenset[str]
    trials: tuple[Trials, ...]
    found: dict[str, list[Entry]] = field(default_factory=dict)
    example_bytes: int = 0
    activations: int = 0
    unsteady: bool = False

    @property
    def missing(self) -> frozenset[str]:
        """The parts that may be stored and are not."""
        return self.kept - self.found.keys()

    @property
    def entries(self) -> list[Entry]:
        """Entries of all parts."""
        return [entry for entries in self.found.values() for entry in entries]

    @property
    def augmented(self) -> bool:
        """True where training examples are augmented before the cut."""
        return bool(self.randomness.augmenting)

    @property
    def may_run(self) -> bool:
        """True where the bottom may have to run for it."""
        return len(self.kept) < 2 or bool(self.missing)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that cross or are stored."""
        return tuple(dict.fromkeys((*self.frontier.crossing, *self.frontier.stored)))

    def __str__(self) -> str:
        pooling = self.frontier.pooling
        return f"{self.at!r} ({pooling})" if pooling else repr(self.at)


@dataclass(frozen=True, eq=False)
class Facts:
    """All that is known before anything is chosen.

    Attributes:
        cuts: Shallow to deep; of one the whole maps before the pooled ones.
        rows: How many examples each part has.
        costs: The speeds, for the deepest of the cuts.
        flops: FLOPs of each call, by index.
        input_bytes: Of one example's inputs and label; 0 where nothing has to run.
    """

    cuts: Sequence[CutFacts]
    rows: Mapping[str, int]
    costs: Costs
    flops: Sequence[int]
    input_bytes: int


def survey(
    graph: Graph,
    trials: Sequence[Trials],
    splits: Mapping[str, DataSplit],
    store: FeatureStore,
    extraction: Extraction,
    costs: Costs | None = None,
) -> Facts:
    """Return the facts, with the speeds measured that are not known.

    Args:
        graph: The backbone.
        trials: What is to be trained.
        splits: The examples to train on, and those for validation.
        store: Where entries are looked for; its disk is measured.
        extraction: The settings under which features are computed.
        costs: The speeds, where they are known.
    """
    flops = count_flops(graph)
    cuts = _cuts(graph, flops, trials, extraction)
    rows = {part: split.size for part, split in splits.items()}
    rows[VIEWS] = extraction.views * rows[TRAIN]
    for part in rows:
        _find(cuts, part, splits[TRAIN if part == VIEWS else part], store, extraction)
    rehearsal = _rehearsed(graph, cuts, splits[TRAIN], extraction)
    ran = frozenset().union(*(one.calls for one in cuts if one.may_run))
    for one in cuts:
        _complete(one, rehearsal, flops, extraction)
    if costs is None or (costs.bottom_seconds is None and rehearsal is not None):
        run = sum(flops.per_call[call] for call in ran)
        costs = costs or measure(store, rehearsal, run)
        if rehearsal is not None:  # the deepest cut may be stored already
            deepest = max(one.flops for one in cuts)
            costs = replace(
                costs,
                bottom_seconds=rehearsal.bottom_seconds * (deepest / run if run else 1),
                input_seconds=rehearsal.input_seconds,
            )
    input_bytes = rehearsal.input_bytes + rehearsal.label_bytes if rehearsal else 0
    cuts.sort(key=lambda one: (one.flops, len(one.calls), one.frontier.pooling or ""))
    return Facts(cuts, rows, costs, flops.per_call, input_bytes)


def _cuts(
    graph: Graph, flops: Flops, trials: Sequence[Trials], extraction: Extraction
) -> list[CutFacts]:
    cuts = []
    for at, pooling in dict.fromkeys((each.at, each.pooling) for each in trials):
        one = frontier(graph, at, pooling, extraction.mask, carries_mask=True)
        masks = set() if one.mask is None else {one.mask}
        calls = ancestors(graph, {*one.crossing, *one.stored, *masks})
        found = random_before(graph, one.crossing)
        kept = set() if found.always else {TRAIN, VALIDATION}
        if kept and found.augmenting:
            kept = {VALIDATION}
            if extraction.views and not found.unseeded:  # else it could not be made again
                kept.add(VIEWS)
        wanted = tuple(each for each in trials if (each.at, each.pooling) == (at, pooling))
        indices = frozenset(call.index for call in calls if not call.is_input)
        cost = sum(flops.per_call[call] for call in indices)
        cuts.append(CutFacts(at, one, indices, cost, found, frozenset(kept), wanted))
    return cuts


def _find(
    cuts: Sequence[CutFacts],
    part: str,
    split: DataSplit,
    store: FeatureStore,
    extraction: Extraction,
) -> None:
    """Look for the entries of a part that are stored already."""
    those = [one for one in cuts if part in one.kept]
    frontiers = [one.frontier for one in those]
    runs: list[list[FeatureKey]] = []
    if part == VIEWS:
        frontiers = [replace(one, stored=one.crossing) for one in frontiers]
        for view in range(extraction.views):
            entropy = (view, extraction.seed, extraction.batch_size)
            runs.append(feature_keys(frontiers, split, **extraction.naming, view=entropy))
    else:
        runs.append(feature_keys(frontiers, split, **extraction.naming))
    for one, *keys in zip(those, *runs, strict=True):
        entries = [entry for key in keys if (entry := store.get(key)) is not None]
        if len(entries) == len(keys):
            one.found[part] = entries


def _rehearsed(
    graph: Graph, cuts: Sequence[CutFacts], train: DataSplit, extraction: Extraction
) -> Rehearsal | None:
    """Run the first batch through the bottoms that may be needed; None where none is."""
    tensors = {tensor.address: tensor for one in cuts if one.may_run for tensor in one.tensors}
    if not tensors:
        return None
    if extraction.compute_dtype is not None:
        graph = in_compute_dtype(graph, extraction.compute_dtype)
    bottom = extract(graph, {address: address for address in tensors})
    size = min(extraction.batch_size, _REHEARSED)
    stop = min(train.size, REHEARSED_BATCHES * size)
    return rehearse(bottom, example_batches(train, 0, stop, extraction.padding, size))


def _complete(
    one: CutFacts, rehearsal: Rehearsal | None, flops: Flops, extraction: Extraction
) -> None:
    """Add the sizes of a cut's examples, and whether they are random in inference too."""
    seen = rehearsal.unsteady if rehearsal else ()
    one.unsteady = bool(one.randomness.always) or any(t.address in seen for t in one.tensors)
    if one.unsteady:
        one.kept = frozenset()
    at, graph = one.frontier, one.frontier.graph
    if one.entries:
        one.example_bytes = one.entries[0].row_bytes
    else:
        assert rehearsal is not None  # what is not stored was rehearsed
        one.example_bytes = rehearsal.label_bytes
        for tensor in at.stored:
            spec = rehearsal.outputs[tensor.address]
            if at.pooling is not None:
                pooled = extract(graph, tensor.address, at.pooling, mask_of(at))
                spec = replace(spec, shape=pooled.output_shape[1:])
            if extraction.dtype is not None and keras.backend.is_float_dtype(spec.dtype):
                spec = replace(spec, dtype=extraction.dtype)
            one.example_bytes += spec.row_bytes
    if at.pooling is not None:
        one.activations = 4 * one.example_bytes
    else:  # at most the whole top
        after = (call for call in graph.calls if at.cut.top[call.index])
        made = sum(math.prod(flops.shapes[t]) for call in after for t in call.outputs)
        one.activations = 2 * (one.example_bytes + 4 * made)
