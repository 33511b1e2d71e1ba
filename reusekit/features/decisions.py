"""The consequences of a choice of entries: the way to each cut, and its seconds."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from reusekit.features.choice import INPUTS, TRAIN, VALIDATION, VIEWS, Problem, Use
from reusekit.features.explanation import notes, reason
from reusekit.features.plan import Plan, PlannedFeatures, PlannedGroup
from reusekit.features.supply import Name, Recipe, Supply
from reusekit.features.survey import Survey
from reusekit.features.together import Schedule, Work, schedule


@dataclass(frozen=True, eq=False)
class Decisions:
    """The consequences of a choice of entries, for every cut and for the training.

    Attributes:
        survey: What it was chosen from.
        problem: The same in numbers.
        stored: The places of the candidates that are stored.
    """

    survey: Survey
    problem: Problem
    stored: frozenset[int]

    @cached_property
    def names(self) -> dict[Name, int]:
        """The place of each cut among the candidates."""
        return {name: place for place, name in enumerate(self.survey.frontiers, start=1)}

    @cached_property
    def uses(self) -> list[Use]:
        """The way to each candidate, in seconds."""
        return self.problem.uses(self.stored)

    @cached_property
    def name_of(self) -> dict[int | None, Name]:
        """The cut at each place."""
        return {place: name for name, place in self.names.items()}

    def how(self, place: int, part: str) -> str:
        """Return the way to a candidate's training or validation features."""
        candidate = self.problem.candidates[place]
        if part == TRAIN and VIEWS in candidate.kept and place in self.stored:
            return "views"
        if place not in self.stored or part not in candidate.kept:
            return "recompute"
        if part not in candidate.missing:
            return "stored"
        return "tap" if self.uses[place].derived is None else "derive"

    @cached_property
    def from_inputs(self) -> bool:
        """Return whether anything is computed from the model's inputs for every batch."""
        return self.problem.from_inputs(self.stored, self.uses)

    def varies(self, place: int) -> bool:
        """Return whether training features vary from pass to pass unless views are stored."""
        return self.problem.candidates[place].augmented or self.unsteady(place)

    def unsteady(self, place: int) -> bool:
        """Return whether a cut's features are random in inference too."""
        return self.survey.unsteady(self.name_of[place])

    @cached_property
    def inputs(self) -> str:
        """The way to the inputs, as `Supply` takes it."""
        if INPUTS in self.stored:
            return "stored"
        return "held" if self.problem.fits_memory(INPUTS) else "read"

    @cached_property
    def in_memory(self) -> frozenset[int]:
        """The candidates read into memory: smallest first, half the memory in all."""
        room = self.problem.memory / 2
        if self.from_inputs and self.inputs == "held":
            room -= self.problem.bytes_of_inputs
        held = set()
        for place in sorted(self.stored - {INPUTS}, key=self.problem.bytes):
            if VIEWS not in self.problem.candidates[place].kept:
                room -= self.problem.bytes(place)
                if room < 0:
                    break
                held.add(place)
        return frozenset(held)

    @cached_property
    def schedules(self) -> dict[int, list[Schedule]]:
        """The schedules of the training on each candidate's features."""
        held = sum(self.problem.bytes(place) for place in self.in_memory)
        if self.from_inputs and self.inputs == "held":
            held += self.problem.bytes_of_inputs
        return {
            place: [
                schedule(
                    work,
                    self.problem.rows,
                    self.uses[place].train,
                    self.uses[place].validation,
                    self.problem.costs,
                    self.problem.memory - held,
                )
                for work in self.problem.candidates[place].works
            ]
            for place in self.names.values()
        }

    # --- the plan -------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Return all of it."""
        features = tuple(self._features(name, place) for name, place in self.names.items())
        groups = tuple(self._groups())
        planned: tuple[PlannedFeatures | PlannedGroup, ...] = (*features, *groups)
        inputs = self.uses[INPUTS].make if INPUTS in self.stored else 0.0
        if self.from_inputs and self.inputs == "held":
            inputs = self.problem.input_rows * self.problem.costs.input_seconds
        return Plan(
            features=features,
            groups=groups,
            costs=self.problem.costs,
            seconds=inputs + sum(one.seconds for one in planned),
            plain_seconds=self._plain_seconds(),
            bytes=sum(self.problem.bytes(place) for place in self.stored),
            notes=tuple(notes(self)),
            _obtain=self._supply().obtain,
        )

    def _features(self, name: Name, place: int) -> PlannedFeatures:
        use, schedules = self.uses[place], self.schedules[place]
        train, validation = self.how(place, TRAIN), self.how(place, VALIDATION)
        source = None
        if "derive" in (train, validation):
            source = self.name_of[use.derived][0]
        elif "recompute" in (train, validation) and not self.varies(place):
            source = None if use.source == INPUTS else self.name_of[use.source][0]
        return PlannedFeatures(
            at=name[0],
            pooling=name[1],
            how=train,
            validation=validation,
            source=source,
            bytes=self.problem.bytes(place) if place in self.stored else 0,
            seconds=use.make + sum(one.features for one in schedules),
            reason=reason(self, place),
            in_memory=place in self.in_memory,
        )

    def _groups(self) -> Iterator[PlannedGroup]:
        for name, place in self.names.items():
            works = self.problem.candidates[place].works
            for work, one in zip(works, self.schedules[place], strict=True):
                yield PlannedGroup(
                    *name, work.batch_size, work.count, one.together, one.training, one.reason
                )

    def _plain_seconds(self) -> float | None:
        """Run each trial alone, the bottom run for every example in every pass."""
        problem = self.problem
        if problem.costs.bottom_seconds is None:
            return None
        total = 0.0
        for place in self.names.values():
            candidate = problem.candidates[place]
            one = problem.costs.input_seconds + problem.seconds(candidate.calls)
            for work in candidate.works:
                for trials in work.trials:
                    alone = Work((replace(trials, count=1),), work.activations)
                    plain = schedule(alone, problem.rows, one, one, problem.costs, problem.memory)
                    total += trials.count * (plain.features + plain.training)
        return total

    @property
    def window(self) -> int:
        """Return the number of examples whose inputs may be in memory to be shuffled."""
        size = max(1, self.problem.candidates[INPUTS].example_bytes)
        return int(self.problem.memory / 4 / size)

    def _supply(self) -> Supply:
        survey = self.survey
        recipes = {
            name: Recipe(
                frontier=survey.frontiers[name],
                train=self.how(place, TRAIN),
                validation=self.how(place, VALIDATION),
                derived=self.name_of.get(self.uses[place].derived),
                source=self.name_of.get(self.uses[place].source),
                varies=self.varies(place),
                in_memory=place in self.in_memory,
            )
            for name, place in self.names.items()
        }
        return Supply(
            graph=survey.graph,
            store=survey.store,
            recipes=recipes,
            options=survey.options,
            batch_size=survey.batch_size,
            seed=survey.seed,
            views=survey.views,
            inputs=self.inputs,
            window=self.window,
            entries=[entry for entries in survey.found.values() for entry in entries],
        )
