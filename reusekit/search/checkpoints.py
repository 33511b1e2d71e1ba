"""The trained weights of the best few trials, as files."""

import os
import uuid
from collections.abc import Collection
from pathlib import Path

import keras

from reusekit.digests import file_digest
from reusekit.errors import ConfigError, ReusekitError


class Checkpoints:
    """A folder of trained weights, one file a trial: what it trained, and nothing else.

    The frozen bottom is the backbone's and the optimizer's state is of no more use, so neither is
    stored.

    Args:
        folder: Where the files lie; it is made where there is none.

    Raises:
        ConfigError: It is a link: other files than those of trials might lie there.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        if self.folder.is_symlink():
            raise ConfigError(
                f"Expected a folder for weights. Received a link: {folder}. Remove it."
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def file(self, number: int) -> Path:
        """Return the file of a trial's weights, whether it is there or not."""
        return self.folder / f"{number:04d}.weights.h5"

    def save(self, number: int, model: keras.Model) -> str:
        """Write a trial's weights beside and rename, so that no kill leaves half of a file.

        Returns:
            The SHA-256 of the file, by which `sound` knows it.
        """
        # A name of its own: where a link lies, what it points at would be overwritten.
        beside = self.folder / f"part-{uuid.uuid4().hex}.weights.h5"
        _bare(model).save_weights(beside, overwrite=True)
        digest = file_digest(beside)
        beside.replace(self.file(number))
        return digest

    def sound(self, number: int, digest: str | None) -> Path:
        """Return the file of a trial's weights, if it is the one that was saved.

        Raises:
            ReusekitError: It is missing or has been altered.
        """
        file = self.file(number)
        try:
            sound = file_digest(file) == digest
        except OSError:
            sound = False
        if not sound:
            raise ReusekitError(
                f"{file} is missing or damaged, which held the weights of trial {number}. Search "
                "anew (fresh=True, or --fresh)."
            )
        return file

    def keep(self, numbers: Collection[int]) -> None:
        """Remove all but the files of these trials."""
        kept = {self.file(number) for number in numbers}
        for file in self.folder.glob("*.weights.h5"):
            if file not in kept and (file.is_symlink() or not file.is_dir()):
                file.unlink()


def load(model: keras.Model, file: str | os.PathLike) -> None:
    """Give a model the weights that were saved of one of the same structure."""
    _bare(model).load_weights(file)


def _bare(model: keras.Model) -> keras.Model:
    """Return the same layers without an optimizer, whose state Keras would store, too."""
    return keras.Model(model.input, model.output)
