"""The plan, as data: the work done once, stored, and trained together."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reusekit.arguments import AnyPath, checked
from reusekit.data import DataSplit
from reusekit.errors import ConfigError
from reusekit.features.costs import Costs
from reusekit.features.source import FeatureSource
from reusekit.sealed_json import write_durably

_PRINTED_WIDTH = 140
_COUNTED = ("batch", "trials", "together")


@dataclass(frozen=True)
class PlannedFeatures:
    """The way to one cut's features.

    Attributes:
        at: The cut.
        pooling: How they are pooled.
        how: Of the training examples: "stored" (found whole in the store), "tap" (computed in the
            one pass over the data, with all others), "derive" (computed once from a shallower cut
            that is stored, and then stored), "recompute" (not stored: computed for every batch), or
            "views" (several augmented views are stored, and each epoch reads the next).
        validation: The same of the validation examples, which are never augmented.
        source: The cut that they are derived or computed from; None for the model's inputs.
        bytes: What is stored of them, validation included.
        seconds: To obtain them once and to read or compute them for all epochs of all trials.
        reason: Why so.
        in_memory: Whether they are read into memory; else they are mapped where they are stored.
    """

    at: str
    pooling: str | None
    how: str
    validation: str
    source: str | None
    bytes: int
    seconds: float
    reason: str
    in_memory: bool


@dataclass(frozen=True)
class PlannedGroup:
    """Trials that read the same batches, and how many of them are trained in one pass over these.

    Attributes:
        at: The cut.
        pooling: How its features are pooled.
        batch_size: Examples a step.
        count: How many trials.
        together: How many of them are trained at a time.
        seconds: The training of all of them, features not counted.
        reason: Why so many at a time.
    """

    at: str
    pooling: str | None
    batch_size: int
    count: int
    together: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class Plan:
    """The work to compute, store and train together, with its costs; prints as tables.

    Attributes:
        features: How each cut's features are come by, shallow to deep.
        groups: What is trained together.
        costs: The speeds that it was made for.
        seconds: What all of it takes, estimated.
        plain_seconds: What it would take with the whole frozen bottom run for every image, epoch
            and trial, each trial alone; None where the bottom was not measured, since nothing of it
            has to run.
        bytes: What is stored of these features when all are there.
        notes: What a person should know: what is done instead of freezing randomness, what did not
            fit.
    """

    features: tuple[PlannedFeatures, ...]
    groups: tuple[PlannedGroup, ...]
    costs: Costs
    seconds: float
    plain_seconds: float | None
    bytes: int
    notes: tuple[str, ...]
    _obtain: Callable[[DataSplit, bool], dict] = field(repr=False, compare=False)

    @checked(ConfigError)
    def obtain(
        self, split: DataSplit, training: bool
    ) -> dict[tuple[str, str | None], FeatureSource]:
        """Return the features of some examples, by cut and pooling; computes what is not stored.

        Args:
            split: The examples: those that the plan was made for, or others.
            training: Whether they are trained on; only then are they augmented.

        Raises:
            CacheError, DataError: As `stored_features` does.
        """
        return self._obtain(split, training)

    def to_frame(self) -> Any:
        """Return the features as a pandas DataFrame, one row each."""
        import pandas

        return pandas.DataFrame([asdict(one) for one in self.features])

    def to_dict(self) -> dict[str, Any]:
        """Return all of it but the means to obtain the features; serialises to JSON."""
        return {
            "features": [asdict(one) for one in self.features],
            "groups": [asdict(one) for one in self.groups],
            "costs": asdict(self.costs),
            "seconds": self.seconds,
            "plain_seconds": self.plain_seconds,
            "bytes": self.bytes,
            "notes": list(self.notes),
        }

    @checked(ConfigError)
    def save(self, path: AnyPath) -> None:
        """Write it as JSON, whole or not at all."""
        try:
            write_durably(Path(path), json.dumps(self.to_dict(), indent=1))
        except OSError as error:
            raise ConfigError(
                f"Expected a file that can be written. Received: {str(path)!r}: {error.strerror}."
            ) from error

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)

    def __str__(self) -> str:
        features = _table("Features", "cut", "pooled", "how", "from", "bytes", "seconds", "why")
        for one in self.features:
            how = one.how if one.how == one.validation else f"{one.how}, {one.validation}"
            source = (one.source or "inputs") if {one.how, one.validation} - {"stored"} else "-"
            row = (one.at, one.pooling or "-", how, source, readable_bytes(one.bytes))
            features.add_row(*row, _seconds(one.seconds), one.reason)
        groups = _table(
            "Training", "cut", "pooled", "batch", "trials", "together", "seconds", "why"
        )
        for group in self.groups:
            cells = (group.at, group.pooling or "-", group.batch_size, group.count, group.together)
            groups.add_row(*map(str, cells), _seconds(group.seconds), group.reason)
        console = Console(width=_PRINTED_WIDTH, color_system=None, highlight=False, markup=False)
        with console.capture() as printed:
            console.print(features, groups, sep="\n")
            console.print(self._totals())
            for note in self.notes:
                console.print(f"Note: {note}")
        return "\n".join(line.rstrip() for line in printed.get().splitlines())

    def _totals(self) -> str:
        total = f"In all {_seconds(self.seconds)} s and {readable_bytes(self.bytes)}."
        if self.plain_seconds is None:
            plain = "The plain way was not measured: no part of the bottom has to run."
        else:
            times = self.plain_seconds / self.seconds if self.seconds else math.inf
            plain = (
                f"The plain way, the whole bottom for every image, epoch and trial: "
                f"{_seconds(self.plain_seconds)} s, {times:.1f} times as much."
            )
        return f"{total} {plain}\n{self.costs}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        numeric = column in ("bytes", "seconds", *_COUNTED)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    return table


def readable_bytes(count: float) -> str:
    """Return a number of bytes in the unit that suits it.

    Example:
        >>> readable_bytes(1234567)
        '1.2 MB'
    """
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.{2 if seconds < 10 else 1 if seconds < 100 else 0}f}"
