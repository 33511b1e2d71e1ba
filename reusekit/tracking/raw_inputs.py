"""Raw inputs of a registered model: values of each input, texts and files among them."""

import base64
import binascii
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tensorflow as tf

from reusekit.data import Treatment
from reusekit.data.files import look_at, stamp
from reusekit.data.opened_files import open_files
from reusekit.errors import DataError

CHUNK = 1024  # inputs that are made ready at a time


class InputValues(NamedTuple):
    """The values of one of a model's inputs.

    Attributes:
        name: The input's.
        shape: Of one value, as the model takes it.
        dtype: Of what the model takes.
        values: The values.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    values: Any

    def part(self, start: int) -> "InputValues":
        """Return the values from a position on that are made ready together."""
        return self._replace(values=self.values[start : start + CHUNK])

    def checked(self, array: np.ndarray) -> np.ndarray:
        """Return an array where its shape is what the model takes."""
        if array.ndim == len(self.shape) and self.shape[-1:] == (1,):  # as Keras adds it
            array = array[..., None]
        elif array.ndim == len(self.shape) + 2 and array.shape[-1] == 1:
            array = array[..., 0]
        fits = array.ndim - 1 == len(self.shape) and all(
            size in (None, found) for size, found in zip(self.shape, array.shape[1:], strict=True)
        )
        if not fits:
            raise self.refused(f"an array of shape {array.shape}")
        return array

    def refused(self, received: str) -> DataError:
        """Return the error for values that are of another kind."""
        shape = ", ".join(["n", *("any" if size is None else str(size) for size in self.shape)])
        return DataError(
            f"Expected {self.dtype} of shape ({shape}) for the input {self.name!r}. Received: "
            f"{received}."
        )


def count_of(lengths: Iterable[int]) -> int:
    """Return how many inputs there are, by how many there are of each kind."""
    counts = set(lengths)
    if len(counts) != 1 or 0 in counts:
        raise DataError(
            "Expected one input at least, and as many of each kind. Received: "
            f"{', '.join(map(str, sorted(counts)))}."
        )
    return counts.pop()


def listed(values: Any) -> Any:
    """Return values as an array of numbers or a list; one text, path or file is a list of one."""
    if isinstance(values, str | bytes | os.PathLike):
        return [values]
    if isinstance(values, np.ndarray) and values.dtype.kind == "S":
        raise DataError(
            "Expected bytes in a list: an array of them has lost zeros at their ends. Received: an "
            f"array of {values.dtype}."
        )
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OU":
        if not values.ndim:
            raise DataError(f"Expected several inputs. Received: {values}.")
        return values
    if isinstance(values, pd.Series):
        return values.tolist()
    if isinstance(values, Sequence | np.ndarray | tf.Tensor):
        return list(values) if not isinstance(values, tf.Tensor) else listed(values.numpy())
    raise DataError(
        "Expected a list or an array of inputs, a DataFrame, or a dictionary. Received: "
        f"{type(values).__name__}."
    )


def numbers_of(frame: pd.DataFrame) -> np.ndarray:
    """Return columns of numbers as one array."""
    for column in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            raise DataError(
                f"Expected numbers in the column {column!r}. Received: {frame[column].dtype}."
            )
    return frame.to_numpy("float32")


def decoded(values: Any) -> list[bytes]:
    """Return bytes that are given in base64."""
    try:
        return [base64.b64decode(value, validate=True) for value in listed(values)]
    except (binascii.Error, ValueError, TypeError) as error:
        raise DataError(f"Expected pictures in base64. Received: {str(error)[:200]}.") from error


def texts_of(column: InputValues) -> Any:
    """Return texts as a tensor; those of files are read."""
    values = list(column.values)
    if column.shape == (1,):
        values = [
            one[0] if isinstance(one, list | np.ndarray) and len(one) else one for one in values
        ]
    paths = [place for place, value in enumerate(values) if isinstance(value, os.PathLike)]
    if paths:
        found = content_of([values[place] for place in paths], Treatment(), "text")
        for place, text in zip(paths, found, strict=True):
            values[place] = text.decode()
    for place, value in enumerate(values):
        if isinstance(value, bytes):  # as the arrays of a split have texts
            values[place] = value = _read_text(value)
        if not isinstance(value, str):
            raise DataError(
                f"Expected texts for the input {column.name!r}. Received: {str(value)[:80]!r}, of "
                f"type {type(value).__name__}."
            )
    texts = tf.constant(values)
    return texts[:, None] if column.shape == (1,) else texts


def _read_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"Expected text in UTF-8. Received: {value[:80]!r}.") from error


def content_of(values: Sequence[Any], treatment: Treatment, kind: str) -> np.ndarray:
    """Return the content of files of one kind, given by their paths or as bytes."""
    with TemporaryDirectory() as scratch:
        paths = []
        for place, value in enumerate(values):
            paths.append(value)
            if isinstance(value, bytes):
                paths[-1] = Path(scratch, f"input {place}")
                paths[-1].write_bytes(value)
            elif not os.path.isfile(value):
                raise DataError(
                    f"Expected the path of a {kind}. Received: {str(value)[:200]!r}, where no file "
                    "is."
                )
        try:
            found = look_at(tuple(stamp(path) for path in paths))
            for file in found:
                if file.kind != kind:
                    why = file.trouble or f"a {file.kind}"
                    raise DataError(f"Expected a {kind}. Received: {file.path} ({why}).")
            inputs = open_files(found, treatment, "the input").inputs
            try:
                return np.stack(list(inputs.as_numpy_iterator()))
            except ValueError as error:
                raise DataError("Expected pictures of one size. Received: several.") from error
        except DataError as error:
            raise DataError(str(error).replace(f"{scratch}{os.sep}", "")) from error
