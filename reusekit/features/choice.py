"""The choice of the features to store where not all fit: arithmetic on known costs.

Storing a cut's features costs its part of one pass over the data and the writing; each pass over
them then costs reading. Not storing them costs, in each pass, the calls from the nearest cut that
is stored, or from the inputs. The choice is the set of cuts that takes the fewest seconds in all,
after Nautilus (Nakandala and Kumar, SIGMOD 2022), which solves the same problem as an integer
program with fixed speeds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

from reusekit.features.costs import Costs
from reusekit.features.together import Work, schedule

TRAIN, VALIDATION, VIEWS = "train", "validation", "views"
"""What may be computed of a cut: the features of the training examples, those of the validation
examples, and those of augmented training examples."""

PARTS = (TRAIN, VALIDATION, VIEWS)

INPUTS = 0
"""The place of the model's inputs among the candidates."""

MOST_EXHAUSTIVE = 10
"""Among so many candidates all sets are compared; among more, one is moved at a time."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """Features that may be stored.

    Attributes:
        calls: The calls that compute them from the inputs, by index.
        example_bytes: Bytes of one example.
        kept: Which of `TRAIN`, `VALIDATION` and `VIEWS` are stored if they are stored at all.
        missing: Which of these are not stored yet.
        sources: The places of the candidates that they can be computed from.
        augmented: Whether training examples are augmented on the way.
        works: What is trained on them, by batch size.
    """

    calls: frozenset[int]
    example_bytes: int
    kept: frozenset[str]
    missing: frozenset[str]
    sources: frozenset[int] = frozenset()
    augmented: bool = False
    works: tuple[Work, ...] = ()


@dataclass(frozen=True)
class Use:
    """The way to the features of one candidate.

    Attributes:
        derived: The place of what they are derived from once; None if they are tapped or there.
        source: The place of what they are computed from for each batch; `INPUTS` for the inputs.
        train: Seconds of one training example in each pass.
        validation: Seconds of one validation example in each pass.
        make: Seconds to compute and to write them, once.
    """

    derived: int | None
    source: int
    train: float
    validation: float
    make: float


@dataclass(frozen=True, eq=False)
class Problem:
    """The facts known before the choice.

    Attributes:
        candidates: The model's inputs first, then the cuts' features, shallow to deep.
        rows: How many examples `TRAIN`, `VALIDATION` and all `VIEWS` have.
        flops: FLOPs of each call of the model, by index.
        costs: The speeds.
        disk: Bytes that the features may take.
        memory: Bytes that training and what is read into memory may take.
    """

    candidates: Sequence[Candidate]
    rows: dict[str, int]
    flops: Sequence[int]
    costs: Costs
    disk: float
    memory: float

    def bytes(self, place: int) -> int:
        """Return the bytes of a candidate when it is stored."""
        candidate = self.candidates[place]
        return candidate.example_bytes * sum(self.rows[part] for part in candidate.kept)

    def seconds(self, calls: frozenset[int], done: frozenset[int] = frozenset()) -> float:
        """Return the seconds of some calls on one example by FLOPs, without those already done."""
        if self.costs.bottom_seconds is None or calls <= done:
            return 0.0
        if not self._deepest:  # a bottom of which no call has FLOPs
            return self.costs.bottom_seconds
        if (calls, done) not in self._counted:  # asked again for every set of candidates
            self._counted[calls, done] = sum(self.flops[call] for call in calls - done)
        return self.costs.bottom_seconds * self._counted[calls, done] / self._deepest

    @cached_property
    def _counted(self) -> dict[tuple[frozenset[int], frozenset[int]], int]:
        return {}

    @cached_property
    def _deepest(self) -> int:
        return max(sum(self.flops[call] for call in one.calls) for one in self.candidates)

    def between(self, source: int, place: int) -> float:
        """Return the seconds to compute one example of a candidate from one of another."""
        return self.seconds(self.candidates[place].calls, self.candidates[source].calls)

    @property
    def input_rows(self) -> int:
        """Return the number of examples whose inputs are read in a pass over all of them."""
        return self._rows((TRAIN, VALIDATION))

    @property
    def bytes_of_inputs(self) -> int:
        """Bytes of all inputs, stored or not."""
        return self.input_rows * self.candidates[INPUTS].example_bytes

    def fits_memory(self, place: int) -> bool:
        """Return whether a candidate may be read into memory; the rest is for training."""
        size = self.bytes_of_inputs if place == INPUTS else self.bytes(place)
        return size <= self.memory / 2

    def read(self, place: int) -> float:
        """Return the seconds to read one stored example in each pass."""
        costs = self.costs
        fast = self.fits_memory(place)
        speed = costs.gather_bytes_per_second if fast else costs.read_bytes_per_second
        return self.candidates[place].example_bytes / speed

    def read_input(self, stored: frozenset[int]) -> float:
        """Return the seconds to read one example of the model's inputs in each pass."""
        if INPUTS in stored or self.fits_memory(INPUTS):
            return self.read(INPUTS)
        return self.costs.input_seconds

    def compute(self, place: int, stored: frozenset[int]) -> tuple[float, int]:
        """Return the seconds to compute one unaugmented example in each pass, and its source."""
        candidate = self.candidates[place]
        options = [(self.read_input(stored) + self.between(INPUTS, place), INPUTS)]
        for source in candidate.sources & stored:
            options.append((self.read(source) + self.between(source, place), source))
        return min(options, key=lambda option: (option[0], -option[1]))

    def derived(self, stored: frozenset[int]) -> dict[int, tuple[float, int]]:
        """Return the candidates that are derived from stored ones rather than tapped.

        Returns:
            From the place of each such candidate to the seconds of one example and to the place of
            what it is derived from: stored already, or tapped or derived just before.
        """
        there = {place for place in stored if not self.candidates[place].missing}
        wanted = [p for p in sorted(stored - there) if self.candidates[p].sources & there]
        if not wanted:
            return {}
        others = [p for p in sorted(stored - there) if p not in wanted]
        options: list[tuple[float, dict]] = []
        # The shallow ones are tapped and the deep ones derived, or all are one or the other.
        for border in range(len(wanted) + 1):
            tapped = others + wanted[:border]
            known, found = there.union(tapped), {}
            for place in wanted[border:]:
                found[place] = min(
                    (self._derive(place, source), source)
                    for source in self.candidates[place].sources & known
                )
                known.add(place)
            rows = {p: self._rows(self.candidates[p].missing - {VIEWS}) for p in found}
            seconds = sum(self._tap(tapped).values())
            seconds += sum(rows[place] * one for place, (one, _) in found.items())
            options.append((seconds, found))
        return min(options, key=lambda option: option[0])[1]

    def _derive(self, place: int, source: int) -> float:
        """Return the seconds to derive one example from a source on the disk."""
        read = self.candidates[source].example_bytes / self.costs.read_bytes_per_second
        return read + self.between(source, place)

    def _tap(self, places: Iterable[int], parts: Iterable[str] = PARTS) -> dict[int, float]:
        """Return the seconds that each candidate adds to the pass that taps some candidates."""
        paid = dict.fromkeys(places, 0.0)
        for part in parts:
            done: frozenset[int] | None = None
            for place in sorted(paid):
                if part not in self.candidates[place].missing:
                    continue
                calls = self.candidates[place].calls
                one = self.seconds(calls, done or frozenset())
                if done is None:
                    one += self.costs.input_seconds
                done = calls if done is None or done <= calls else done | calls
                paid[place] += self.rows[part] * one
        return paid

    def _rows(self, parts: Iterable[str]) -> int:
        return sum(self.rows[part] for part in parts)

    def uses(self, stored: frozenset[int]) -> list[Use]:
        """Return the way to each candidate where some are stored."""
        derived = self.derived(stored)
        tapped = self._tap(stored - derived.keys())
        # A derived cut's augmented views are not derived.
        views = self._tap(derived, [VIEWS])
        found = []
        for place, candidate in enumerate(self.candidates):
            computed, source = self.compute(place, stored)
            use = Use(None, source, computed, computed, 0.0)
            if candidate.augmented:
                augmented = self.read_input(stored) + self.between(INPUTS, place)
                use = replace(use, train=augmented)
            if place in stored:
                read = self.read(place)
                train = read if candidate.kept & {TRAIN, VIEWS} else use.train
                written = self._rows(candidate.missing) * candidate.example_bytes
                make = written / self.costs.write_bytes_per_second
                if place in derived:
                    one, from_ = derived[place]
                    make += self._rows(candidate.missing - {VIEWS}) * one + views[place]
                    use = Use(from_, source, train, read, make)
                else:
                    use = Use(None, source, train, read, make + tapped[place])
            found.append(use)
        return found

    def from_inputs(self, stored: frozenset[int], uses: Sequence[Use]) -> bool:
        """Return whether anything is computed from the model's inputs for every batch."""
        for place, (candidate, use) in enumerate(zip(self.candidates, uses, strict=True)):
            there = candidate.kept if place in stored else frozenset()
            read = TRAIN in there or VIEWS in there
            if candidate.works and not read and (candidate.augmented or use.source == INPUTS):
                return True
            if candidate.works and VALIDATION not in there and use.source == INPUTS:
                return True
        return False

    def total(self, stored: frozenset[int]) -> float:
        """Return the seconds of everything where some candidates are stored."""
        uses = self.uses(stored)
        seconds = sum(use.make for use in uses)
        for candidate, use in zip(self.candidates, uses, strict=True):
            for work in candidate.works:
                one = schedule(work, self.rows, use.train, use.validation, self.costs, self.memory)
                seconds += one.features + one.training
        if self.from_inputs(stored, uses) and INPUTS not in stored and self.fits_memory(INPUTS):
            seconds += self.input_rows * self.costs.input_seconds
        return seconds


