"""The record of an export: a file beside the Keras model that it was made of, as plain data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

from rich.console import Console
from rich.table import Table

_PRINTED_WIDTH = 140


@dataclass(frozen=True)
class Figures:
    """The figures of a model in one runtime.

    Attributes:
        bytes: Bytes of its file; of a Keras model those of its weights in memory.
        latency: Seconds for one example, warm: the median of some runs, on all threads.
        latency_one_thread: The same on one thread; None where threads belong to the process.
        value: The measure of the task on the examples that were compared; None without a task.
    """

    bytes: int
    latency: float
    latency_one_thread: float | None
    value: float | None

    @property
    def latency_alone(self) -> float:
        """Seconds for one example on one thread, or on those of the process where it has them."""
        one = self.latency_one_thread
        return self.latency if one is None else one


@dataclass(frozen=True)
class Export:
    """A model as a file, compared with the Keras model in the file's runtime; prints as a table.

    Attributes:
        path: The file, or the folder of a format that has several.
        format: The format: "litert", "onnx", "openvino" or "saved_model".
        quantize: The precision: None for float32, "float16", "int8" or "int8-calibrated".
        inputs: The dtype and shape of each input by its name in the file, in the model's order.
        outputs: The same of each output.
        file: The figures of the file.
        keras: The figures of the Keras model.
        examples: The number of examples that were compared.
        max_difference: The largest difference of an output between the two.
        agreement: The share of examples of which both say the same; None where no labels are told.
        measure: The measure of the task, such as `accuracy`; None without a task.
        lost: How much worse the file's measure is than that of Keras; below 0 where it is better.
        notes: What a person should know of the file.
    """

    path: str
    format: str
    quantize: str | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    file: Figures
    keras: Figures
    examples: int
    max_difference: float
    agreement: float | None
    measure: str | None
    lost: float | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The format with its precision, such as `litert-int8`."""
        return "-".join(filter(None, (self.format, self.quantize)))

    def to_frame(self) -> Any:
        """Return Keras and the file as a pandas DataFrame, one row each."""
        return Exports((self,)).to_frame()

    def __str__(self) -> str:
        return str(Exports((self,)))

    def _repr_html_(self) -> str:
        return Exports((self,))._repr_html_()


@dataclass(frozen=True)
class Exports(Sequence):
    """The exports of one model; prints as a table, with the Keras model in the first row.

    Attributes:
        exports: Each export.
    """

    exports: tuple[Export, ...]

    @overload
    def __getitem__(self, index: int) -> Export: ...
    @overload
    def __getitem__(self, index: slice) -> "Exports": ...

    def __getitem__(self, index):
        """Return one export by number, or several by slice."""
        found = self.exports[index]
        return Exports(found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self.exports)

    def __iter__(self) -> Iterator[Export]:
        return iter(self.exports)

    def to_frame(self) -> Any:
        """Return Keras and each file as a pandas DataFrame, one row each."""
        import pandas

        first = self.exports[0]
        rows: list[dict[str, Any]] = [{"format": "keras", "quantize": None, **asdict(first.keras)}]
        for one in self.exports:
            rows.append(
                {
                    "format": one.format,
                    "quantize": one.quantize,
                    **asdict(one.file),
                    "lost": one.lost,
                    "agreement": one.agreement,
                    "max_difference": one.max_difference,
                    "path": one.path,
                }
            )
        frame = pandas.DataFrame(rows)
        return frame.rename(columns={"value": first.measure or "value"})

    def __str__(self) -> str:
        measure = (self.exports[0].measure or "measure").replace("_", " ")
        table = Table(box=None, pad_edge=False)
        table.add_column("format", no_wrap=True)
        for name in (
            "bytes", "ms", "ms, one thread", measure, "lost", "same labels", "largest difference",
        ):  # fmt: skip
            table.add_column(name, justify="right")
        table.add_row("keras", *_cells(self.exports[0].keras))
        for one in self.exports:
            table.add_row(
                one.name,
                *_cells(one.file),
                "-" if one.lost is None else f"{one.lost:+.4g}",
                "-" if one.agreement is None else f"{one.agreement:.2%}",
                f"{one.max_difference:.1e}",
            )
        console = Console(
            width=_PRINTED_WIDTH,
            color_system=None,
            highlight=False,
            markup=False,
            force_jupyter=False,  # else a notebook gets an empty output
        )
        with console.capture() as printed:
            console.print(table)
            console.print(f"Compared on {self.exports[0].examples:,} examples.")
            for note in dict.fromkeys(note for one in self.exports for note in one.notes):
                console.print(note)
        return "\n".join(line.rstrip() for line in printed.get().splitlines())

    def _repr_html_(self) -> str:
        return self.to_frame().to_html(index=False)


def _cells(figures: Figures) -> tuple[str, ...]:
    seconds = (figures.latency, figures.latency_one_thread)
    return (
        f"{figures.bytes:,}",
        *("-" if one is None else f"{1000 * one:.3g}" for one in seconds),
        "-" if figures.value is None else f"{figures.value:.4g}",
    )
