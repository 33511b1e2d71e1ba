"""Columns of a table: what a user named them for, and their values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reusekit.data.rows import check_values, numbers
from reusekit.data.shares import Shares
from reusekit.data.split import cause_of
from reusekit.data.task import plain
from reusekit.errors import DataError


class TableColumns:
    """The columns that a user named, by what they are for."""

    def __init__(
        self, table: str, input: Any, label: Any, weight: str | None, parts: Shares | str | None
    ) -> None:
        self._input, self._label, self.weight, self._parts = input, label, weight, parts
        by_name = input if isinstance(input, Mapping) else {None: input}
        self.inputs = {
            name: [columns] if isinstance(columns, str) else list(columns)
            for name, columns in by_name.items()
        }
        told = label if isinstance(label, Mapping) else {None: label}
        self.tasks = {
            name: [columns] if isinstance(columns, str) else list(columns)
            for name, columns in told.items()
        }
        every = (column for columns in self.tasks.values() for column in columns)
        self.labels = list(dict.fromkeys(every))
        self.group = parts.group if isinstance(parts, Shares) else None
        self.part = parts if isinstance(parts, str) else None
        fed = [column for columns in self.inputs.values() for column in columns]
        rest = [one for one in (weight, self.part) if one is not None]
        both = next((one for one in (*self.labels, *rest) if one in fed), None)
        if both or not fed:
            raise DataError(
                f"Expected columns of {table} as input that are for nothing else. Received: "
                f"{both!r}."
            )
        self.pictures = False  # whether text is the path of a picture
        self.sounds = False  # whether it may be the path of a sound
        self.columns = list(dict.fromkeys([*fed, *self.labels, *rest, *filter(None, [self.group])]))

    @property
    def origin(self) -> dict[str, Any]:
        """Options that read a split again, beside the table itself."""
        drawn = self._parts.model_dump() if isinstance(self._parts, Shares) else None
        said = {"input": self._input, "label": self._label, "weight": self.weight}
        return {"reader": "from_table", "shares": drawn, "part": self.part, **plain(said)}


def columns_told(columns: Sequence[str]) -> str:
    """Return columns as a message calls them."""
    more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
    return f"column{'s' * (len(columns) > 1)} {', '.join(map(repr, columns[:5]))}{more}"


def floats(column: pd.Series) -> np.ndarray:
    """Return numbers as float64, NaN where they are missing."""
    return typed(column).to_numpy(np.float64, na_value=np.nan)


def typed(column: pd.Series) -> pd.Series:
    """Return values of a category or of objects in a type of numbers."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.astype(column.cat.categories.dtype)
    return pd.to_numeric(column) if column.dtype == object else column


def is_whole(column: pd.Series) -> bool:
    """Return whether a column of numbers holds whole ones."""
    return typed(column).dtype.kind in "iu"


def missing_in(column: pd.Series) -> np.ndarray:
    """Return where a value is missing, or is empty text."""
    none = column.isna().to_numpy(bool)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return none
    empty = (isinstance(one, str) and not one for one in column)
    return none | np.fromiter(empty, bool, len(none))


def kind_of(column: pd.Series) -> str:
    """Return the kind of values: `bool`, `number`, `text`, `list`, or pandas' word for others."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return kind_of(pd.Series(column.cat.categories))
    if pd.api.types.is_bool_dtype(column.dtype):
        return "bool"
    if pd.api.types.is_numeric_dtype(column.dtype):
        return "complex" if pd.api.types.is_complex_dtype(column.dtype) else "number"
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind == "mixed" and all(isinstance(one, list | np.ndarray) for one in column.dropna()):
        return "list"
    numbers = ("integer", "floating", "mixed-integer-float", "decimal")
    names = {"string": "text", "boolean": "bool", **dict.fromkeys(numbers, "number")}
    return names.get(kind, kind)


@dataclass(frozen=True)
class InputPart:
    """The columns of one input of a model, all of one kind: `number`, `text` or `list`."""

    columns: Sequence[str]
    kind: str

    def of(self, block: pd.DataFrame, at: np.ndarray) -> np.ndarray:
        """Return the values of rows at some positions, numbers as float64.

        Raises:
            DataError: Some are missing.
        """
        what = columns_told(self.columns)
        if self.kind == "number":
            found = np.stack([floats(block[column]) for column in self.columns], axis=1)
            numbers(found, what, at)
            return found
        check_values(missing_in(block[self.columns[0]]), what, at)
        values = block[self.columns[0]].astype(object).to_numpy()
        if self.kind == "text":
            return values
        try:
            found = np.stack(
                [np.array(list(map(list, one)) if _nested(one) else one, float) for one in values]
            )
        except (ValueError, TypeError) as error:
            raise DataError(
                f"Expected lists of numbers in {what}, all of one length. Received: "
                f"{cause_of(error)}"
            ) from error
        numbers(found, what, at)
        return found


def _nested(value: Any) -> bool:
    return len(value) > 0 and isinstance(value[0], list | np.ndarray)
