"""The plan as plain data: what is asked for, what is chosen, and the tables that show it."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from reusekit.arguments import AnyPath, checked
from reusekit.errors import ConfigError
from reusekit.features.key import Extraction
from reusekit.planning.costs import Costs
from reusekit.planning.workers import OnWorkers, PlannedPass, TrialTasks, counts_up_to, on_workers
from reusekit.sealed_json import write_durably

_PRINTED_WIDTH = 140


@checked(ConfigError)
@dataclass(frozen=True)
class Trials:
    """Trials that read the same features in batches of the same size.

    Attributes:
        at: The address of the cut: everything up to here is frozen.
        pooling: How the head's features are pooled: "avg" or "max"; None for whole maps, since what
            is trained goes on from there.
        count: How many trials.
        epochs: Of each, at most.
        batch_size: Examples a step.
        parameters: How many parameters each trains.
        flops: FLOPs of one example, forward, through what is trained.
    """

    at: str
    pooling: str | None = None
    count: PositiveInt = 1
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 32
    parameters: NonNegativeInt = 0
    flops: NonNegativeFloat = 0


@checked(ConfigError)
@dataclass(frozen=True)
class Resources:
    """The room that a plan has, and the speeds that it is made for.

    Attributes:
        disk: Bytes that the features may take; None for the store's budget, or else for most of
            what is free on its disk.
        memory: Bytes that training may take; None for half of what the machine has available.
        costs: The speeds, where they are known; None measures them.
        workers: The number of workers up to which the plan says what it takes there; None for
            no cluster.
    """

    disk: NonNegativeInt | None = None
    memory: NonNegativeInt | None = None
    costs: Costs | None = None
    workers: PositiveInt | None = None


@dataclass(frozen=True)
class PlannedFeatures:
    """The way to one cut's features.

    Attributes:
        how: Of the training examples: "stored" (found whole in the store), "tap" (computed in the
            one pass over the data, with all others, and stored), "recompute" (not stored: computed
            for every batch), or "views" (augmented views are stored, and epochs take turns).
        validation: The same of the validation examples, which are never augmented.
        varies: Whether training features differ from pass to pass unless views are stored.
        in_memory: Whether they are read into memory; else they are mapped where they are stored.
        bytes: What is stored of them, validation included.
        if_stored: Seconds to make and write what is missing, to read it in every pass and to train;
            None where it may not be stored.
        if_computed: Seconds to compute it in every pass and to train; None where that was not
            measured.
        seconds: What the chosen way takes.
        known: How many training and validation examples the store knows from other data; the
            features of these are copied.
    """

    at: str
    pooling: str | None
    how: str
    validation: str
    varies: bool
    in_memory: bool
    bytes: int
    if_stored: float | None
    if_computed: float | None
    seconds: float
    reason: str
    known: int = 0

    @property
    def is_stored(self) -> bool:
        """True where some of them are read from the store."""
        return {self.how, self.validation} != {"recompute"}


@dataclass(frozen=True)
class PlannedGroup:
    """Trials that read the same batches, and how many of them are trained in one pass over these.

    Attributes:
        count: How many trials.
        together: How many of them are trained at a time.
        passes: Passes over the data in all.
        feature_seconds: Seconds to read or compute the features in all passes.
        seconds: Seconds of the training itself.
        reason: Why so many at a time.
        shared: Of `feature_seconds` and `seconds` those of each time that trials are trained
            together, however many these are.
    """

    at: str
    pooling: str | None
    batch_size: int
    count: int
    together: int
    passes: int
    feature_seconds: float
    seconds: float
    reason: str
    shared: float = 0.0

    def tasks(self) -> TrialTasks:
        """Return the trials as tasks for workers."""
        times = math.ceil(self.count / self.together)
        own = max(0.0, self.feature_seconds + self.seconds - times * self.shared) / self.count
        return TrialTasks(self.count, self.together, self.shared, own)


@dataclass(frozen=True)
class KeptPlan(ABC):
    """A plan as plain data, kept in a file and shown as a table."""

    @abstractmethod
    def to_frame(self) -> Any:
        """Return the features as a pandas DataFrame, one row each."""

    @checked(ConfigError)
    def save(self, path: AnyPath) -> None:
        """Write it as JSON, whole or not at all."""
        try:
            write_durably(Path(path), json.dumps(asdict(self), indent=1))
        except OSError as error:
            raise ConfigError(
                f"Expected a file that can be written. Received: {str(path)!r}: {error.strerror}."
            ) from error

    @classmethod
    @checked(ConfigError)
    def load(cls, path: AnyPath) -> Self:
        """Return the plan that `save` has written."""
        try:
            return TypeAdapter(cls).validate_json(Path(path).read_bytes())
        except (OSError, ValidationError) as error:
            reason = getattr(error, "strerror", None) or "it holds no plan of this version"
            raise ConfigError(
                f"Expected a file that Plan.save has written. Received: {str(path)!r}: {reason}. "
                "Make the plan again with rk.plan."
            ) from error

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


@dataclass(frozen=True)
class Plan(KeptPlan):
    """The work to compute, store and train together, with its costs; prints as tables.

    Attributes:
        features: The way to each cut's features, shallow to deep.
        groups: What is trained together.
        extraction: The settings under which features are computed.
        window: How many examples are shuffled at a time where inputs are read anew in each pass;
            None where they are held in memory.
        costs: The speeds that it was made for.
        seconds: What all of it takes, estimated.
        plain_seconds: What it would take with the whole frozen bottom run for every example, epoch
            and trial, each trial alone; None where nothing of the bottom has to run.
        notes: What a person should know.
        one_pass: The pass over the data, as work for workers.
        workers: What the plan takes on 1, 2, 4 and more workers, where that was asked for.

    Example:
        >>> made = Plan((), (), Extraction(), None, Costs(None), 0.0, None, ())
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "plan.json")
        >>> made.save(file)
        >>> Plan.load(file) == made
        True
    """

    features: tuple[PlannedFeatures, ...]
    groups: tuple[PlannedGroup, ...]
    extraction: Extraction
    window: int | None
    costs: Costs
    seconds: float
    plain_seconds: float | None
    notes: tuple[str, ...]
    one_pass: PlannedPass | None = None
    workers: tuple[OnWorkers, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of the stored features when all are there."""
        return sum(one.bytes for one in self.features)

    @property
    def tasks(self) -> tuple[TrialTasks, ...]:
        """The trials of each group as tasks for workers."""
        return tuple(group.tasks() for group in self.groups)

    def to_frame(self) -> Any:
        """Return the features as a pandas DataFrame, one row each."""
        import pandas

        return pandas.DataFrame([asdict(one) for one in self.features])

    def __str__(self) -> str:
        return _printed({"": self}, self.workers)


