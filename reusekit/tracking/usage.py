"""The use of a registered model: how its inputs are treated, and the names of its outputs."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, ValidationError

from reusekit.arguments import first_fault
from reusekit.data import DataSplit, Treatment
from reusekit.data.task import AnyKind, Task
from reusekit.errors import DataError, TrackingError
from reusekit.graph import read
from reusekit.startup import without_retracing
from reusekit.tracking.raw_inputs import (
    CHUNK,
    InputValues,
    content_of,
    count_of,
    decoded,
    listed,
    numbers_of,
    texts_of,
)

USAGE = Path("data", "usage.json")
"""Where the usage lies in a model's folder, beside the model."""

_BATCH = 64
_BASE64 = "b64"
"""What TensorFlow Serving calls the only entry of an input that is bytes in base64."""

Columns = tuple[str, ...] | Mapping[str, tuple[str, ...]]


class Answers(BaseModel):
    """The meaning of a model's outputs in one task, as plain data.

    Attributes:
        kind: The kind of the task.
        names: The names of the outputs: classes, labels, or numbers to predict.
        thresholds: The probability from which on each of several labels applies; None for a half.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: AnyKind
    names: Annotated[tuple[str, ...], MinLen(1)]
    thresholds: tuple[float, ...] | None = None

    def columns_of(self, task: str = "") -> dict[str, str]:
        """Return the kind of values in each column of answers, those of one of several tasks.

        They are `number`, `word`, `words` and `numbers`.
        """
        if self.kind == "regression":
            one = bool(task) and len(self.names) == 1
            names = [task] if one else [f"{task}_{name}" if task else name for name in self.names]
            return dict.fromkeys(names, "number")
        before = f"{task}_" if task else ""
        if self.kind == "classification":
            return {task or "label": "word", f"{before}probability": "number"}
        return {task or "labels": "words", f"{before}probability": "numbers"}

    def named(self, outputs: np.ndarray, probabilities: bool, task: str = "") -> pd.DataFrame:
        """Return the answers that outputs mean, by the columns of `columns_of`.

        Raises:
            DataError: They are not finite, or not as many as there are names.
        """
        names = np.array(self.names, object)
        broken = np.flatnonzero(~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1))
        if len(broken):
            raise DataError(
                "Expected inputs of which the model makes finite numbers. Received: others in "
                f"{len(broken):,} of {len(outputs):,}, the first of them the one at {broken[0]}."
            )
        if outputs.shape[1:] != (len(names),):
            raise DataError(
                f"Expected a model with {len(names)} outputs. Received: outputs of shape "
                f"{outputs.shape[1:]}."
            )
        columns = list(self.columns_of(task))
        if self.kind == "regression":
            return pd.DataFrame(outputs, columns=columns)
        if self.kind == "classification":
            best = outputs.argmax(axis=1)
            said: list[Any] = [names[best], outputs[np.arange(len(best)), best]]
        else:
            applies = outputs >= np.array(self.thresholds or 0.5)
            said = [
                [names[row].tolist() for row in applies],
                [one[row].tolist() for one, row in zip(outputs, applies, strict=True)],
            ]
        told = dict(zip(columns, said, strict=True))
        if probabilities:
            told[f"{task}_probabilities" if task else "probabilities"] = [
                dict(zip(self.names, row, strict=True)) for row in outputs.tolist()
            ]
        return pd.DataFrame(told)


class Usage(Answers):
    """The use of a model, as plain data.

    Attributes:
        kind: The kind of its task.
        names: The names of its outputs: classes, labels, or numbers to predict; of several tasks
            those of the tasks.
        thresholds: The probability from which on each of several labels applies; None for a half.
        tasks: The meaning of the outputs of several tasks, by name; none for a single one.
        treatment: How pictures become what the model takes.
        columns: The columns of a table that it was trained on, or those of each of its inputs;
            None where it was trained on no table.

    Example:
        >>> import reusekit as rk
        >>> digits = rk.data.load("sklearn_digits", "test[:4]")
        >>> Usage.of(digits).names
        ('0', '1', '2', '3', '4', '5', '6', '7', '8', '9')
    """

    tasks: Mapping[str, Answers] = {}
    treatment: Treatment = Treatment()
    columns: Columns | None = None

    @classmethod
    def of(cls, split: DataSplit, thresholds: Any = None) -> "Usage":
        """Return the use of a model that is trained on a split.

        Args:
            split: The training split, as the model takes it.
            thresholds: See the attribute; of several tasks those by name.
        """
        told, shape = split.treatment, split.input_shape
        size, channels = told.image_size, told.channels
        if (size or channels) and isinstance(shape, tuple) and len(shape) == 3:
            # What was left to the files is decided now.
            channels = shape[2]
            size = None if None in shape[:2] else shape[:2]
        columns = split.origin.get("input") if split.origin.get("reader") == "from_table" else None
        if isinstance(columns, Mapping):
            columns = {name: _several(one) for name, one in columns.items()}
        by_name = split.task.by_name
        several = (thresholds or {}) if by_name else {}
        return cls(
            **_meaning(split.task, None if by_name else thresholds),
            tasks={n: Answers(**_meaning(one, several.get(n))) for n, one in by_name.items()},
            treatment=Treatment(
                image_size=size, channels=channels, resize=told.resize, length=told.length
            ),
            columns=_several(columns) if isinstance(columns, str | list | tuple) else columns,
        )

    @classmethod
    def read(cls, file: Path, named: str) -> "Usage":
        """Read the usage of a model that errors name.

        Raises:
            TrackingError: It is damaged.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise TrackingError(
                f"Expected {USAGE.as_posix()} of {named} as it was written. Received: one that is "
                f"damaged{first_fault(error)}. Register the model again."
            ) from error

    def predict(
        self,
        model: keras.Model,
        inputs: Any,
        probabilities: bool = False,
        files: bool = True,
        behind: Callable[[Any], Any] = lambda made: made,
    ) -> pd.DataFrame:
        """Predict raw inputs.

        Args:
            model: The model, or a bottom.
            inputs: Several inputs, as `reusekit.predict` takes them.
            probabilities: Give those of all classes or labels, too.
            files: Whether text may be the path of a picture.
            behind: A function from what a bottom makes of a batch to the outputs.

        Returns:
            A row for each input, as `reusekit.predict` returns them.

        Raises:
            DataError: The inputs are not what the model takes.
        """
        if probabilities and all(one.kind == "regression" for one in self.by_task.values()):
            raise DataError(
                "Expected probabilities=False: the model predicts numbers. Received: True."
            )
        structure = read(model).input_structure
        columns = self._by_input(structure, inputs)
        outputs: list[Mapping[str, np.ndarray]] = []
        for start in range(0, count_of(len(one.values) for one in columns), CHUNK):
            arrays = [self._ready(one.part(start), files) for one in columns]
            for at in range(0, len(arrays[0]), _BATCH):
                batch = [array[at : at + _BATCH] for array in arrays]
                fed = keras.tree.pack_sequence_as(structure, batch)
                with without_retracing():
                    made = model.predict_on_batch(fed)
                outputs.append(self.outputs(behind(made)))
        answers = pd.concat(
            [
                one.named(np.concatenate([batch[task] for batch in outputs]), probabilities, task)
                for task, one in self.by_task.items()
            ],
            axis=1,
        )
        if isinstance(inputs, pd.DataFrame | pd.Series):
            answers.index = inputs.index
        return answers

    @property
    def by_task(self) -> Mapping[str, Answers]:
        """The meaning of each task's outputs, by its name; a single task has none."""
        return self.tasks or {"": self}

    def answers(self) -> dict[str, str]:
        """Return the kind of values in each column of predictions; see `Answers.columns_of`."""
        by_task = self.by_task.items()
        return {name: kind for task, one in by_task for name, kind in one.columns_of(task).items()}

    def outputs(self, made: Any) -> dict[str, np.ndarray]:
        """Return a batch of outputs by task.

        Raises:
            DataError: They are those of other tasks.
        """
        by_task = made if isinstance(made, Mapping) else {"": made}
        if by_task.keys() != self.by_task.keys():
            raise DataError(
                f"Expected a model with outputs {', '.join(self.tasks) or 'of one task'}. "
                f"Received: {', '.join(by_task) or 'one of a single task'}."
            )
        return {task: np.asarray(part, "float32") for task, part in by_task.items()}

    @property
    def of_pictures(self) -> bool:
        """True for inputs that are pictures, by the treatment of the training data."""
        return bool(self.treatment.image_size or self.treatment.channels)

    def of_table(self) -> list[str]:
        """Return the columns of the table that the model was trained on; none without one."""
        return [] if self.columns is None else _flat(self.columns)

    def _by_input(self, structure: Any, inputs: Any) -> list[InputValues]:
        """Return the values of each of a model's inputs, in their order."""
        tensors = keras.tree.flatten(structure)
        if isinstance(structure, dict):
            names = keras.tree.flatten({key: key for key in structure})
        else:
            names = [tensor.address for tensor in tensors]
        if isinstance(inputs, Mapping):
            given = list(inputs)
            if len(tensors) == 1 and (given == [names[0]] or self._is_base64(given)):
                inputs = decoded(inputs[given[0]]) if self._is_base64(given) else inputs[given[0]]
            elif self.columns is not None and set(self.of_table()) <= set(given):
                parts = {name: listed(inputs[name]) for name in given}
                count_of(map(len, parts.values()))
                inputs = pd.DataFrame({name: list(part) for name, part in parts.items()})
        if isinstance(inputs, pd.DataFrame):
            found = self._of_frame(inputs, names)
        elif isinstance(inputs, Mapping):
            missing = next((name for name in names if name not in inputs), None)
            if missing is not None or len(inputs) != len(names):
                raise DataError(
                    f"Expected inputs by the names {', '.join(map(repr, names))}. Received: "
                    f"{', '.join(map(repr, inputs))[:200]}."
                )
            found = [inputs[name] for name in names]
        elif len(tensors) > 1:
            raise DataError(
                f"Expected a dictionary with {', '.join(map(repr, names))}, or a DataFrame. "
                f"Received: {type(inputs).__name__}."
            )
        else:
            found = [inputs]
        return [
            InputValues(name, tuple(tensor.shape[1:]), tensor.dtype, listed(values))
            for name, tensor, values in zip(names, tensors, found, strict=True)
        ]

    def _of_frame(self, frame: pd.DataFrame, names: Sequence[str]) -> list[Any]:
        """Return what a DataFrame has for each input."""
        if self._is_base64(list(frame.columns)):
            return [decoded(frame[_BASE64])]
        wanted: Any = self.columns
        if wanted is None and len(names) == 1:  # whatever it is called
            wanted = tuple(frame.columns)
            if len(wanted) > 1 and not any(map(pd.api.types.is_numeric_dtype, frame.dtypes)):
                raise DataError(
                    f"Expected one column for the input {names[0]!r} (--column). Received: "
                    f"{len(wanted)}, {', '.join(map(repr, wanted))[:200]}."
                )
        if not isinstance(wanted, Mapping):
            # Several columns of text are an input each.
            wanted = {names[0]: wanted} if len(names) == 1 else {name: (name,) for name in names}
        if set(wanted) != set(names):
            wanted = dict(zip(names, wanted.values(), strict=False))
        for column in _flat(wanted):
            if column not in frame.columns:
                raise missing_column(column, frame.columns)
        return [
            frame[wanted[name][0]] if len(wanted[name]) == 1 else numbers_of(frame[[*wanted[name]]])
            for name in names
        ]

    def _is_base64(self, given: Sequence[Any]) -> bool:
        return self.of_pictures and list(given) == [_BASE64]

    def _ready(self, column: InputValues, files: bool) -> Any:
        """Return some values as the model takes them."""
        values = column.values
        if column.dtype == "string":
            return texts_of(column)
        raw = [isinstance(value, str | bytes | os.PathLike) for value in values]
        if any(raw):
            if not self.of_pictures or not all(raw):
                raise column.refused("text, bytes or paths")
            if not files and not all(isinstance(value, bytes) for value in values):
                raise DataError(
                    f"Expected pictures as {{{_BASE64!r}: ...}}, in base64. Received: text; paths "
                    "would be those of the server's own files."
                )
            return column.checked(content_of(values, self.treatment, "picture"))
        if isinstance(values, list) and all(isinstance(value, np.ndarray) for value in values):
            values = [self._treated(value[None], column)[0] for value in values]
        try:
            array = np.asarray(values)
        except ValueError as error:  # of different shapes
            raise column.refused("some of different shapes") from error
        if not np.can_cast(array.dtype, column.dtype, "same_kind") or array.dtype.kind == "O":
            raise column.refused(f"values of {array.dtype}")
        ready = column.checked(self._treated(array, column)).astype(column.dtype)
        # Not left to the outputs: some kernels make 0 of what is no number.
        if ready.dtype.kind == "f" and not np.isfinite(ready).all():
            raise column.refused("some that are not finite")
        return ready

    def _treated(self, array: np.ndarray, column: InputValues) -> np.ndarray:
        """Treat pictures of 8 or 16 bits and series as those of the training data were."""
        picture = array.dtype in (np.uint8, np.uint16) and array.ndim == 4
        if picture and len(column.shape) == 3:
            spec = tf.TensorSpec(array.shape[1:], array.dtype)
        elif self.treatment.length and array.ndim in (2, 3) and array.dtype.kind in "biuf":
            spec = tf.TensorSpec((None, *array.shape[2:]), array.dtype)
        else:
            return array
        treat = self.treatment.of(spec)
        return np.stack([np.asarray(treat(tf.constant(one))) for one in array])


def missing_column(column: Any, there: Iterable[Any]) -> DataError:
    """Return the error for a table without a column that a model is fed."""
    listed = ", ".join(map(repr, there))[:200] or "none"
    return DataError(
        f"Expected a table with the column {column!r}, which the model was trained on. Received: "
        f"the columns {listed}."
    )


def _meaning(task: Task, thresholds: Sequence[float] | None) -> dict[str, Any]:
    """Return the values of `Answers` for a task."""
    chosen = None if thresholds is None else tuple(map(float, thresholds))
    return {"kind": task.kind, "names": task.names, "thresholds": chosen}


def _several(columns: str | Sequence[str]) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)


def _flat(columns: Columns) -> list[str]:
    if isinstance(columns, Mapping):
        return [column for some in columns.values() for column in some]
    return list(columns)
