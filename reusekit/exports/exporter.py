"""The exporter: a model as a file, run in the file's runtime on real examples before it is kept."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import keras
import numpy as np
from pydantic import Field

from reusekit.arguments import AnyPath, checked, expanded
from reusekit.data import DataSplit
from reusekit.data.task import joined
from reusekit.errors import ExportError
from reusekit.exports.formats import (
    FORMATS,
    Format,
    Named,
    Quantization,
    Running,
    without_remarks,
)
from reusekit.exports.interface import Interface, flat, interface_of
from reusekit.exports.record import Export, Figures
from reusekit.features.stored import check_examples
from reusekit.graph import Graph, read
from reusekit.planning.costs import median_seconds
from reusekit.sharing.counts import bytes_of
from reusekit.surgery import extract
from reusekit.surgery.certificate import random_inputs
from reusekit.tasks import TaskRules, rules_of

_BATCH = 64
_CALIBRATED_ON = 200  # examples, beyond which ranges hardly grow
_RUNS, _TIMED = (5, 50), 5
"""How often a file is timed, and how many seconds that of Keras may take."""
_TOLERANCES = {True: 1e-3, False: 5e-2}
"""Relative to the largest output, where the file computes in the model's precision, and not."""

AnyFormat = Literal["litert", "onnx", "openvino", "saved_model"]
Loss = Annotated[float, Field(ge=0)]


@checked(ExportError)
def export(
    model: keras.Model,
    format: AnyFormat,
    quantize: Quantization | None = None,
    check: DataSplit | None = None,
    calibrate: DataSplit | None = None,
    folder: AnyPath = ".",
    max_accuracy_loss: Loss | None = None,
) -> Export:
    """Write a model as a file for another runtime, and compare the two.

    The file is opened in its own runtime and given the examples of `check`. What it says is
    compared with the Keras model, and both are timed. All that the model does is inside, such as
    its preprocessing; what varies examples in training alone is not. Inputs and outputs have the
    names of the model's, by which runtimes are fed. Strings that become numbers on their way stay
    outside where the format has none. The file appears whole, or not at all.

    Args:
        model: A model with a functional graph.
        format: "litert" (one `.tflite` file), "onnx" (one file), "openvino" or "saved_model" (a
            folder each).
        quantize: The precision: None for float32; "float16"; "int8", where weights have eight bits
            and ranges are found at each call; "int8-calibrated", where `calibrate` decides them.
        check: Examples to compare on; None makes up a few, by which no measure can be told.
        calibrate: Training examples, of which some 200 are looked at.
        folder: Where to; made if it is not there. The file's name is made of the model's name,
            format and precision, and takes the place of an earlier one.
        max_accuracy_loss: The most that the task's measure may lose (accuracy, F1 of several
            labels, mean absolute error of numbers); None for any.

    Returns:
        Where the file is, and how it compares.

    Raises:
        ExportError: The format cannot have the precision or what a layer computes, which is named;
            its runtime is not installed; or the file says something else than the model, or loses
            more than it may. No file is left then.
        DataError: The examples are none of the model's.
        NoGraphError: The model has no functional graph.

    Example:
        >>> import tempfile
        >>> x = keras.Input((4,), name="x")
        >>> model = keras.Model(x, keras.layers.Dense(2, name="y")(x), name="small")
        >>> exported = export(model, "saved_model", folder=tempfile.mkdtemp())
        >>> Path(exported.path).name, exported.inputs, exported.max_difference < 1e-5
        ('small-saved_model', {'x': 'float32 (?, 4)'}, True)
    """
    exporter = Exporter(model, check, calibrate, folder, max_accuracy_loss)
    return exporter.export(format, quantize)


