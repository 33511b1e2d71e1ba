"""What is kept of trials: the trained weights of the best few."""

import os
from collections.abc import Collection
from pathlib import Path

import keras


class Checkpoints:
    """A folder of trained weights, one file a trial: what it trained, and nothing else.

    The frozen bottom is the backbone's and the optimizer's state is of no more use, so neither is
    stored.

    Args:
        folder: Where the files lie; it is made where there is none.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def file(self, number: int) -> Path:
        """The file of a trial's weights, whether it is there or not."""
        return self.folder / f"{number:04d}.weights.h5"

    def save(self, number: int, model: keras.Model) -> None:
        """Write a trial's weights beside and rename, so that no kill leaves half of a file."""
        beside = self.folder / f"part-{number:04d}.weights.h5"
        _bare(model).save_weights(beside, overwrite=True)
        beside.replace(self.file(number))

    def keep(self, numbers: Collection[int]) -> None:
        """Remove all but the files of these trials."""
        kept = {self.file(number) for number in numbers}
        for file in self.folder.glob("*.weights.h5"):
            if file not in kept:
                file.unlink()


def load(model: keras.Model, file: str | os.PathLike) -> None:
    """Give a model the weights that were saved of one of the same structure."""
    _bare(model).load_weights(file)


def _bare(model: keras.Model) -> keras.Model:
    """The same layers without an optimizer, whose state Keras would store, too."""
    return keras.Model(model.input, model.output)
