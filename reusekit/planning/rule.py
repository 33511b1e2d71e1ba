"""The rule of a plan: what to store, and how many trials to train in one pass.

Store what costs less to make, write and read than to compute in every pass. Where room is short,
what saves the most seconds a byte comes first.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from reusekit.planning.costs import Costs
from reusekit.planning.facts import TRAIN, VALIDATION, VIEWS, CutFacts, Facts
from reusekit.planning.planned import PlannedGroup, Trials

PARAMETER_BYTES = 16
"""Of a trained float32 parameter: itself, its gradient and Adam's two moments."""

_LITTLE = 0.05  # a share of a step that is not worth the memory


def choose(saved: Sequence[float], sizes: Sequence[int], room: float) -> set[int]:
    """Return the features to store, by number.

    Args:
        saved: For each the seconds to compute it in every pass, without those to make, write and
            read it.
        sizes: The bytes of each.
        room: How many bytes there are for all of them.

    Example:
        >>> sorted(choose([9.0, 8.0, -1.0], [10, 10, 1], room=20))
        [0, 1]
        >>> sorted(choose([9.0, 8.0, 8.0], [20, 10, 10], room=20))
        [1, 2]
    """
    chosen = set()
    for number in sorted(range(len(saved)), key=lambda n: -saved[n] / max(1, sizes[n])):
        if saved[number] > 0 and sizes[number] <= room:
            chosen.add(number)
            room -= sizes[number]
    return chosen


