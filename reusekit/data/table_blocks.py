"""Tables in blocks of rows: CSV, TSV, Parquet, JSON lines, and pandas DataFrames."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from reusekit.arguments import expanded
from reusekit.data.files import stamp
from reusekit.data.rows import ROWS
from reusekit.data.split import cause_of
from reusekit.errors import DataError, ReusekitError, nearest

_NO_NUMBER = ["", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "<NA>"]
"""Text that stands for a missing number."""
_BROKEN = (ValueError, OSError, EOFError, zlib.error)
"""Errors of a file that cannot be read; pandas' and pyarrow's own are of these."""


@dataclass(frozen=True)
class Table:
    """A table that is read in blocks.

    Attributes:
        name: As a message calls it.
        columns: The names of its columns.
        blocks: From columns, and those of them to take as text, to blocks of rows.
        typed: Whether it says the types of its columns; else they are guessed block by block.
        path: Where it lies; None for a DataFrame.
    """

    name: str
    columns: Sequence[Any]
    blocks: Callable[[Sequence[str], Collection[str]], Iterator[pd.DataFrame]]
    typed: bool = True
    path: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder that paths in the table are relative to."""
        return self.path.parent if self.path else Path()

    def stamp(self) -> Any:
        """Return what differs where the file does."""
        return self.path and stamp(self.path)

    def check(self, wanted: Sequence[str]) -> None:
        """Refuse columns that are not there, or there twice."""
        for column in wanted:
            count = list(self.columns).count(column)
            if count > 1:
                raise DataError(
                    f"Expected {self.name} to have one column {column!r}. Received: {count}. "
                    "Rename all but one."
                )
            if not count:
                hint = nearest(column, map(str, self.columns))
                raise DataError(f"Expected a column of {self.name}. Received: {column!r}. {hint}")

    def read(
        self, columns: Sequence[str], text: Collection[str] = ()
    ) -> Iterator[tuple[int, pd.DataFrame]]:
        """Yield blocks, each with the position of its first row."""
        start = 0
        try:
            for block in self.blocks(columns, text):
                if not self.typed and not isinstance(block.index, pd.RangeIndex):
                    raise DataError(
                        f"Expected rows of {self.name} to have as many fields as its header. "
                        "Received: more. Put text that holds the separator in quotes."
                    )
                yield start, block[list(columns)]
                start += len(block)
        except ReusekitError:
            raise
        except _BROKEN as error:
            mend = "Save it in UTF-8" if isinstance(error, UnicodeDecodeError) else "Mend the file"
            raise DataError(
                f"Expected a table that can be read. Received: {self.name}: "
                f"{cause_of(error).rstrip('.')}. {mend}, or pass a DataFrame."
            ) from error


def open_table(table: Any) -> Table:
    """Open a table; the format of a file follows from its first bytes.

    Args:
        table: A path or a DataFrame.

    Raises:
        DataError: There is no such file, or it is no table.
    """
    if isinstance(table, pd.DataFrame):
        frame = table.copy(deep=False)
        frame.columns = [*map(str, table.columns)]
        # pandas itself cannot sort or look up numbers in the other order of bytes.
        kinds = dict(enumerate(frame.dtypes))
        swapped = {at: k for at, k in kinds.items() if not getattr(k, "isnative", True)}
        for at, kind in swapped.items():
            frame.isetitem(at, frame.iloc[:, at].astype(kind.newbyteorder("=")))

        def rows(columns: Sequence[str], _: Any) -> Iterator[pd.DataFrame]:
            for start in range(0, len(frame), ROWS):
                yield frame[list(columns)].iloc[start : start + ROWS]

        return Table("DataFrame", list(frame.columns), rows)
    path = expanded(table, DataError)
    if not path.is_file():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        hint = nearest(path.name, [one.name for one in beside if one.is_file()])
        what = "a folder; see rk.data.from_folder" if path.is_dir() else f"no file. {hint}"
        raise DataError(f"Expected a file with a table. Received: {str(path)!r}, {what}".strip())
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as opened:
            head = opened.read(65_536)
    except _BROKEN as error:
        raise DataError(
            f"Expected a table that can be read. Received: {path.name}: "
            f"{cause_of(error).rstrip('.')}. Mend the file, or pass a DataFrame."
        ) from error
    packing = "gzip" if packed else None
    if head.startswith(b"PAR1"):
        return _parquet(path)
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
        return _json_lines(path, packing)
    first = next(iter(head.removeprefix(b"\xef\xbb\xbf").splitlines()), b"")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # as Excel calls Unicode
        raise DataError(
            f"Expected {path.name} in UTF-8. Received: text in UTF-16. Save it in UTF-8, or pass a "
            "DataFrame."
        )
    if b"\0" in head or head.startswith((b"PK\x03\x04", b"[")) or not first.strip():
        received = "an empty file" if not head.strip() else "something else"
        raise DataError(
            f"Expected {path.name} to be CSV, TSV, Parquet, or JSON with an object on each line. "
            f"Received: {received}."
        )
    return _csv(path, packing, first.decode(errors="replace"))


