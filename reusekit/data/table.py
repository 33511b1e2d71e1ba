"""Splits of a table: CSV, TSV, Parquet, JSON lines, or a pandas DataFrame, read in blocks."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import tensorflow as tf
from annotated_types import MinLen

from reusekit.arguments import AnyPath, Distinct, checked
from reusekit.data.files import look_at, stamp
from reusekit.data.label_values import labels_from
from reusekit.data.opened_files import open_files, reading_of
from reusekit.data.rows import (
    Rows,
    check_values,
    row_keys,
    streamed,
    treated,
    weights_from,
)
from reusekit.data.shares import Parts, Shares
from reusekit.data.split import DataSplit
from reusekit.data.table_blocks import Table, open_table
from reusekit.data.table_columns import (
    InputPart,
    TableColumns,
    columns_told,
    floats,
    is_whole,
    kind_of,
    missing_in,
    typed,
)
from reusekit.data.task import Kind, Task, joined, kinds_of
from reusekit.data.treatment import Treatment
from reusekit.errors import DataError, nearest
from reusekit.progress import say

_AS_THEY_ARE = Treatment()
_SHARES = Shares()

Columns = Annotated[Distinct[str], MinLen(1)]
"""Several columns."""


@checked(DataError)
def from_table(
    table: AnyPath | pd.DataFrame,
    split: str,
    *,
    input: str | Columns | Mapping[str, str | Columns],
    label: str | Columns | Mapping[str, str | Columns],
    weight: str | None = None,
    parts: Shares | str | None = _SHARES,
    treatment: Treatment = _AS_THEY_ARE,
) -> DataSplit:
    """Make a split of a table, which is read in blocks and never held as a whole.

    Args:
        table: A file of CSV, TSV, Parquet or JSON lines, told apart by content, or a DataFrame.
        split: The part to take.
        input: The column that a model is fed: text, a number, or a list of numbers. Several columns
            of numbers are one vector, several of text are given by name; a dictionary says the
            columns of each of a model's inputs.
        label: The column to tell: words, true and false, and whole numbers of few different values
            are classes, other numbers are predicted. Of several columns those of 0 and 1 are
            several labels, and other numbers are predicted; lists of words are the labels that
            apply. `treatment.task` says otherwise. A dictionary says the columns of several tasks.
        weight: The column with the weight of each example; None for no weights.
        parts: Shares to draw, stratified by class; or the column that says the part of each row; or
            None, for all of the table.
        treatment: Which examples are kept.

    Raises:
        DataError: A column is missing or holds no such values, a value is missing, or the part is
            none or empty.

    Example:
        >>> frame = pd.DataFrame({"said": ["good", "bad", "fine", "poor"], "stars": [5, 1, 5, 1],
        ...                       "part": ["train", "train", "test", "test"]})
        >>> train = from_table(frame, "train", input="said", label="stars", parts="part")
        >>> train.size, train.class_names
        (2, ('1', '5'))
        >>> from_table(frame, "train", input="sayd", label="stars")
        Traceback (most recent call last):
        ...
        reusekit.errors.DataError: Expected a column of DataFrame. Received: 'sayd'. Did you
        mean 'said'?
    """
    taken = table_splits(
        table, [split], input=input, label=label, weight=weight, parts=parts, treatment=treatment
    )
    return taken(split, treatment)


def table_splits(
    table: AnyPath | pd.DataFrame,
    splits: Sequence[str],
    *,
    input: str | Columns | Mapping[str, str | Columns],
    label: str | Columns | Mapping[str, str | Columns],
    weight: str | None,
    parts: Shares | str | None,
    treatment: Treatment,
) -> Callable[[str, Treatment], DataSplit]:
    """Read a table once, for several splits; see `from_table`.

    Args:
        table: The table.
        splits: All parts that will be taken.
        input: The columns that a model is fed.
        label: The columns to tell.
        weight: The column of weights.
        parts: Shares, or the column of parts.
        treatment: What text and labels are taken for.

    Returns:
        A function that takes one of these parts, with a treatment like this one.
    """
    opened = open_table(table)
    named = TableColumns(opened.name, input, label, weight, parts)
    named.pictures = bool(treatment.image_size or treatment.channels)
    named.sounds = treatment.length is not None
    opened.check(named.columns)
    splits = list(dict.fromkeys(splits))
    reading = _read(opened, named, splits)
    known = sorted(reading.parts)
    for split in splits:
        if not reading.count or (named.part and split not in known):
            raise DataError(
                f"Expected rows of {split!r} in {opened.name}. Received: none. "
                f"{nearest(split, known)}".strip()
            )
    if reading.apart:
        say(
            f"warning: {opened.name} has {reading.apart:,} rows without a value in column "
            f"{named.part!r}, which are in no part."
        )
    task, labels = reading.labels(treatment.task)
    keys, inputs, how = reading.source()
    rows = Rows(
        opened.name,
        inputs,
        keys,
        task,
        labels,
        reading.weights,
        reading.groups,
        open_length=reading.of_text,
        reading=how,
    )
    drawn = rows.drawn(parts) if isinstance(parts, Shares) else reading.drawn

    def taken(split: str, treatment: Treatment) -> DataSplit:
        return rows.split(split, drawn.of(split), treatment, named.origin)

    return taken


class _Source(NamedTuple):
    """Keys of the parts' inputs, the inputs themselves, and their reading, as `Rows` takes them."""

    keys: np.ndarray
    inputs: Callable[[np.ndarray, Treatment], tuple[tf.data.Dataset, np.ndarray]]
    reading: Callable[[Treatment], list[str]] = lambda _: []


