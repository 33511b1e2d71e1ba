"""The models of a search as files: measured before any training, and compared after it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from reusekit.digests import digest
from reusekit.errors import ExportError
from reusekit.exports import Export, Exporter, Figures
from reusekit.exports.exporter import file_name
from reusekit.exports.formats import written_as
from reusekit.progress import say, tracked
from reusekit.sealed_json import DamagedFileError, read_sealed
from reusekit.search.config import SHIPPED
from reusekit.search.folder import alone, folder_errors_explained, write_state
from reusekit.search.results import TrialRecord

MODEL = "model"
"""The name of an exported model, and of its file."""


class Shipping:
    """The models of a search as files of one format.

    What was measured or compared once is kept in the folder of the search, so that a search that is
    gone on with decides by the same figures. Each is known by a digest of all that it follows from.

    Args:
        ship: The format with its precision, such as `litert-int8`.
        folder: That of the search.

    Attributes:
        name: The format with its precision.

    Raises:
        ExportError: What writes and runs the format is not installed.
    """

    def __init__(self, ship: str, folder: Path) -> None:
        self.name = ship
        self._format, self._quantize = written_as(ship)
        self._folder = folder

    @property
    def _file(self) -> Path:
        return self._folder / "shipped.json"

    @cached_property
    def _kept(self) -> dict[str, Any]:
        with folder_errors_explained(self._folder):
            try:
                return read_sealed(self._file)
            except DamagedFileError:
                return {}

    def _keep(self, key: str, found: dict[str, Any]) -> None:
        self._kept[key] = found
        with alone(self._folder):
            write_state(self._file, self._kept)

    def measured(self, follows_from: Any, exporter: Callable[[], Exporter]) -> Figures | str:
        """Return the figures of a model as a file, or the reason why it cannot be one.

        Args:
            follows_from: Plain data that the figures follow from.
            exporter: Makes the exporter of the model, where it was not measured before.
        """
        key = digest(["measured", self.name, follows_from])
        if key not in self._kept:
            try:
                found = asdict(exporter().measure(self._format, self._quantize))
            except ExportError as error:
                if isinstance(error.__cause__, OSError | MemoryError):
                    raise  # there may be room the next time
                found = {"refused": str(error)}
            self._keep(key, found)
        kept = self._kept[key]
        return kept["refused"] if "refused" in kept else Figures(**kept)

    def exported(
        self, follows_from: Any, exporter: Callable[[Path], Exporter] | None = None
    ) -> Export | str | None:
        """Return the export of a trained model, or the reason why there is none.

        Args:
            follows_from: Plain data that the model follows from.
            exporter: Makes the exporter of the model, called `MODEL`, to a folder, where it was not
                exported before; None makes none, and returns None then.
        """
        key = digest(["exported", self.name, follows_from])
        folder = self._folder / "shipped" / key[:16]
        path = folder / file_name(MODEL, self._format, self._quantize)
        kept = self._kept.get(key)
        if kept is None or not ("refused" in kept or path.exists()):
            if exporter is None:
                return None
            try:
                one = exporter(folder).export(self._format, self._quantize)
                kept = asdict(replace(one, path=""))
            except ExportError as error:
                if isinstance(error.__cause__, OSError | MemoryError):
                    raise  # there may be room the next time
                kept = {"refused": str(error)}
            self._keep(key, kept)
        if "refused" in kept:
            return str(kept["refused"])
        figures = {name: Figures(**kept[name]) for name in ("file", "keras")}
        return Export(**{**kept, **figures, "notes": tuple(kept["notes"]), "path": str(path)})

    def export_best(
        self,
        records: Sequence[TrialRecord],
        told_of: Callable[[TrialRecord], Any],
        exporter: Callable[[TrialRecord, Path], Exporter],
        is_kept: Callable[[int], bool],
    ) -> None:
        """Export the models of the best few trials.

        Args:
            records: The trials, the best first.
            told_of: Returns plain data that the model of a trial follows from.
            exporter: Makes the exporter of a trial's model to a folder.
            is_kept: Returns whether the weights of the trial of a number are there.

        Raises:
            ExportError: None of them can be exported.
        """
        best, why, shipped = records[:SHIPPED], "", 0
        for record in tracked(best, f"Exporting as {self.name}"):
            made = self.exported(told_of(record))
            if made is None and not is_kept(record.number):
                made = "Its weights were not kept. Search anew (fresh=True), with the same ship."
            if made is None:
                made = self.exported(told_of(record), partial(exporter, record))
            shipped += isinstance(made, Export)
            if isinstance(made, str):
                why = made
                say(f"warning: trial {record.number} cannot be shipped. {made}")
        if best and not shipped:
            raise ExportError(
                f"Expected one of the best {len(best)} trials to be shipped. Received: none that "
                f"can be. {why}"
            )

    def exports(
        self,
        records: Sequence[TrialRecord],
        told_of: Callable[[TrialRecord], Any],
        maximize: bool,
    ) -> dict[int, Export]:
        """Return the exports of the best few trials as far as they were made, the best file first.

        Args:
            records: The trials, the best first.
            told_of: Returns plain data that the model of a trial follows from.
            maximize: Whether more of the task's measure is better.
        """
        made = {one.number: self.exported(told_of(one)) for one in records[:SHIPPED]}
        found = {number: one for number, one in made.items() if isinstance(one, Export)}
        values: dict[int, Any] = {number: one.file.value for number, one in found.items()}
        if None in values.values():  # a head of another task, whose file has no measure
            return found
        order = sorted(values, key=lambda number: values[number], reverse=maximize)
        return {number: found[number] for number in order}
