"""The rule of a plan: what to store, and how many trials to train in one pass.

Store what costs less to make, write and read than to compute in every pass. Where room is short,
what saves the most seconds a byte comes first.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from reusekit.features.frontiers import Frontier
from reusekit.features.randomness import Randomness
from reusekit.planning.costs import Costs
from reusekit.planning.planned import PlannedGroup, Trials
from reusekit.planning.workers import PlannedPass

TRAIN, VALIDATION, VIEWS = "train", "validation", "views"
"""The parts of a cut's features: training examples, validation examples, augmented views."""

PARAMETER_BYTES = 16
"""Of a trained float32 parameter: itself, its gradient and Adam's two moments."""

VALIDATION_BATCH = 256
"""Validation examples a step: it decides speed and memory, not numbers."""

_TRACES = 2
"""How many times as long as a bottom a trained part of it takes to trace, with its gradients."""

_LITTLE = 0.05  # a share of a step that is not worth the memory


@dataclass(eq=False)
class CutFacts:
    """The facts about one cut's features; prints as the cut is named in notes.

    Attributes:
        calls: The calls that compute it from the inputs, by index.
        flops: FLOPs of all of them.
        top: Bytes that one example takes at most in what is trained on whole maps.
        kept: The parts that may be stored.
        missing: Those of them that are not in the store.
        known: How many examples of each of these other entries of the store hold.
        there: Bytes of its entries in the store.
        example_bytes: Bytes of one example with its label.
        unsteady: Whether the features are random in inference too.
    """

    frontier: Frontier
    trials: Sequence[Trials]
    calls: frozenset[int]
    flops: int
    top: int
    randomness: Randomness
    kept: set[str]
    missing: set[str] = field(default_factory=set)
    known: dict[str, int] = field(default_factory=dict)
    there: int = 0
    example_bytes: int = 0
    unsteady: bool = False

    @property
    def activations(self) -> int:
        """Bytes of one example in the trained part, both ways."""
        return 2 * (
            self.example_bytes + (self.example_bytes if self.frontier.pooling else self.top)
        )

    @property
    def may_run(self) -> bool:
        """True where the bottom may have to run for it."""
        return len(self.kept) < 2 or bool(self.missing)

    @property
    def reads_training(self) -> bool:
        """True where training reads it from the store, if it is stored."""
        return bool(self.kept & {TRAIN, VIEWS})

    def __str__(self) -> str:
        at, pooling = self.trials[0].at, self.trials[0].pooling
        return f"{at!r} ({pooling})" if pooling else repr(at)