def _nullable(kind: pa.DataType) -> Any:
    """Return a type of pandas that stays whole where a value is missing."""
    if pa.types.is_boolean(kind):
        return pd.BooleanDtype()
    return pd.Int64Dtype() if pa.types.is_integer(kind) else None


def _parquet(path: Path) -> Table:
    def blocks(columns: Sequence[str], _: Any) -> Iterator[pd.DataFrame]:
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            for batch in file.iter_batches(ROWS, columns=list(columns), use_threads=False):
                yield batch.to_pandas(types_mapper=_nullable, ignore_metadata=True)

    try:
        columns = pq.read_schema(path).names
    except (ValueError, OSError) as error:
        raise DataError(
            f"Expected a table that can be read. Received: {path.name}: "
            f"{cause_of(error).rstrip('.')}. Mend the file, or pass a DataFrame."
        ) from error
    return Table(path.name, columns, blocks, path=path)


def _json_lines(path: Path, packing: str | None) -> Table:
    """Open JSON lines; pandas' reader takes text for dates where a column's name looks like one."""

    def rows() -> Iterator[list[dict[str, Any]]]:
        with (gzip.open if packing else open)(path, "rt", encoding="utf-8-sig") as file:
            lines = (line for line in file if line.strip())
            while found := [json.loads(line) for line in islice(lines, ROWS)]:
                odd = next((one for one in found if not isinstance(one, dict)), None)
                if odd is not None:
                    raise DataError(
                        f"Expected an object on each line of {path.name}. Received: {odd!r}."
                    )
                yield found

    def blocks(columns: Sequence[str], _: Any) -> Iterator[pd.DataFrame]:
        for found in rows():
            named = {
                one: pd.Series([row.get(one) for row in found], dtype=object) for one in columns
            }
            yield pd.DataFrame(named)

    try:
        first = next(rows())
    except _BROKEN as error:
        raise DataError(
            f"Expected a table that can be read. Received: {path.name}: "
            f"{cause_of(error).rstrip('.')}. Mend the file, or pass a DataFrame."
        ) from error
    columns = list(dict.fromkeys(name for row in first for name in row))
    return Table(path.name, columns, blocks, path=path)


def _csv(path: Path, packing: str | None, first: str) -> Table:
    headers = {mark: next(csv.reader([first], delimiter=mark)) for mark in ",\t;|"}
    mark = max(headers, key=lambda one: len(headers[one]))

    def blocks(columns: Sequence[str], text: Collection[str]) -> Iterator[pd.DataFrame]:
        with pd.read_csv(
            path,  # all columns: with usecols, fields beyond the header would be dropped in silence
            sep=mark,
            dtype=dict.fromkeys(text, "string"),
            na_values={column: [""] if column in text else _NO_NUMBER for column in columns},
            keep_default_na=False,
            dtype_backend="numpy_nullable",
            chunksize=ROWS,
            low_memory=False,  # else numbers and words mix in one block
            compression=packing,
        ) as reader:
            for block in reader:
                if mark == "\t":
                    _refuse_rows_in_quotes(block, path.name)
                yield block

    return Table(path.name, headers[mark], blocks, typed=False, path=path)


def _refuse_rows_in_quotes(block: pd.DataFrame, name: str) -> None:
    """Refuse text with tabs and line ends: rows that a stray quotation mark swallowed."""
    for column in block.select_dtypes("string"):
        texts = block[column].dropna()
        texts = texts[texts.str.contains("\t", regex=False)]
        swallowed = texts[texts.str.contains("\n", regex=False)]
        if len(swallowed):
            raise DataError(
                f"Expected quotation marks of {name} in pairs around a text. Received: text with "
                f"tabs and line ends in column {column!r}: {swallowed.iloc[0][:60]!r}. Write it as "
                "Parquet or CSV, where its quotation marks are doubled."
            )