class _Retype(Exception):
    """A column of a CSV file that turned out to hold text, where numbers were guessed."""


def _read(table: Table, named: TableColumns, splits: Sequence[str]) -> "_Reading":
    """Read a table once; of CSV, anew where a column turns out to hold text."""
    text: set[str] = set()
    while True:
        reading = _Reading(table, named, splits, frozenset(text))
        try:
            for start, block in table.read(named.columns, text):
                reading.add(block, np.arange(start, start + len(block)))
            reading.finish()
        except _Retype as found:
            text.add(str(found))
            continue
        padded = _padded(table, reading.guessed)
        if not padded:
            return reading
        text |= padded


def _padded(table: Table, columns: Sequence[str]) -> set[str]:
    """Return the columns with numbers such as 007, which are words."""
    found: set[str] = set()
    for _, block in table.read(columns, columns) if columns else ():
        found |= {one for one in columns if block[one].str.match(r"[-+]?0\d").any()}
    return found


class _Reading:
    """The content of a table as far as it is kept: kinds, labels, and keys of the parts' inputs.

    Args:
        table: The table.
        named: Its columns, by what they are for.
        splits: The parts that are wanted, where a column says the parts.
        text: Columns of CSV that are read as text.
    """

    def __init__(
        self, table: Table, named: TableColumns, splits: Sequence[str], text: frozenset[str]
    ) -> None:
        self._table, self._named, self._splits, self._text = table, named, splits, text
        self._stamp = table.stamp()
        self.parts: set[str] = set()
        self._kinds: dict[str, str] = {}
        self._whole: dict[str, bool] = {}
        self._words: dict[Any, Any] = {}
        self._told: dict[str, list[np.ndarray]] = {column: [] for column in named.labels}
        self._present: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._keys: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []
        self._groups: list[np.ndarray] = []
        self._sides: list[np.ndarray] = []
        self._paths: list[str] = []
        self._first: dict[bool, tuple[int, str]] = {}
        self.apart = 0

    def add(self, block: pd.DataFrame, at: np.ndarray) -> None:
        """Take in a block of rows at some positions."""
        for column in self._named.columns:
            self._learn(column, block[column])
        wanted = np.ones(len(block), bool)
        if self._named.part is not None:
            said = block[self._named.part].astype("string")
            self.apart += int(said.isna().sum())
            self.parts |= set(said.dropna().unique())
            side = pd.Index(self._splits).get_indexer(said)
            wanted = side >= 0
            self._sides.append(side[wanted].astype(np.int32))
        self._add_labels(block, wanted, at)
        if wanted.any():
            self._positions.append(at[wanted])
            self._add_inputs(block[wanted], at[wanted])

    def finish(self) -> None:
        """Join the pieces of all blocks, one kind after the other, so that none is held twice."""
        pieces = (self._present, self._positions, self._keys, self._weights, self._groups)
        for part in (*pieces, self._sides, *self._told.values()):
            if part:
                part[:] = [np.concatenate(part)]

    def _learn(self, column: str, values: pd.Series) -> None:
        """Learn the kind of a column, which may not change from block to block."""
        if values.isna().all():
            return
        kind = kind_of(values)
        known = self._kinds.setdefault(column, kind)
        guessed = not self._table.typed and column not in self._text
        if guessed and (kind == "text" or kind != known):
            raise _Retype(column)
        if kind != known or kind not in ("bool", "number", "text", "list"):
            received = kind if kind == known else f"{known}, and then {kind}"
            raise DataError(
                f"Expected numbers, text, or true and false in column {column!r} of "
                f"{self._table.name}. Received: {received}."
            )
        if column == self._named.weight and kind not in ("number", "bool"):
            raise DataError(
                f"Expected numbers in column {column!r} of {self._table.name} as weights. "
                f"Received: {kind}."
            )
        if kind == "number":
            self._whole[column] = self._whole.get(column, True) and is_whole(values)

    def _add_labels(self, block: pd.DataFrame, wanted: np.ndarray, at: np.ndarray) -> None:
        missing = {column: missing_in(block[column]) for column in self._named.labels}
        for column, none in missing.items():
            check_values(none & wanted, f"column {column!r} of {self._table.name}", at)
        present = ~np.logical_or.reduce(list(missing.values()))
        self._present.append(present)
        if present.any():
            for column, pieces in self._told.items():
                pieces.append(self._values(column, block[column][present]))

    def _add_inputs(self, block: pd.DataFrame, at: np.ndarray) -> None:
        weight, group, table = self._named.weight, self._named.group, self._table.name
        values = {}
        for name, part in self._inputs().items():
            values[name] = part.of(block, at)
        self._keys.append(row_keys(values))
        if len(values) == 1 and part.kind == "text":
            self._add_paths(values[name].tolist(), at)
        if weight is not None:
            self._weights.append(weights_from(floats(block[weight]), f"column {weight!r}"))
        if group is not None:
            check_values(missing_in(block[group]), f"column {group!r} of {table}", at)
            self._groups.append(self._values(group, block[group]))

    def _add_paths(self, texts: Sequence[str], at: np.ndarray) -> None:
        """Keep texts that are the paths of files: with a length, either all are or none."""
        if self._named.sounds and not self._named.pictures:
            folder, column = self._table.folder, self._inputs().popitem()[1].columns[0]
            for position, text in zip(at.tolist(), texts, strict=True):
                self._first.setdefault(os.path.isfile(os.path.join(folder, text)), (position, text))
            if len(self._first) > 1:
                (file, path), (other, text) = self._first[True], self._first[False]
                raise DataError(
                    f"Expected text in column {column!r} of {self._table.name} to be the path of a "
                    "file, from the table's folder, in each row or in none. Received: "
                    f"{path[:60]!r} at position {file}, which is one, and {text[:60]!r} at "
                    f"position {other}, which is none."
                )
        if self.of_paths:
            self._paths += texts

    @property
    def of_paths(self) -> bool:
        """True where text is the path of a file."""
        return self._named.pictures or True in self._first

    def _values(self, column: str, values: pd.Series) -> np.ndarray:
        """Return values of a label or a group; a word is held once."""
        if self._kinds[column] == "list" and column == self._named.group:
            raise DataError(
                f"Expected a word or a number in each row of column {column!r} of "
                f"{self._table.name}. Received: lists."
            )
        if self._kinds[column] == "list":
            found = np.empty(len(values), object)
            found[:] = [
                [self._words.setdefault(one, one) if isinstance(one, str) else one for one in row]
                for row in values
            ]
            return found
        if self._kinds[column] == "text":
            words = values.astype(object)
            return np.array([self._words.setdefault(word, word) for word in words], object)
        letter = "b" if self._kinds[column] == "bool" else typed(values).dtype.kind
        kinds = {"b": bool, "i": np.int64, "u": np.int64}
        return typed(values).to_numpy(kinds.get(letter, np.float64))

    def _inputs(self) -> dict[str | None, InputPart]:
        """Return the inputs of a model; several columns of text are one each, by their names."""
        found: dict[str | None, InputPart] = {}
        for name, columns in self._named.inputs.items():
            kinds = {one: self._kinds.get(one, "text") for one in columns}
            kind, *others = {"number" if kind == "bool" else kind for kind in kinds.values()}
            by_name = kind == "text" and name is None
            if others or (len(columns) > 1 and kind != "number" and not by_name):
                listed = ", ".join(f"{one!r} holds {kind}" for one, kind in list(kinds.items())[:5])
                raise DataError(
                    "Expected columns of numbers, or one of text or lists, for an input. "
                    f"Received: {listed} in {self._table.name}."
                )
            if by_name and len(columns) > 1:
                found |= {one: InputPart([one], kind) for one in columns}
            else:
                found[name] = InputPart(columns, kind)
        return found

    @property
    def guessed(self) -> list[str]:
        """Columns of classes or parts that were taken for whole numbers."""
        told = [*self._named.labels, *filter(None, [self._named.part])]
        return [] if self._table.typed else [one for one in told if self._whole.get(one)]

    @property
    def count(self) -> int:
        """The number of the parts' rows."""
        return sum(map(len, self._positions))

    @property
    def weights(self) -> np.ndarray | None:
        """The weights of the parts' rows."""
        return self._weights[0] if self._weights else None

    @property
    def groups(self) -> np.ndarray | None:
        """The groups of the parts' rows."""
        return self._groups[0] if self._groups else None

    @property
    def drawn(self) -> Parts:
        """The parts that a column says; without one, each is all of the table."""
        if not self._sides:
            return Parts(dict.fromkeys(self._splits, np.arange(self.count)), 0)
        sides = {one: self._sides[0] == number for number, one in enumerate(self._splits)}
        return Parts({one: np.flatnonzero(side) for one, side in sides.items()}, 0)

    def labels(self, asked: Kind | Mapping[str, Kind] | None) -> tuple[Task, np.ndarray]:
        """Return the task, which all rows of the table state, and the labels of the parts'.

        Raises:
            DataError: They fit no task, or not the one asked for.
        """
        tasks: Any = self._named.tasks
        several = None not in tasks
        kinds = kinds_of(asked, list(tasks) if several else None)
        found = {name: self._labels(columns, kinds[name]) for name, columns in tasks.items()}
        self._told = {}
        if not several:
            return found[None]
        task = Task.joint({name: task for name, (task, _) in found.items()})
        return task, joined({name: labels for name, (_, labels) in found.items()})

    def _labels(self, named: Sequence[str], kind: Kind | None) -> tuple[Task, np.ndarray]:
        """Return the task that some columns state, and its labels."""
        columns = [self._told[column][0] for column in named]
        told = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
        where = f"{self._table.name}, {columns_told(named)},"
        if told.ndim == 2 and kind is None and told.dtype.kind in "biuf":
            kind = "multilabel" if np.isin(told, (0, 1)).all() else "regression"
        task, labels = labels_from(told, where, named if told.ndim == 2 else None, kind)
        if task.kind != "classification" and told.ndim == 1 and told.dtype != object:
            task = Task(task.kind, tuple(named))
        place = np.cumsum(self._present[0]) - 1
        return task, labels[place[self._positions[0]]]

    @property
    def of_text(self) -> bool:
        """True for inputs that are texts, or paths of files."""
        return any(one.kind == "text" for one in self._inputs().values())

    def source(self) -> _Source:
        """Return the parts' inputs, read from the table or from the files that it names."""
        if self.of_paths and self.of_text:
            return self._of_files()
        inputs, table, text = self._inputs(), self._table, self._text
        whole = {
            name: part.kind == "number" and all(self._whole.get(one) for one in part.columns)
            for name, part in inputs.items()
        }
        columns = list(dict.fromkeys(c for part in inputs.values() for c in part.columns))
        where, stamped = self._positions[0], self._stamp

        def fed(block: pd.DataFrame, at: np.ndarray) -> Any:
            found = {}
            for name, part in inputs.items():
                values = part.of(block, at)
                if part.kind != "text":
                    values = values.astype(np.int64 if whole[name] else np.float32)
                found[name] = values
            return found.get(None, found)

        def read(positions: np.ndarray, treatment: Treatment) -> tuple[tf.data.Dataset, np.ndarray]:
            wanted = where[positions]

            def blocks() -> Iterator[Any]:
                if table.stamp() != stamped:
                    raise DataError(
                        f"Expected {table.name} as it was when it was opened. Received: one that "
                        "has changed since. Open it again."
                    )
                for start, block in table.read(columns, text & set(columns)):
                    low, high = np.searchsorted(wanted, [start, start + len(block)])
                    if high > low:
                        at = wanted[low:high]
                        yield fed(block.iloc[at - start], at)
                    if high == len(wanted):
                        return

            return treated(streamed(blocks, next(blocks()), len(wanted)), treatment), positions

        return _Source(self._keys[0], read)

    def _of_files(self) -> _Source:
        if len(self._inputs()) > 1:
            raise DataError(
                f"Expected one column of {self._table.name} as input, with the paths of files. "
                f"Received: {', '.join(map(repr, self._named.inputs))}."
            )
        try:
            stamps = tuple(stamp(self._table.folder / path) for path in self._paths)
        except DataError as error:
            raise DataError(
                f"{error} Give the path of one, from the table's folder, in each row of column "
                f"{self._inputs().popitem()[1].columns[0]!r} of {self._table.name} where pictures "
                "or sounds are wanted (image_size, channels, length)."
            ) from error
        files = look_at(stamps)

        def read(positions: np.ndarray, treatment: Treatment) -> tuple[tf.data.Dataset, np.ndarray]:
            found = open_files(
                [files[one] for one in positions], treatment, self._table.name, files
            )
            return found.inputs, positions[found.kept]

        keys = np.array([file.key for file in files], np.uint64)
        return _Source(keys, read, partial(reading_of, files))
