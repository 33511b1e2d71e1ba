"""A whole model stored as a reference to its bottom and top: how it is written, and joined."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
from mlflow.exceptions import MlflowException

from reusekit.backbones.files import read_file
from reusekit.errors import TrackingError
from reusekit.sharing import join
from reusekit.tracking.parts import file_digest
from reusekit.tracking.saved import WEIGHTS

_FILE = Path("data", "reference.json")


@dataclass(frozen=True)
class Part:
    """A model that is stored once and referred to.

    Attributes:
        version: Its version in the registry, for people: `models:/ResNet50-bottom/1`.
        model_id: The logged model.
        file: SHA-256 of the file it is stored in.
    """

    version: str
    model_id: str
    file: str


@dataclass(frozen=True)
class Reference:
    """What a whole model is joined from.

    Attributes:
        name: The whole model's own name.
        bottom: From its inputs to the cut.
        top: From the cut to its outputs.
        shared: The weights that both parts hold and that are one, as `Split.shared` lists them.
    """

    name: str
    bottom: Part
    top: Part
    shared: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write it into the folder of a whole model, where its weights would be."""
        (folder / _FILE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Reference | None":
        """The reference in a model's folder; None where the model has weights of its own."""
        if not (folder / _FILE).is_file():
            return None
        found = json.loads((folder / _FILE).read_text())
        return cls(
            found["name"],
            Part(**found["bottom"]),
            Part(**found["top"]),
            tuple(found["shared"]),
        )


def complete(folder: Path, fetch: Callable[[str, Path], Path]) -> None:
    """Join the parts that a model's folder refers to, and put the whole model into it.

    Args:
        folder: A model's folder; left alone where there is no reference in it.
        fetch: Brings the file of a logged model, by its id, into a scratch folder.

    Raises:
        TrackingError: A part is gone, or is not what was logged.
        BackboneError: A part asks for code to be run.
    """
    reference = Reference.read(folder)
    if reference is None:
        return
    bottom, top = (_load(part, fetch) for part in (reference.bottom, reference.top))
    whole = join(bottom, top, shared=reference.shared, name=reference.name)
    whole.save(folder / WEIGHTS)


def _load(part: Part, fetch: Callable[[str, Path], Path]) -> keras.Model:
    with TemporaryDirectory() as scratch:
        try:
            file = fetch(part.model_id, Path(scratch))
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"{part.version} ({part.model_id}), which this model is joined from, cannot be "
                f"had: it may have been deleted. {error}"
            ) from error
        found = file_digest(file)
        if found != part.file:
            raise TrackingError(
                f"{part.version} ({part.model_id}) is not what this model was joined from: "
                f"expected a file with SHA-256 {part.file}, received {found}."
            )
        return read_file(file, part.version)
