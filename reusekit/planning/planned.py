"""The plan as plain data: what is asked for, what is chosen, and the tables that show it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from reusekit.arguments import AnyPath, checked
from reusekit.errors import ConfigError
from reusekit.features.padding import Padding
from reusekit.graph.padding_mask import AUTO
from reusekit.planning.costs import Costs
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


@dataclass(frozen=True)
class Extraction:
    """The settings under which features are computed and named.

    Attributes:
        dtype, padding, preprocessing, compute_dtype: As `stored_features` takes them, but for a
            model that preprocesses, which is a list of digests here.
        mask: "auto", None, or the address of the mask under which features are pooled.
        batch_size: Examples a batch of a pass.
        seed: Augmentation follows from this.
        views: How many augmented views of the training examples are stored.
        window: How many examples are shuffled at a time where inputs are read anew in each pass;
            None where they are held in memory.
    """

    dtype: str | None = None
    padding: Padding | None = None
    preprocessing: Any = None
    compute_dtype: str | None = None
    mask: str | None = AUTO
    batch_size: int = 64
    seed: int = 0
    views: int = 0
    window: int | None = None

    @property
    def naming(self) -> dict[str, Any]:
        """The settings that name features, as `feature_keys` takes them."""
        names = ("dtype", "padding", "preprocessing", "compute_dtype")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class PlannedFeatures:
    """The way to one cut's features.

    Attributes:
        at: The cut.
        pooling: How they are pooled.
        how: Of the training examples: "stored" (found whole in the store), "tap" (computed in the
            one pass over the data, with all others, and stored), "recompute" (not stored: computed
            for every batch), or "views" (augmented views are stored, and epochs take turns).
        validation: The same of the validation examples, which are never augmented.
        varies: Whether training features differ from pass to pass unless views are stored.
        in_memory: Whether they are read into memory; else they are mapped where they are stored.
        bytes: What is stored of them, validation included.
        if_stored: Seconds to make and write what is missing and to read it in every pass; None
            where it may not be stored.
        if_computed: Seconds to compute it in every pass; None where that was not measured.
        seconds: What the chosen way takes.
        reason: Why so.
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


@dataclass(frozen=True)
class PlannedGroup:
    """Trials that read the same batches, and how many of them are trained in one pass over these.

    Attributes:
        at: The cut.
        pooling: How its features are pooled.
        batch_size: Examples a step.
        count: How many trials.
        together: How many of them are trained at a time.
        passes: Passes over the data in all.
        feature_seconds: Seconds to read or compute the features in all passes.
        seconds: Seconds of the training itself.
        reason: Why so many at a time.
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


@dataclass(frozen=True)
class Plan:
    """The work to compute, store and train together, with its costs; prints as tables.

    Attributes:
        features: How each cut's features are come by, shallow to deep.
        groups: What is trained together.
        extraction: The settings under which features are computed.
        costs: The speeds that it was made for.
        seconds: What all of it takes, estimated.
        plain_seconds: What it would take with the whole frozen bottom run for every example, epoch
            and trial, each trial alone; None where the bottom was not measured, since nothing of it
            has to run.
        notes: What a person should know: what is done instead of freezing randomness, what did not
            fit.

    Example:
        >>> made = Plan((), (), Extraction(), Costs(None), 0.0, None, ())
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "plan.json")
        >>> made.save(file)
        >>> Plan.load(file) == made
        True
    """

    features: tuple[PlannedFeatures, ...]
    groups: tuple[PlannedGroup, ...]
    extraction: Extraction
    costs: Costs
    seconds: float
    plain_seconds: float | None
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of the stored features when all are there."""
        return sum(one.bytes for one in self.features)

    def to_frame(self) -> Any:
        """Return the features as a pandas DataFrame, one row each."""
        import pandas

        return pandas.DataFrame([asdict(one) for one in self.features])

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, to be written as JSON."""
        return json.loads(json.dumps(asdict(self)))

    @checked(ConfigError)
    def save(self, path: AnyPath) -> None:
        """Write it as JSON, whole or not at all."""
        try:
            write_durably(Path(path), json.dumps(self.to_dict(), indent=1))
        except OSError as error:
            raise ConfigError(
                f"Expected a file that can be written. Received: {str(path)!r}: {error.strerror}."
            ) from error

    @classmethod
    @checked(ConfigError)
    def load(cls, path: AnyPath) -> "Plan":
        """Return the plan that `save` has written.

        Raises:
            ConfigError: There is no such file, or it holds no plan of this version.
        """
        try:
            return TypeAdapter(cls).validate_json(Path(path).read_bytes())
        except (OSError, ValidationError) as error:
            reason = getattr(error, "strerror", None) or "it holds no plan of this version"
            raise ConfigError(
                f"Expected a file that Plan.save has written. Received: {str(path)!r}: {reason}. "
                "Make the plan again with rk.plan."
            ) from error

    def __str__(self) -> str:
        console = Console(width=_PRINTED_WIDTH, color_system=None, highlight=False, markup=False)
        with console.capture() as printed:
            console.print(*self._tables(), sep="\n")
            console.print(self._totals())
            for note in self.notes:
                console.print(f"Note: {note}")
        return "\n".join(line.rstrip() for line in printed.get().splitlines())

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)

    def _tables(self) -> Iterator[Table]:
        counts = ("bytes", "if stored s", "if computed s", "seconds", "batch", "trials", "together")

        def table(title: str, *columns: str) -> Table:
            made = Table(title=title, title_justify="left", box=None, pad_edge=False)
            for column in columns:
                justify: Any = "right" if column in counts else "left"
                made.add_column(column, justify=justify, overflow="fold")
            return made

        features = table("Features", "cut", "pooled", "how", *counts[:4], "why")
        for one in self.features:
            how = one.how if one.how == one.validation else f"{one.how}, {one.validation}"
            seconds = map(_seconds, (one.if_stored, one.if_computed, one.seconds))
            row = (one.at, one.pooling or "-", how, decimal(one.bytes), *seconds, one.reason)
            features.add_row(*row)
        yield features
        groups = table("Training", "cut", "pooled", *counts[4:], "seconds", "why")
        for group in self.groups:
            cells = (group.at, group.pooling or "-", group.batch_size, group.count, group.together)
            groups.add_row(*map(str, cells), _seconds(group.seconds), group.reason)
        yield groups

    def _totals(self) -> str:
        total = f"In all {_seconds(self.seconds)} s and {decimal(self.bytes)}."
        if self.plain_seconds is None:
            plain = "The plain way was not measured: no part of the bottom has to run."
        else:
            times = self.plain_seconds / max(self.seconds, 1e-9)
            plain = (
                f"The plain way, the whole bottom for every image, epoch and trial: "
                f"{_seconds(self.plain_seconds)} s, {times:.1f} times as much."
            )
        return f"{total} {plain}\n{self.costs}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:,.{2 if seconds < 10 else 1 if seconds < 100 else 0}f}"
