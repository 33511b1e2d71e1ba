"""A whole model stored as a reference to its bottom and top: how it is written, and joined."""

from pathlib import Path
from typing import Annotated

import keras
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from reusekit.errors import ReusekitError, TrackingError
from reusekit.sharing import join

FILE = Path("data", "reference.json")
"""Where a reference lies in a model's folder, in place of the weights."""

_Name = Annotated[str, StringConstraints(max_length=500)]


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Part(_Checked):
    """A model that is stored once and referred to.

    Attributes:
        version: Its version in the registry, for people: `models:/ResNet50-bottom/1`.
        model_id: The logged model.
        file: SHA-256 of the file it is stored in.
    """

    version: _Name
    model_id: str
    file: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class Reference(_Checked):
    """The parts that a whole model is joined from.

    Attributes:
        name: The whole model's own name.
        bottom: From its inputs to the cut.
        top: From the cut to its outputs.
        shared: The weights that both parts hold and that are one, as `Split.shared` lists them.
    """

    name: _Name
    bottom: Part
    top: Part
    shared: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write it into the folder of a whole model, where its weights would be."""
        (folder / FILE).parent.mkdir(parents=True)
        (folder / FILE).write_text(self.model_dump_json(indent=1))

    @classmethod
    def read(cls, file: Path, named: str) -> "Reference":
        """Read a reference.

        Args:
            file: Where it is written.
            named: What the model is called in an error.

        Raises:
            TrackingError: It is damaged.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise TrackingError(
                f"{named} cannot be loaded: its {FILE.as_posix()} is damaged"
                f"{f' at {where[:80]}' if where else ''}: {first['msg'][:200]}."
            ) from error

    def join(self, bottom: keras.Model, top: keras.Model) -> keras.Model:
        """Return the whole model, made of its parts.

        Raises:
            TrackingError: They do not fit.
        """
        try:
            return join(bottom, top, shared=self.shared, name=self.name)
        except ReusekitError:
            raise
        except (ValueError, TypeError) as error:  # a name that Keras does not take
            raise TrackingError(f"{self.name!r} cannot be joined: {error}") from error