@dataclass(frozen=True)
class JointPlan(KeptPlan):
    """The plans of several backbones as one, with a pass over the data for each.

    Attributes:
        plans: The plan of each, by its name.
        workers: What all of them take on 1, 2, 4 and more workers, where that was asked for.
    """

    plans: Mapping[str, Plan]
    workers: tuple[OnWorkers, ...] = ()

    @property
    def seconds(self) -> float:
        """The estimated seconds of all of it."""
        return sum(one.seconds for one in self.plans.values())

    @property
    def bytes(self) -> int:
        """Bytes of the stored features when all are there."""
        return sum(one.bytes for one in self.plans.values())

    def to_frame(self) -> Any:
        """Return the features as a pandas DataFrame, one row each."""
        import pandas

        frames = {name: one.to_frame() for name, one in self.plans.items()}
        return pandas.concat(frames, names=["backbone"]).reset_index("backbone")

    def __str__(self) -> str:
        return _printed(self.plans, self.workers)


def workers_of(plans: Sequence[Plan], workers: int) -> tuple[OnWorkers, ...]:
    """Return the seconds of plans, one after another, on 1, 2, 4 and more workers."""
    passes = [one.one_pass for one in plans if one.one_pass is not None]
    trials = [tasks for one in plans for tasks in one.tasks]
    return tuple(on_workers(passes, trials, count) for count in counts_up_to(workers))


_BOUNDS = {
    "bottom": "the bottom, which workers compute",
    "store": "the driver, which reads examples and writes the store",
    "trials": "the trials",
    "tasks": "tasks: there are few, or each is little work",
}


def _printed(plans: Mapping[str, Plan], workers: Sequence[OnWorkers]) -> str:
    """Return plans as tables, with the names of backbones where there are several."""
    shown = ("if_stored", "if_computed", "seconds")
    features = [
        {
            **({"backbone": name} if name else {}),
            "cut": one.at,
            "pooled": one.pooling or "-",
            "how": one.how if one.how == one.validation else f"{one.how}, {one.validation}",
            "bytes": decimal(one.bytes),
            **{f"{n.replace('_', ' ')} s": _seconds(getattr(one, n)) for n in shown},
            "why": one.reason,
        }
        for name, plan in plans.items()
        for one in plan.features
    ]
    groups = [
        {
            **({"backbone": name} if name else {}),
            "cut": one.at,
            "pooled": one.pooling or "-",
            "batch": str(one.batch_size),
            "trials": str(one.count),
            "together": str(one.together),
            "seconds": _seconds(one.seconds),
            "why": one.reason,
        }
        for name, plan in plans.items()
        for one in plan.groups
    ]
    seconds = sum(plan.seconds for plan in plans.values())
    size = sum(plan.bytes for plan in plans.values())
    measured = [plan.plain_seconds for plan in plans.values() if plan.plain_seconds is not None]
    total = (
        f"In all {_seconds(seconds)} s and {decimal(size)}, beside what Keras takes to build and "
        "trace models."
    )
    plain = "The plain way was not measured: no part of the bottom has to run."
    if measured:
        partly = len(measured) < len(plans)
        times = f", {sum(measured) / max(seconds, 1e-9):.1f} times as much"
        plain = (
            f"The plain way, the whole bottom for every image, epoch and trial: "
            f"{_seconds(sum(measured))} s"
            + (" for those whose bottom has to run." if partly else f"{times}.")
        )
    console = Console(
        width=_PRINTED_WIDTH, color_system=None, highlight=False, markup=False, force_jupyter=False
    )  # else a notebook gets an empty output
    with console.capture() as printed:
        console.print(_table("Features", features), _table("Training", groups), sep="\n")
        console.print(f"{total} {plain}")
        if workers:
            console.print(_table("Workers", _on_workers(workers)))
        for name, plan in plans.items():
            before = f"{name}: " if name else ""
            console.print(f"{before}{plan.costs}")
            for note in plan.notes:
                console.print(f"Note: {before}{note}")
    return "\n".join(line.rstrip() for line in printed.get().splitlines())


def _on_workers(workers: Sequence[OnWorkers]) -> list[dict[str, str]]:
    return [
        {
            "workers": str(one.workers),
            "seconds": _seconds(one.seconds),
            "times as fast": f"{workers[0].seconds / max(one.seconds, 1e-9):.1f}",
            "idle": f"{one.idle:.0%}",
            "bound by": _BOUNDS[one.bound],
        }
        for one in workers
    ]


def _table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in rows[0] if rows else ():
        text = column in ("backbone", "cut", "pooled", "how", "why", "bound by")
        table.add_column(column, justify="left" if text else "right", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    return table


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:,.{2 if seconds < 10 else 1 if seconds < 100 else 0}f}"