def choose(problem: Problem) -> frozenset[int]:
    """Return the candidates to store: of all sets that fit, the one that takes the fewest seconds.

    What is stored already stays. Of sets that take the same time, the one with more features.
    """
    there = frozenset(
        place for place, one in enumerate(problem.candidates) if one.kept and not one.missing
    )
    open_ = [place for place, one in enumerate(problem.candidates) if one.missing]
    if len(open_) <= MOST_EXHAUSTIVE:
        sets = (
            there.union(some)
            for count in range(len(open_), -1, -1)
            for some in combinations(open_, count)
        )
        fitting = [some for some in sets if some == there or _fits(problem, some)]
        return min(fitting, key=problem.total)
    found = (_taken_out(problem, there, open_), _put_in(problem, there, open_))
    return min(found, key=problem.total)


def _fits(problem: Problem, places: Iterable[int]) -> bool:
    return sum(problem.bytes(place) for place in places) <= problem.disk


def _taken_out(problem: Problem, there: frozenset[int], open_: Sequence[int]) -> frozenset[int]:
    """Begin with all and take out, one by one, what costs the fewest seconds for each byte."""
    chosen = there.union(open_)
    while chosen != there:
        total = problem.total(chosen)
        losses = {
            place: (problem.total(chosen - {place}) - total) / max(1, problem.bytes(place))
            for place in chosen - there
        }
        place = min(losses, key=losses.__getitem__)
        if losses[place] >= 0 and _fits(problem, chosen):
            break
        chosen -= {place}
    return chosen


def _put_in(problem: Problem, there: frozenset[int], open_: Sequence[int]) -> frozenset[int]:
    """Begin with none and put in, one by one, what saves the most seconds for each byte."""
    chosen = there
    while True:
        total = problem.total(chosen)
        savings = {
            place: (total - problem.total(chosen | {place})) / max(1, problem.bytes(place))
            for place in open_
            if place not in chosen and _fits(problem, chosen | {place})
        }
        place = max(savings, key=savings.__getitem__, default=None)
        if place is None or savings[place] <= 0:
            return chosen
        chosen |= {place}