def schedule(
    trials: Sequence[Trials],
    activations: int,
    rows: Mapping[str, int],
    reading: float,
    costs: Costs,
    memory: float,
) -> PlannedGroup:
    """Return the number of trials to train in one pass over the same batches.

    One pass for several trials reads or computes the features once for all of them, which takes
    `reading` seconds. Each trial is built and traced, starts its own steps, of which as many as
    there are cores run at a time, and has its own work and that of its optimizer.

    Args:
        trials: Trials of one cut, pooling and batch size.
        activations: Bytes that one example takes in what a trial trains.
        rows: How many examples there are to train and for validation.
        reading: Seconds of the features in one pass.
        costs: The speeds.
        memory: Bytes for training.
    """
    size, count = trials[0].batch_size, sum(each.count for each in trials)
    steps, checks = math.ceil(rows[TRAIN] / size), math.ceil(rows[VALIDATION] / VALIDATION_BATCH)
    building = sum(
        each.count * (costs.trial_seconds + _TRACES * costs.trace_seconds * (each.flops > 0))
        for each in trials
    )
    # Backwards costs twice what forwards does.
    examples = 3 * rows[TRAIN] + rows[VALIDATION]
    own = sum(
        each.count
        * each.epochs
        * (
            examples * each.flops * costs.seconds_per_flop
            + steps * each.parameters * costs.seconds_per_parameter
        )
        for each in trials
    )
    epochs = max(each.epochs for each in trials)
    starting = (steps + checks) * costs.step_overhead
    share = reading + starting
    share = share / (share + own / count / epochs) if share else 0.0
    one_takes = PARAMETER_BYTES * max(each.parameters for each in trials) + size * activations
    fit = max(1, int(memory // max(1, one_takes)))
    most, reason = count, f"{share:.0%} of a step, features and overhead, is shared"
    if share < _LITTLE:
        # Enough to keep each core busy with one, and one more that is ready to go on.
        most = costs.cores + 1 if costs.cores > 1 else 1
        reason = f"{1 - share:.0%} of a step is each trial's own work"
        reason += ", too small for all cores" if most > 1 else ": little to share"
    if count == 1:
        reason = "a single trial"
    elif fit < min(most, count):
        reason += f"; memory holds {fit} of {one_takes / 1e6:,.0f} MB each"
    together = math.ceil(count / math.ceil(count / min(fit, most, count)))
    passes = math.ceil(count / together) * epochs
    # The small operations of as many trials as there are cores run at the same time.
    starting *= max(1, together / costs.cores)
    return PlannedGroup(
        at=trials[0].at,
        pooling=trials[0].pooling,
        batch_size=size,
        count=count,
        together=together,
        passes=passes,
        feature_seconds=passes * reading,
        seconds=building + passes * starting + own,
        reason=reason,
        shared=epochs * (reading + starting),
    )


@dataclass(frozen=True, eq=False)
class Decision:
    """The rule applied to the facts.

    Attributes:
        cuts: Shallow to deep; of one the whole maps before the pooled ones.
        rows: How many examples each part has.
        costs: The speeds, for the deepest of the cuts.
        flops: FLOPs of each call, by index.
        input_bytes: Of one example's inputs and label; 0 where nothing has to run.
        memory: Bytes for training and for what is read into memory.
        disk: Bytes for features.
        chosen: The cuts to store, where the disk is shared with other backbones; see `stored_of`.
        length_share: The share of all positions of texts that the one pass computes.
    """

    cuts: Sequence[CutFacts]
    rows: Mapping[str, int]
    costs: Costs
    flops: Sequence[int]
    input_bytes: int
    memory: float
    disk: float
    chosen: frozenset[CutFacts] | None = None
    length_share: float = 1.0

    @cached_property
    def stored(self) -> frozenset[CutFacts]:
        """The cuts whose features are in the store already, or are to be stored."""
        return stored_of([self], self.disk) if self.chosen is None else self.chosen

    @property
    def open(self) -> list[CutFacts]:
        """The cuts that may be stored and are not."""
        return [one for one in self.cuts if one.missing]

    @cached_property
    def crowded(self) -> list[CutFacts]:
        """The cuts that would be stored if there were room."""
        return [one for one in self.open if one not in self.stored and self.saved(one) > 0]

    def saved(self, one: CutFacts) -> float:
        """Return the seconds that storing a cut saves; what was not measured is taken for slow."""
        stored, computed = self.seconds(one, stored=True), self.seconds(one, stored=False)
        return math.inf if computed is None or stored is None else computed - stored

    def bytes(self, one: CutFacts) -> int:
        """Return the bytes of a cut's features when they are stored."""
        return one.example_bytes * sum(self.rows[part] for part in one.kept)

    # --- seconds of one example -----------------------------------------------------------------

    def bottom(self, calls: frozenset[int], done: frozenset[int] = frozenset()) -> float:
        """Return the seconds of some calls on one example by FLOPs, without those already done."""
        seconds = self.costs.bottom_seconds
        if seconds is None or calls <= done:
            return 0.0
        # Of a bottom whose calls have no FLOPs, any of it takes all the time.
        deepest = max(one.flops for one in self.cuts)
        return seconds * sum(self.flops[c] for c in calls - done) / deepest if deepest else seconds

    @property
    def _input_seconds(self) -> float:
        if self.inputs_fit:  # read once for all cuts, stored or computed, and held
            return self.input_bytes / self.costs.gather_bytes_per_second
        return self.costs.input_seconds

    def compute(self, one: CutFacts, part: str = VALIDATION) -> float:
        """Return the seconds to compute one example of a part from the inputs."""
        return self._input_seconds + self._augmenting(part) + self.bottom(one.calls)

    def _augmenting(self, part: str) -> float:
        return 0.0 if part == VALIDATION else self.costs.augment_seconds

    def read(self, one: CutFacts) -> float:
        """Return the seconds to read one stored example."""
        held = self.bytes(one) <= self.memory / 2
        gather, disk = self.costs.gather_bytes_per_second, self.costs.read_bytes_per_second
        return one.example_bytes / (gather if held else disk)

    # --- seconds of all passes ------------------------------------------------------------------

    def seconds(self, one: CutFacts, stored: bool) -> float | None:
        """Return the seconds of all that is trained on a cut, its features stored or computed.

        None where they may not be stored, and where the bottom was not measured.
        """
        if not one.kept if stored else self.costs.bottom_seconds is None:
            return None
        groups = self.groups(one, stored, self.memory)
        seconds = sum(group.feature_seconds + group.seconds for group in groups)
        return seconds + (self._expected[one] if stored and one.missing else 0.0)

    @cached_property
    def _expected(self) -> dict[CutFacts, float]:
        return self._making(self.open, self._input_seconds)

    @cached_property
    def making(self) -> dict[CutFacts, float]:
        """The seconds to make and write each cut that is stored."""
        chosen = [one for one in self.open if one in self.stored]
        return self._making(chosen, self.costs.input_seconds)

    def _making(self, cuts: Iterable[CutFacts], input_seconds: float) -> dict[CutFacts, float]:
        """Return the seconds that each cut, shallow to deep, adds to the one pass, and to write."""
        paid = dict.fromkeys(cuts, 0.0)
        for part, rows in self.rows.items():
            done: frozenset[int] = frozenset()
            reading = input_seconds + self._augmenting(part)
            for one in paid:
                if part in one.missing:
                    writing = one.example_bytes / self.costs.write_bytes_per_second
                    copying = one.example_bytes / self.costs.read_bytes_per_second
                    known = one.known.get(part, 0)
                    running = self.length_share * self.bottom(one.calls, done)
                    paid[one] += (rows - known) * (reading + running)
                    paid[one] += rows * writing + known * copying
                    done, reading = done | one.calls, 0.0
        return paid

    def one_pass(self, batch_size: int) -> PlannedPass:
        """Return the work of the pass that makes what is stored, part by part."""
        examples, reading, bottom, writing, size = 0, 0.0, 0.0, 0.0, 0
        for part, rows in self.rows.items():
            done: frozenset[int] = frozenset()
            made = [one for one in self.open if one in self.stored and part in one.missing]
            for one in made:
                known = one.known.get(part, 0)
                if one is made[0]:
                    examples += rows - known
                    reading += (rows - known) * (self.costs.input_seconds + self._augmenting(part))
                bottom += (rows - known) * self.length_share * self.bottom(one.calls, done)
                writing += rows * one.example_bytes / self.costs.write_bytes_per_second
                writing += known * one.example_bytes / self.costs.read_bytes_per_second
                size += rows * one.example_bytes
                done |= one.calls
        tracing = self.costs.trace_seconds
        return PlannedPass(examples, batch_size, reading, bottom, writing, size, tracing)

    def groups(self, one: CutFacts, stored: bool, memory: float) -> list[PlannedGroup]:
        """Return the groups of a cut's trials, its features stored or computed in every pass."""
        training = self.read(one) if stored and one.reads_training else self.compute(one, TRAIN)
        validation = self.read(one) if stored else self.compute(one)
        reading = self.rows[TRAIN] * training + self.rows[VALIDATION] * validation
        alike: dict[int, list[Trials]] = {}
        for each in one.trials:
            alike.setdefault(each.batch_size, []).append(each)
        return [
            schedule(trials, one.activations, self.rows, reading, self.costs, memory)
            for trials in alike.values()
        ]

    # --- memory ---------------------------------------------------------------------------------

    @property
    def _all_inputs(self) -> int:
        return self.input_bytes * (self.rows[TRAIN] + self.rows[VALIDATION])

    @property
    def inputs_fit(self) -> bool:
        """True where the inputs fit into memory beside training."""
        return self._all_inputs <= self.memory / 2

    @property
    def running(self) -> bool:
        """True where anything is computed from the inputs for every batch."""
        return any(one not in self.stored or not one.reads_training for one in self.cuts)

    @property
    def held_inputs(self) -> int:
        """The bytes of the inputs that are held in memory."""
        return self._all_inputs if self.running and self.inputs_fit else 0

    @cached_property
    def in_memory(self) -> list[CutFacts]:
        """The cuts read into memory: smallest first, half the memory in all."""
        room, held = self.memory / 2 - self.held_inputs, []
        for one in sorted((o for o in self.stored if VIEWS not in o.kept), key=self.bytes):
            room -= self.bytes(one)
            if room < 0:
                break
            held.append(one)
        return held


def stored_of(decisions: Sequence[Decision], disk: float) -> frozenset[CutFacts]:
    """Return the cuts whose features are in the store already, or are to be stored.

    Args:
        decisions: Of each backbone one; they share the disk.
        disk: Bytes for features.
    """
    every = [(one, by) for by in decisions for one in by.cuts if one.kept and not one.missing]
    room = disk - sum(by.bytes(one) for one, by in every)
    chosen = [one for one, _ in every]
    still = [(one, by) for by in decisions for one in by.open]
    for one, by in sorted(still, key=lambda pair: -_saved_a_byte(*pair)):
        if by.saved(one) > 0 and by.bytes(one) <= room:
            chosen.append(one)
            room -= by.bytes(one)
    return frozenset(chosen)


def _saved_a_byte(one: CutFacts, decision: Decision) -> float:
    return decision.saved(one) / max(1, decision.bytes(one))
