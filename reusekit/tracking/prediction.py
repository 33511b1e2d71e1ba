"""Predictions of a model, whether it is at hand or in the registry."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import mlflow
import pandas as pd

from reusekit.arguments import AnyPath, checked
from reusekit.data import DataSplit
from reusekit.data.table_blocks import open_table
from reusekit.errors import DataError
from reusekit.progress import say
from reusekit.tracking.backbones import find_registered
from reusekit.tracking.combination import Combination
from reusekit.tracking.combined import Combined
from reusekit.tracking.names import COMBINED
from reusekit.tracking.usage import Usage, missing_column


@checked(DataError)
def predict(
    model: keras.Model | str,
    inputs: Any,
    *,
    data: DataSplit | None = None,
    probabilities: bool = False,
) -> pd.DataFrame:
    """Predict raw inputs: labels and their probabilities, or numbers.

    Args:
        model: A model, or the address of a registered one, such as `models:/digits@champion`.
        inputs: Several inputs: a list or an array of them; a DataFrame, whose columns are found by
            name; or a dictionary by the names of the model's inputs. An input is text, an array, or
            a picture: the path of its file, or the bytes of that.
        data: The split that the model was trained on, whose names and treatment are used; None for
            those that were registered with it. Where there are none, outputs are numbers.
        probabilities: Give those of all classes or labels, too.

    Returns:
        A row for each input: `label` and `probability`; of several labels lists of those that
        apply, `labels` and `probability`; of numbers a column for each. `probabilities` is a
        dictionary by name. Of several tasks at once each has its columns: `breed`,
        `breed_probability`, `age`.

    Raises:
        DataError: The inputs are not what the model takes.
        BackboneError: It is no such address, or no Keras model, or asks for code to be run.
        TrackingError: There is no such model, or a part of it is gone or altered.

    Example:
        >>> import numpy as np
        >>> import reusekit as rk
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Softmax()])
        >>> x = np.array([[0.0, 3.0], [2.0, 0.0]])
        >>> data = rk.data.from_arrays(x, ["cat", "dog"], split="train", shares=None)
        >>> predict(model, x, data=data)["label"].tolist()
        ['dog', 'cat']
    """
    usage = None if data is None else Usage.of(data)
    behind: Callable[[Any], Any] = _unchanged
    if isinstance(model, str):
        model, usage, behind = _loaded(model, usage)
    return (usage or _unnamed(model)).predict(model, inputs, probabilities, behind=behind)


def predict_files(
    model: str, files: Sequence[AnyPath], probabilities: bool = False
) -> pd.DataFrame:
    """Predict files, with an empty row and a warning for each that cannot be read.

    Args:
        model: The address of a registered model.
        files: Paths of pictures or texts.
        probabilities: Give those of all classes or labels, too.

    Returns:
        A row for each file, as `predict` returns them.

    Raises:
        DataError: None of them is what the model takes.
        BackboneError: It is no such address, or no Keras model, or asks for code to be run.
        TrackingError: There is no such model, or a part of it is gone or altered.
    """
    loaded, usage, behind = _loaded(model)
    use, refused = usage or _unnamed(loaded), []

    def answered(low: int, high: int) -> list[pd.DataFrame]:
        try:
            found = use.predict(loaded, list(files[low:high]), probabilities, behind=behind)
        except DataError as error:
            if high - low == 1:
                refused.append(error)
                return []
            middle = (low + high) // 2
            return answered(low, middle) + answered(middle, high)
        return [found.set_index(pd.RangeIndex(low, high))]

    parts = answered(0, len(files))
    if not parts:
        raise refused[0]
    for error in refused:
        say(f"warning: a row is left empty. {error}")
    return pd.concat(parts).reindex(range(len(files)))


def predict_table(
    model: str, table: AnyPath, column: str | None = None, probabilities: bool = False
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Predict the rows of a table, block by block.

    Args:
        model: The address of a registered model.
        table: A file of CSV, TSV, Parquet or JSON lines. Paths in it are relative to it.
        column: The column that the model is fed; None for those that it was trained on, or all.
        probabilities: Give those of all classes or labels, too.

    Yields:
        The columns that the model was fed, and its answers, as `predict` returns them.

    Raises:
        DataError: The rows are not what the model takes.
        BackboneError: It is no such address, or no Keras model, or asks for code to be run.
        TrackingError: There is no such model, or a part of it is gone or altered.
    """
    opened = open_table(table)
    loaded, usage, behind = _loaded(model)
    usage = usage or _unnamed(loaded)
    if column is not None:
        usage = usage.model_copy(update={"columns": (column,)})
    columns = usage.of_table() or list(opened.columns)
    for one in columns if column is None else ():
        if one not in opened.columns:
            raise missing_column(one, opened.columns)
    opened.check(columns)
    worded = usage.of_pictures or any(one.dtype == "string" for one in loaded.inputs)
    for _, block in opened.read(columns, columns if worded else ()):
        fed = block
        if usage.of_pictures and worded:
            fed = block.map(lambda path: os.fspath(opened.folder / str(path)))
        yield block, usage.predict(loaded, fed, probabilities, behind=behind)


def _loaded(
    address: str, given: Usage | None = None
) -> tuple[keras.Model, Usage | None, Callable[[Any], Any]]:
    """Load a registered model with its use, given or registered, and the function behind it.

    Of a combined model it is the bottom, and the function calls the tops.

    Raises:
        DataError: A combined model is given a use, which would be that of one of its heads.
    """
    stored, client = find_registered(address), mlflow.MlflowClient()
    if stored.role == COMBINED:
        if given is not None:
            raise DataError(
                "Expected data=None of a combined model, whose heads have names of their own. "
                "Received: a DataSplit."
            )
        combined = Combined(Combination.of(stored, client))
        return combined.bottom, combined.usage, combined.outputs
    usage = given or stored.usage(client)  # before the weights, which take longer
    return stored.load(client), usage, _unchanged


def _unchanged(outputs: Any) -> Any:
    return outputs


def _unnamed(model: keras.Model) -> Usage:
    """Return the use of a model of which nobody knows more than its shapes."""
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] is None:
        raise DataError(
            f"Expected a model with one output of shape (n, names). Received: outputs of {shape}."
        )
    return Usage(kind="regression", names=tuple(map(str, range(shape[1]))))
