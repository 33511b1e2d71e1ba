"""The survey that a plan is made from: cuts, randomness, stored entries, speeds."""

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import keras

from reusekit.data import DataSplit
from reusekit.features.bottoms import leads_to, mask_of
from reusekit.features.choice import PARTS, TRAIN, VALIDATION, VIEWS, Candidate, Problem
from reusekit.features.costs import REHEARSED_BATCHES, Costs, Rehearsal, measure, rehearse
from reusekit.features.entry import Entry
from reusekit.features.frontier import Frontier, frontier
from reusekit.features.key import FeatureKey, feature_keys
from reusekit.features.precision import in_compute_dtype
from reusekit.features.randomness import Randomness, random_before
from reusekit.features.store import FeatureStore
from reusekit.features.stored import example_batches
from reusekit.features.supply import Name, inputs_frontier
from reusekit.features.together import Trials, Work
from reusekit.graph import Flops, Graph, Tensor, ancestors, count_flops
from reusekit.graph.padding_mask import AUTO
from reusekit.surgery import extract

_REHEARSED = 32  # examples
_SHARE_OF_DISK = 0.9  # of what is free


@dataclass(frozen=True, eq=False)
class Survey:
    """The request and the facts known of it: depths, randomness, entries, speeds.

    The names of cuts are (`Trials.at`, `Trials.pooling`).
    """

    graph: Graph
    trials: tuple[Trials, ...]
    splits: Mapping[str, DataSplit]
    store: FeatureStore
    options: Mapping[str, Any]
    batch_size: int
    views: int
    seed: int
    mask: Any = AUTO

    @cached_property
    def flops(self) -> Flops:
        """The cost of each call."""
        return count_flops(self.graph)

    @cached_property
    def frontiers(self) -> dict[Name, Frontier]:
        """Shallow to deep; of one cut the whole maps before the pooled ones."""
        names = dict.fromkeys((trials.at, trials.pooling) for trials in self.trials)
        found = {name: self._frontier(*name) for name in names}
        return dict(
            sorted(found.items(), key=lambda item: (self._depth(item[1]), item[0][1] or ""))
        )

    def _frontier(self, at: Any, pooling: str | None) -> Frontier:
        return frontier(self.graph, at, pooling, self.mask, carries_mask=True)

    def _depth(self, one: Frontier) -> tuple[int, int]:
        calls = self.calls(one)
        return sum(self.flops.per_call[call] for call in calls), len(calls)

    def calls(self, one: Frontier) -> frozenset[int]:
        """Return the calls that a cut is computed by."""
        masks = set() if one.mask is None else {one.mask}
        calls = ancestors(self.graph, {*one.crossing, *one.stored, *masks})
        return frozenset(call.index for call in calls if not call.is_input)

    @cached_property
    def randomness(self) -> dict[Name, Randomness]:
        """The randomness before each cut."""
        return {name: random_before(self.graph, f.crossing) for name, f in self.frontiers.items()}

    def rows(self, part: str) -> int:
        """Return the number of examples a part has."""
        if part == VIEWS:
            return self.views * self.splits[TRAIN].size
        return self.splits[part].size

    def kept(self, name: Name) -> frozenset[str]:
        """Return the parts of a cut that may be stored, by the known randomness."""
        found = self.randomness[name]
        if found.always:
            return frozenset()
        if not found.augmenting:
            return frozenset((TRAIN, VALIDATION))
        viewed = self.views and not found.unseeded  # else a view could not be made again
        return frozenset((VIEWS, VALIDATION) if viewed else (VALIDATION,))

    @cached_property
    def found(self) -> dict[tuple[Name, str], list[Entry]]:
        """The entries stored already, by cut and part; several for several views."""
        found: dict[tuple[Name, str], list[Entry]] = {}
        for part in PARTS:
            names = [name for name in self.frontiers if part in self.kept(name)]
            runs = [self._keys(names, part)]
            if part == VIEWS:
                runs = [self._keys(names, part, view) for view in range(self.views)]
            for name, keys in zip(names, zip(*runs, strict=True), strict=True):
                entries = [entry for key in keys if (entry := self.store.get(key)) is not None]
                if len(entries) == len(keys):
                    found[name, part] = entries
        return found

    def _keys(self, names: list[Name], part: str, view: int | None = None) -> list[FeatureKey]:
        frontiers = [self.frontiers[name] for name in names]
        split = self.splits[TRAIN if part == VIEWS else part]
        if view is None:
            return feature_keys(frontiers, split, **self.options)
        whole = [replace(one, stored=one.crossing) for one in frontiers]
        entropy = (view, self.seed, self.batch_size)
        return feature_keys(whole, split, **self.options, view=entropy)

    @cached_property
    def rehearsal(self) -> Rehearsal | None:
        """The measurements of running the first batch through the bottoms that may be needed."""
        running = [name for name in self.frontiers if self._may_run(name)]
        if not running:
            return None
        graph = self.graph
        if self.options["compute_dtype"] is not None:
            graph = in_compute_dtype(graph, self.options["compute_dtype"])
        tensors = {t for name in running for t in self._tensors(name)}
        bottom = extract(graph, {t.address: t.address for t in tensors})
        data, size = self.splits[TRAIN], min(self.batch_size, _REHEARSED)
        stop = min(data.size, REHEARSED_BATCHES * size)
        return rehearse(bottom, example_batches(data, 0, stop, self.options["padding"], size))

    def _tensors(self, name: Name) -> tuple[Tensor, ...]:
        one = self.frontiers[name]
        return tuple(dict.fromkeys((*one.crossing, *one.stored)))

    def _may_run(self, name: Name) -> bool:
        kept = self.kept(name)
        return len(kept) < 2 or any((name, part) not in self.found for part in kept)

    def unsteady(self, name: Name) -> bool:
        """Return whether a cut's features are random in inference too."""
        if self.randomness[name].always:
            return True
        seen = self.rehearsal.unsteady if self.rehearsal else ()
        return any(tensor.address in seen for tensor in self._tensors(name))

    def example_bytes(self, name: Name) -> int:
        """Return the bytes of one example as it is stored, with its label."""
        for part in self.kept(name):
            for entry in self.found.get((name, part), ()):
                return sum(array.row_bytes for array in entry.manifest.arrays)
        one, dtype = self.frontiers[name], self.options["dtype"]
        assert self.rehearsal is not None  # what is not stored was rehearsed
        total = self.rehearsal.label_bytes
        for tensor in one.stored:
            spec = self.rehearsal.outputs[tensor.address]
            if one.pooling is not None:
                pooled = extract(
                    self.graph, tensor.address, one.pooling, mask_of(one)
                ).output_shape[1:]
                spec = replace(spec, shape=pooled)
            if dtype is not None and keras.backend.is_float_dtype(spec.dtype):
                spec = replace(spec, dtype=dtype)
            total += spec.row_bytes
        return total

    def _inputs(self) -> Candidate:
        """Return the model's inputs, which may be stored as well."""
        kept = frozenset((TRAIN, VALIDATION))
        if self.rehearsal is None:  # nothing runs from the inputs
            return Candidate(frozenset(), 0, frozenset(), frozenset())
        size = self.rehearsal.input_bytes + self.rehearsal.label_bytes
        if any(tensor.dtype == "string" for tensor in self.graph.inputs):
            return Candidate(frozenset(), size, frozenset(), frozenset())
        options = {**self.options, "dtype": None, "compute_dtype": None}
        cuts = [inputs_frontier(self.graph)]
        keys = {part: feature_keys(cuts, self.splits[part], **options)[0] for part in kept}
        missing = frozenset(part for part, key in keys.items() if self.store.get(key) is None)
        return Candidate(frozenset(), size, kept, missing)

    def _candidate(self, name: Name) -> Candidate:
        one = self.frontiers[name]
        kept = frozenset() if self.unsteady(name) else self.kept(name)
        # From rounded features nothing is computed: rounding would add up.
        faithful = self.options["dtype"] is None and bool(kept)
        sources = frozenset(
            place
            for place, (other, source) in enumerate(self.frontiers.items(), start=1)
            if faithful
            and not self.unsteady(other)
            and not self.randomness[other].augmenting
            and leads_to(source, one)
        )
        return Candidate(
            calls=self.calls(one),
            example_bytes=self.example_bytes(name),
            kept=kept,
            missing=frozenset(part for part in kept if (name, part) not in self.found),
            sources=sources,
            augmented=bool(self.randomness[name].augmenting),
            works=tuple(self._works(name)),
        )

    def _works(self, name: Name) -> Iterator[Work]:
        trials = [each for each in self.trials if (each.at, each.pooling) == name]
        activations = self._activations(name)
        for size in dict.fromkeys(each.batch_size for each in trials):
            yield Work(tuple(e for e in trials if e.batch_size == size), activations)

    def _activations(self, name: Name) -> int:
        """Return the bytes of one example in the trained part, both ways: at most the whole top."""
        one = self.frontiers[name]
        if one.pooling is not None:
            return 4 * self.example_bytes(name)
        after = (c for c in self.graph.calls if one.place.top[c.index])
        made = sum(math.prod(self.flops.shapes[t]) for call in after for t in call.outputs)
        return 2 * (self.example_bytes(name) + 4 * made)

    def problem(self, costs: Costs | None, disk: float, memory: float) -> Problem:
        """Return the choice to make."""
        candidates = [self._inputs(), *map(self._candidate, self.frontiers)]
        flops, rehearsal = self.flops.per_call, self.rehearsal
        ran = [self.calls(one) for name, one in self.frontiers.items() if self._may_run(name)]
        run = sum(flops[call] for call in frozenset().union(*ran))
        if costs is None:
            costs = measure(self.store, rehearsal, run)
        elif costs.bottom_seconds is None and rehearsal is not None:
            costs = replace(
                costs,
                bottom_seconds=rehearsal.bottom_seconds,
                input_seconds=rehearsal.input_seconds,
            )
        else:
            run = 0
        if run and rehearsal is not None:  # the deepest cut may be stored already
            deepest = max(sum(flops[call] for call in one.calls) for one in candidates)
            costs = replace(costs, bottom_seconds=costs.bottom_seconds * deepest / run)  # type: ignore[operator]
        rows = {part: self.rows(part) for part in PARTS}
        return Problem(candidates, rows, flops, costs, disk, memory)

    def disk_budget(self, disk: int | None) -> float:
        """Return the bytes that this plan's features may take, stored ones included."""
        budgets = [budget for budget in (disk, self.store.budget) if budget is not None]
        if budgets:
            return min(budgets)
        there = sum(entry.manifest.bytes for entries in self.found.values() for entry in entries)
        return there + _SHARE_OF_DISK * shutil.disk_usage(self.store.path).free