@dataclass(frozen=True, eq=False)
class Exporter:
    """Exports of one model, which runs on the examples only once; see `export`.

    Attributes:
        model: The model.
        check: Examples to compare on.
        calibrate: Examples to calibrate on.
        folder: Where files are written.
        max_accuracy_loss: The most that the measure may lose.
        rules: The rules of the task, with the model's own thresholds; None for those of `check`.
    """

    model: keras.Model
    check: DataSplit | None = None
    calibrate: DataSplit | None = None
    folder: AnyPath = "."
    max_accuracy_loss: float | None = None
    rules: TaskRules | None = None

    def export(self, format: AnyFormat, quantize: Quantization | None = None) -> Export:
        """Write one file and compare it; see `export`."""
        kind = FORMATS[format]
        kind.check(quantize)
        self._check(quantize)
        face = interface_of(self._graph, kind.texts, kind.exact)
        folder = expanded(self.folder, ExportError)
        path = folder / file_name(self.model.name, format, quantize)
        calibrating = self._calibrating(face) if self.calibrate else lambda: iter(())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=folder, prefix=".export-") as draft:
                written = Path(draft, path.name)
                example = face.fed(self._batches[0])
                runs = self._written(face, kind, quantize, written, example, calibrating)
                found = self._compared(face, kind, quantize, runs, written)
                if path.is_dir():
                    path.replace(Path(draft, "earlier"))
                written.replace(path)
        except OSError as error:
            raise ExportError(
                f"Expected a folder that can be written. Received: {str(folder)!r}: "
                f"{error.strerror or error}."
            ) from error
        return Export(str(path), format, quantize, **found)

    def tuned(self) -> "Exporter":
        """Return it with the rules' choices by the Keras model on `check`, such as thresholds."""
        if self._measuring is None:
            return self
        rules, labels = self._measuring
        tuned = replace(self, rules=rules.tuned(self._outputs(self._expected), labels))
        # The examples and what the model says of them stay, so that it runs on them only once.
        vars(tuned).update(_batches=self._batches, _expected=self._expected)
        return tuned

    def measure(self, format: AnyFormat, quantize: Quantization | None = None) -> Figures:
        """Return what a file takes that is written and gone at once, whatever its numbers are.

        Weights do not matter, and ranges of int8 follow from one example: nothing is compared.

        Raises:
            ExportError: As `export` raises it.
            NoGraphError: The model has no functional graph.
        """
        kind = FORMATS[format]
        kind.check(quantize)
        face = interface_of(self._graph, kind.texts, kind.exact)
        size = self._fixed or 1
        if self.check is None or self.check.size < size:
            raw = random_inputs(self._graph, batch=size)
        else:
            raw = _plain(next(iter(self.check.batches(size)))[0])
        example = face.fed(raw)
        try:
            with TemporaryDirectory() as scratch:
                path = Path(scratch, f"model{kind.ending}")
                runs = self._written(face, kind, quantize, path, example, lambda: iter([example]))
                run, alone = runs
                seconds = _timed([lambda: run(example), lambda: alone(example)])
                return _figures(kind, path, seconds, None)
        except OSError as error:
            raise ExportError(
                "Expected room for a file in the folder of temporary ones. Received: "
                f"{error.strerror or error}."
            ) from error

    def _check(self, quantize: Quantization | None) -> None:
        """Refuse what is asked for without the examples that it takes."""
        graph = self._graph
        for name, split in (("check", self.check), ("calibrate", self.calibrate)):
            if split is not None:
                check_examples(graph, split, name, None)
        if quantize == "int8-calibrated" and self.calibrate is None:
            raise ExportError(
                "Expected calibrate, some training examples, for quantize='int8-calibrated'. "
                "Received: None. Choose quantize='int8', which takes none."
            )
        if self.max_accuracy_loss is not None and self._measuring is None:
            raise ExportError(
                "Expected check, examples of the model's task, with max_accuracy_loss. Received: "
                + ("None." if self.check is None else f"{self.check}, which the model is not for.")
            )

    # --- writing ----------------------------------------------------------------------------------

    def _written(
        self,
        face: Interface,
        kind: Format,
        quantize: Quantization | None,
        path: Path,
        example: Named,
        calibrating: Callable[[], Iterator[Named]],
    ) -> tuple[Running, Running]:
        """Write a file and open it twice: on all threads, and on one.

        Raises:
            ExportError: The format cannot express what a layer computes.
        """
        try:
            with without_remarks():
                kind.write(face, path, quantize, calibrating)
            on_all, on_one = (kind.open(path, [*face.outputs], threads) for threads in (None, 1))
            for run in (on_all, on_one):
                found = run(example)
                if set(found) != set(face.outputs):
                    raise ExportError(
                        f"Expected the file to have outputs {', '.join(face.outputs)}. Received: "
                        f"{', '.join(found)}. Choose another format."
                    )
            return on_all, on_one
        except OSError:
            raise
        except Exception as error:  # converters and runtimes raise whatever they like
            raise _refused(face, kind, quantize, error) from error

    def _calibrating(self, face: Interface) -> Callable[[], Iterator[Named]]:
        """Return what gives the inputs of some examples, drawn evenly from all."""
        split = self.calibrate
        assert split is not None
        size = self._fixed or 1
        few = split.examples.shard(max(1, split.size // (_CALIBRATED_ON * size)), 0)
        batches = few.batch(size, drop_remainder=True).take(_CALIBRATED_ON)
        return lambda: (face.fed(_plain(inputs)) for inputs, *_ in batches)

    @cached_property
    def _graph(self) -> Graph:
        return read(self.model)

    @property
    def _fixed(self) -> int | None:
        """The fixed number of examples that the model takes; None where it is open."""
        return next((t.shape[0] for t in self._graph.inputs if t.shape[0] is not None), None)

    # --- comparing --------------------------------------------------------------------------------

    @cached_property
    def _batches(self) -> list[Any]:
        """The inputs to compare on, batch by batch."""
        graph, fixed = self._graph, self._fixed
        if self.check is None:
            return [random_inputs(graph, batch=4)]
        batches = [_plain(inputs) for inputs, *_ in self.check.batches(fixed or _BATCH)]
        whole = [x for x in batches if fixed in (None, len(flat(graph, x)[0]))]
        if not whole:
            raise ExportError(
                f"Expected {fixed} examples at least, since the model takes as many at a time. "
                f"Received: check with {self.check.size}."
            )
        return whole

    @cached_property
    def _expected(self) -> list[list[np.ndarray]]:
        """The outputs of the Keras model for each batch."""
        predicted = (self.model.predict_on_batch(x) for x in self._batches)
        return [[np.asarray(leaf) for leaf in keras.tree.flatten(one)] for one in predicted]

    @cached_property
    def _measuring(self) -> tuple[TaskRules, np.ndarray] | None:
        """The rules of the task and its labels, where the model is one for the task."""
        if self.check is None:
            return None
        rules = self.rules or rules_of(self.check.task)
        structure, tasks = self._graph.output_structure, rules.task.by_name
        wanted = {name: (task.size,) for name, task in tasks.items()} or (rules.task.size,)
        shapes: Any = keras.tree.map_structure(lambda tensor: tensor.shape[1:], structure)
        if isinstance(structure, list) and len(structure) == 1:
            shapes = shapes[0]
        if shapes != wanted:
            return None
        batch = len(flat(self._graph, self._batches[0])[0])
        labels = [joined(_plain(told)) for _, told, *_ in self.check.batches(batch)]
        found = np.concatenate(labels[: len(self._batches)])
        return rules, rules.targets(found, self.check.split)

    def _compared(
        self,
        face: Interface,
        kind: Format,
        quantize: Quantization | None,
        runs: tuple[Running, Running],
        path: Path,
    ) -> dict[str, Any]:
        """Compare a file with the model; return the fields of the record.

        Raises:
            ExportError: The file says something else, or loses more than it may.
        """
        run, alone = runs
        fed = [face.fed(x) for x in self._batches]
        received = [[np.array(run(x)[name]) for name in face.outputs] for x in fed]
        difference = self._difference(received, quantize, face.exact)
        values, agreement, measure, lost = self._measured(received)
        one = {name: value[: self._fixed or 1] for name, value in fed[0].items()}
        raw = keras.tree.map_structure(lambda part: part[: self._fixed or 1], self._batches[0])
        calls = (
            lambda: self.model.predict_on_batch(raw),
            lambda: run(one),
            lambda: alone(one),
        )
        by_keras, *seconds = _timed(calls)
        return {
            "inputs": {name: _said(t.shape, t.dtype) for name, t in face.inputs.items()},
            "outputs": {
                name: _said(t.shape, part.dtype)
                for (name, t), part in zip(face.outputs.items(), received[0], strict=True)
            },
            "file": _figures(kind, path, seconds, values[1]),
            "keras": Figures(bytes_of(self.model.weights), by_keras, None, values[0]),
            "examples": sum(len(batch[0]) for batch in received),
            "max_difference": difference,
            "agreement": agreement,
            "measure": measure,
            "lost": lost,
            "notes": face.notes,
        }

    def _difference(
        self, received: list[list[np.ndarray]], quantize: str | None, exact: bool
    ) -> float:
        """Return the largest difference of an output.

        Raises:
            ExportError: It is more than another order of the same operations explains, or something
                is no number any more.
        """
        largest, greatest = 0.0, 1.0
        for known, found in zip(self._expected, received, strict=True):
            for one, other in zip(known, found, strict=True):
                if one.shape != other.shape:
                    raise ExportError(
                        f"Expected the file to give outputs of shape {one.shape}. Received: "
                        f"{other.shape}."
                    )
                one, other = (array.astype("float64") for array in (one, other))
                finite = np.isfinite(one)
                if not np.isfinite(other[finite]).all():
                    raise ExportError(
                        f"Expected the file to give finite numbers where {self.model.name!r} does. "
                        "Received: others, which is what numbers beyond float16 become. Choose "
                        "another quantize."
                    )
                apart = np.abs(one - other)[finite]
                largest = max(largest, float(apart.max(initial=0)))
                greatest = max(greatest, float(np.abs(one[finite]).max(initial=0)))
        allowed = _TOLERANCES[exact] * greatest
        if quantize is None and largest > allowed:
            raise ExportError(
                f"Expected the file to give the outputs of {self.model.name!r} within "
                f"{allowed:.1e}. Received: outputs that differ by {largest:.1e}."
            )
        return largest

    def _measured(
        self, received: list[list[np.ndarray]]
    ) -> tuple[tuple[float | None, float | None], float | None, str | None, float | None]:
        """Return the measure of Keras and of the file, how often they agree, and what is lost.

        Raises:
            ExportError: The file loses more than it may.
        """
        if self._measuring is None:
            return (None, None), None, None, None
        rules, labels = self._measuring
        known, found = self._outputs(self._expected), self._outputs(received)
        values = rules.value(known, labels), rules.value(found, labels)
        lost = values[0] - values[1] if rules.maximize else values[1] - values[0]
        if self.max_accuracy_loss is not None and not lost <= self.max_accuracy_loss:
            raise ExportError(
                f"Expected {rules.measure} to lose {self.max_accuracy_loss:g} at most. Received: "
                f"{values[1]:.4g} in the file, and {values[0]:.4g} in Keras, so that no file was "
                "left. Raise max_accuracy_loss, or choose another quantize."
            )
        return values, rules.agreement(known, found), rules.measure, lost

    def _outputs(self, batches: list[list[np.ndarray]]) -> np.ndarray:
        """Return outputs of all examples as the rules of the task take them."""
        structure = self._graph.output_structure
        packed = (keras.tree.pack_sequence_as(structure, batch) for batch in batches)
        by_task = [
            joined({name: np.asarray(part, "float32") for name, part in one.items()})
            if isinstance(one, dict)
            else np.asarray(keras.tree.flatten(one)[0], "float32")
            for one in packed
        ]
        return np.concatenate(by_task)


def file_name(model: str, format: AnyFormat, quantize: Quantization | None) -> str:
    """Return the name of a model's file.

    Example:
        >>> file_name("my digits", "litert", "int8")
        'my_digits-int8.tflite'
    """
    safe = re.sub(r"[^\w.-]", "_", model, flags=re.ASCII)
    return "-".join(filter(None, (safe, quantize))) + FORMATS[format].ending


def _refused(
    face: Interface, kind: Format, quantize: Quantization | None, cause: Exception
) -> ExportError:
    """Name the first layer with which a format cannot be written, and what its tools say.

    Looked for by halves: a model with one layer more than one that can be written cannot be.
    """
    graph = face.top
    calls = [call for call in graph.calls if not call.is_input]
    low, high, why = 0, len(calls), cause
    plain = None if quantize == "int8-calibrated" else quantize
    while low < high:
        middle = (low + high) // 2
        addresses = [
            tensor.address
            for call in calls[: middle + 1]
            for tensor in call.outputs
            if tensor.dtype != "string" and tensor.shape
        ]
        try:
            _try(extract(graph, addresses), kind, plain)
            low = middle + 1
        except Exception as error:
            high, why = middle, error
    where = f"its layer {calls[low].address!r}" if low < len(calls) else "it as a whole"
    said = " ".join(str(why).split())[:400]
    return ExportError(
        f"Expected a model that the format {kind.name!r} can express. Received: "
        f"{graph.model.name!r}, of which it cannot express {where} ({said}). Choose another "
        "format, or replace that part."
    )


def _try(model: keras.Model, kind: Format, quantize: Quantization | None) -> None:
    """Write a model to a folder that is gone at once, and run the file."""
    face = interface_of(model, kind.texts, kind.exact)
    example = face.fed(random_inputs(read(model), batch=1))
    with TemporaryDirectory() as scratch:
        path = Path(scratch, f"model{kind.ending}")
        with without_remarks():
            kind.write(face, path, quantize, lambda: iter(()))
        kind.open(path, [*face.outputs], 1)(example)


def _plain(structure: Any) -> Any:
    return keras.tree.map_structure(np.asarray, structure)


def _said(shape: tuple[int | None, ...], dtype: Any) -> str:
    sizes = ", ".join("?" if size is None else str(size) for size in shape)
    return f"{dtype} ({sizes})"


def _timed(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Return the median seconds of calls, of which the first decides how often they are run."""
    (once,) = median_seconds(calls[:1], 3)
    return median_seconds(calls, round(np.clip(_TIMED / once, *_RUNS)))


def _figures(kind: Format, path: Path, seconds: Sequence[float], value: float | None) -> Figures:
    """Return the figures of a file, with its seconds on all threads and on one."""
    files = path.rglob("*") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.is_file())
    own_threads = kind.name != "saved_model"
    return Figures(size, seconds[0], seconds[1] if own_threads else None, value)