def schedule(
    trials: Sequence[Trials],
    activations: int,
    rows: Mapping[str, int],
    reading: float,
    costs: Costs,
    memory: float,
) -> PlannedGroup:
    """Return the number of trials to train in one pass over the same batches.

    One pass for several trials reads or computes the features once for all of them, and starts each
    step once. What each trial computes itself, and its optimizer's work, stays.

    Args:
        trials: Trials of one cut, pooling and batch size.
        activations: Bytes that one example takes in what a trial trains.
        rows: How many examples there are to train and for validation.
        reading: Seconds to read or compute the features of all of them once.
        costs: The speeds.
        memory: Bytes for training.
    """
    size, count = trials[0].batch_size, sum(each.count for each in trials)
    steps = math.ceil(rows[TRAIN] / size)
    own = sum(
        each.count
        * each.epochs
        * (
            # Backwards costs twice what forwards does.
            (3 * rows[TRAIN] + rows[VALIDATION]) * each.flops * costs.seconds_per_flop
            + steps * each.parameters * costs.seconds_per_parameter
        )
        for each in trials
    )
    epochs = max(each.epochs for each in trials)
    starting = (steps + math.ceil(rows[VALIDATION] / size)) * costs.step_overhead
    share = reading + starting
    share = share / (share + own / count / epochs) if share else 0.0
    parameters = max(each.parameters for each in trials)
    one_takes = PARAMETER_BYTES * parameters + size * activations
    fit = max(1, int(memory // max(1, one_takes)))
    if share < _LITTLE:
        # Enough to keep each core busy with one, and one more that is ready to go on.
        most = costs.cores + 1 if costs.cores > 1 else 1
        reason = f"{1 - share:.0%} of a step is each trial's own work"
        reason += ", too small for all cores" if most > 1 else ": little to share"
    else:
        most = count
        reason = f"{share:.0%} of a step, features and overhead, is shared"
    if count == 1:
        together, reason = 1, "a single trial"
    else:
        together = math.ceil(count / math.ceil(count / min(fit, most, count)))
        if fit < min(most, count):
            reason += f"; memory holds {fit} of {one_takes / 1e6:,.0f} MB each"
    passes = math.ceil(count / together) * epochs
    return PlannedGroup(
        at=trials[0].at,
        pooling=trials[0].pooling,
        batch_size=size,
        count=count,
        together=together,
        passes=passes,
        feature_seconds=passes * reading,
        seconds=passes * starting + own,
        reason=reason,
    )


@dataclass(frozen=True, eq=False)
class Decision:
    """The rule applied to the facts.

    Attributes:
        facts: What is known.
        memory: Bytes for training and for what is read into memory.
        disk: Bytes for features.
    """

    facts: Facts
    memory: float
    disk: float

    @cached_property
    def stored(self) -> frozenset[CutFacts]:
        """The cuts whose features are in the store already, or are to be stored."""
        there = [one for one in self.facts.cuts if one.kept and not one.missing]
        saved = [self.saved(one) for one in self.open]
        room = self.disk - sum(map(self.bytes, there))
        chosen = choose(saved, [*map(self.bytes, self.open)], room)
        return frozenset((*there, *(self.open[number] for number in chosen)))

    @cached_property
    def open(self) -> list[CutFacts]:
        """The cuts of which something may be stored and is not."""
        return [one for one in self.facts.cuts if one.missing]

    @cached_property
    def crowded(self) -> list[CutFacts]:
        """The cuts that would be stored if there were room."""
        left = self.disk - sum(map(self.bytes, self.stored))
        those = [one for one in self.open if one not in self.stored]
        return [one for one in those if self.saved(one) > 0 and self.bytes(one) > left]

    def saved(self, one: CutFacts) -> float:
        """Return the seconds that storing a cut saves; what was not measured is taken for slow."""
        stored, computed = self.seconds(one, stored=True), self.seconds(one, stored=False)
        return math.inf if computed is None or stored is None else computed - stored

    def bytes(self, one: CutFacts) -> int:
        """Return the bytes of a cut's features when they are stored."""
        return one.example_bytes * sum(self.facts.rows[part] for part in one.kept)

    # --- seconds of one example -----------------------------------------------------------------

    @cached_property
    def input_bytes(self) -> int:
        """The bytes of all inputs."""
        return self.facts.input_bytes * (self.facts.rows[TRAIN] + self.facts.rows[VALIDATION])

    @property
    def inputs_fit(self) -> bool:
        """True where the inputs fit into memory beside training."""
        return self.input_bytes <= self.memory / 2

    @property
    def _input_seconds(self) -> float:
        costs = self.facts.costs
        if self.inputs_fit:  # read once for all cuts, stored or computed, and held
            return self.facts.input_bytes / costs.gather_bytes_per_second
        return costs.input_seconds

    @cached_property
    def _deepest(self) -> int:
        return max(one.flops for one in self.facts.cuts)

    def bottom(self, calls: frozenset[int], done: frozenset[int] = frozenset()) -> float:
        """Return the seconds of some calls on one example by FLOPs, without those already done."""
        seconds = self.facts.costs.bottom_seconds
        if seconds is None or calls <= done:
            return 0.0
        if not self._deepest:  # a bottom of which no call has FLOPs
            return seconds
        return seconds * sum(self.facts.flops[call] for call in calls - done) / self._deepest

    def compute(self, one: CutFacts) -> float:
        """Return the seconds to compute one example from the inputs."""
        return self._input_seconds + self.bottom(one.calls)

    def read(self, one: CutFacts) -> float:
        """Return the seconds to read one stored example."""
        costs = self.facts.costs
        held = self.bytes(one) <= self.memory / 2
        speed = costs.gather_bytes_per_second if held else costs.read_bytes_per_second
        return one.example_bytes / speed

    # --- seconds of all passes ------------------------------------------------------------------

    @cached_property
    def _shares(self) -> dict[CutFacts, float]:
        return self._shares_of(self.open, self._input_seconds)

    @cached_property
    def making(self) -> dict[CutFacts, float]:
        """The seconds to make and write each cut that is stored."""
        chosen = [one for one in self.open if one in self.stored]
        shares = self._shares_of(chosen, self.facts.costs.input_seconds)
        return {one: share + self._written(one) for one, share in shares.items()}

    def _shares_of(self, cuts: Iterable[CutFacts], input_seconds: float) -> dict[CutFacts, float]:
        """Return the seconds that each cut, shallow to deep, adds to the one pass."""
        paid = dict.fromkeys(cuts, 0.0)
        for part, rows in self.facts.rows.items():
            done: frozenset[int] | None = None
            for one in paid:
                if part in one.missing:
                    seconds = self.bottom(one.calls, done or frozenset())
                    paid[one] += rows * (seconds + (input_seconds if done is None else 0.0))
                    done = one.calls | (done or frozenset())
        return paid

    def _written(self, one: CutFacts) -> float:
        written = one.example_bytes * sum(self.facts.rows[part] for part in one.missing)
        return written / self.facts.costs.write_bytes_per_second

    def seconds(self, one: CutFacts, stored: bool) -> float | None:
        """Return the seconds of all that is trained on a cut, its features stored or computed.

        None where they may not be stored, and where the bottom was not measured.
        """
        if not one.kept if stored else self.facts.costs.bottom_seconds is None:
            return None
        groups = self.groups(one, stored, self.memory)
        seconds = sum(group.feature_seconds + group.seconds for group in groups)
        if stored and one.missing:
            seconds += self._shares[one] + self._written(one)
        return seconds

    def groups(self, one: CutFacts, stored: bool, memory: float) -> list[PlannedGroup]:
        """Return the groups of a cut's trials, its features stored or computed in every pass."""
        seconds = dict.fromkeys((TRAIN, VALIDATION), self.compute(one))
        if stored:
            seconds[VALIDATION] = self.read(one)
            if one.kept & {TRAIN, VIEWS}:
                seconds[TRAIN] = self.read(one)
        reading = sum(self.facts.rows[part] * each for part, each in seconds.items())
        return [
            schedule(
                [each for each in one.trials if each.batch_size == size],
                one.activations,
                self.facts.rows,
                reading,
                self.facts.costs,
                memory,
            )
            for size in dict.fromkeys(each.batch_size for each in one.trials)
        ]

    # --- memory ---------------------------------------------------------------------------------

    @cached_property
    def running(self) -> bool:
        """True where anything is computed from the inputs for every batch."""
        return any(
            one not in self.stored or not one.kept & {TRAIN, VIEWS} for one in self.facts.cuts
        )

    @property
    def held_inputs(self) -> int:
        """The bytes of the inputs that are held in memory."""
        return self.input_bytes if self.running and self.inputs_fit else 0

    @cached_property
    def in_memory(self) -> list[CutFacts]:
        """The cuts read into memory: smallest first, half the memory in all."""
        room = self.memory / 2 - self.held_inputs
        held = []
        for one in sorted(self.stored, key=self.bytes):
            if VIEWS not in one.kept:
                room -= self.bytes(one)
                if room < 0:
                    break
                held.append(one)
        return held
