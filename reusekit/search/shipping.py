"""The models of a search as files: measured before any training, and compared after it."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from reusekit.digests import digest
from reusekit.errors import ExportError
from reusekit.exports import Export, Exporter, Figures
from reusekit.exports.exporter import file_name
from reusekit.exports.formats import written_as
from reusekit.sealed_json import DamagedFileError, read_sealed
from reusekit.search.folder import alone, folder_errors_explained, write_state

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
