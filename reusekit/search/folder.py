"""The folder of a search: its state, the weights of its best trials, and one search at a time."""

import json
import os
import uuid
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from filelock import FileLock, Timeout

from reusekit.digests import file_digest
from reusekit.errors import ConfigError, ReusekitError
from reusekit.graph import keras_internals
from reusekit.sealed_json import DamagedFileError, read_sealed, write_sealed

STATE_FILE = "state.json"
"""The name of the file with the state of a search, in its folder."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes off a search's folder; it is made where there is none.

    Raises:
        ConfigError: It cannot be made or used, or another search in it is running.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Expected a folder for a search that can be made. Received: {folder}: "
            f"{error.strerror}. Choose another one."
        ) from error
    # One for each folder in a process, so that who has it may ask for it again.
    lock = FileLock(folder.absolute() / "running.lock", blocking=False, is_singleton=True)
    with folder_errors_explained(folder):
        try:
            lock.acquire()
        except Timeout as error:
            raise ConfigError(
                f"Expected a folder in which no search is running. Received: {folder}. Wait for "
                "the one there, or choose another folder."
            ) from error
        try:
            yield
        finally:
            lock.release()


@contextmanager
def folder_errors_explained(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses in a search's folder into one sentence.

    Raises:
        ConfigError: It refused; what it refuses elsewhere is raised as it is.
    """
    try:
        yield
    except OSError as error:
        where = error.filename
        if not isinstance(where, str | os.PathLike) or not Path(where).is_relative_to(folder):
            raise
        raise ConfigError(
            f"Expected the folder of a search that can be used. Received: {folder}: "
            f"{error.strerror} ({where}). Remove what is in the way, or choose another folder."
        ) from error


def write_state(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON beside the file, see that it is on the disk, and rename.

    Raises:
        ConfigError: It cannot be written; the disk may be full.
    """
    try:
        write_sealed(file, content)
    except OSError as error:
        raise ConfigError(
            f"Expected a file that can be written. Received: {file}: {error.strerror}. Free some "
            "of its disk, or choose another folder."
        ) from error


def read_state(file: Path) -> dict[str, Any] | None:
    """Read what was written last; None where nothing was.

    Raises:
        ConfigError: The file is not what `write_state` leaves.
    """
    if not os.path.lexists(file):
        return None
    try:
        return read_sealed(file)
    except (DamagedFileError, PermissionError) as error:
        raise ConfigError(
            f"Expected the state of a search in {file}, as it was written. Received: "
            f"{str(error).rstrip('.')}. Choose another folder, or discard it (fresh=True, or "
            "--fresh)."
        ) from error


def refuse_other(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a search that is another one.

    Args:
        before: The earlier search, as it was written down.
        now: The search to begin.
        folder: Where the earlier search lies.

    Raises:
        ConfigError: They differ; the message shows in what.
    """
    now = json.loads(json.dumps(now))
    different = list(_differences(before, now))
    if different:
        raise ConfigError(
            f"Expected the search that {folder} holds. Received: another one: "
            f"{'; '.join(different)}. Choose another folder, or discard what was found there "
            "(fresh=True, or --fresh)."
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            inner = f"{name}.{key}" if name else key
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{name} was {json.dumps(before)} and is {json.dumps(now)}"


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
                f"Expected a folder for weights. Received: a link: {folder}. Remove it."
            )
        self.folder.mkdir(parents=True, exist_ok=True)

    def file(self, number: int) -> Path:
        """Return the file of a trial's weights, whether it is there or not."""
        before = self.folder / f"{number:04d}.weights.h5"  # of an earlier version, by Keras
        return before if before.exists() else self.folder / f"{number:04d}.npz"

    def save(self, number: int, weights: Sequence[np.ndarray]) -> str:
        """Write a trial's weights beside and rename, so that no kill leaves half of a file.

        Args:
            number: The trial's number.
            weights: What `trained_weights` gives.

        Returns:
            The SHA-256 of the file, by which `sound` knows it.
        """
        # A name of its own: where a link lies, what it points at would be overwritten.
        beside = self.folder / f"part-{uuid.uuid4().hex}.npz"
        named: dict[str, Any] = {str(place): values for place, values in enumerate(weights)}
        with beside.open("xb") as file:
            np.savez(file, **named)
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
                f"Expected the weights of trial {number} as they were written. Received: {file}, "
                "which is missing or damaged. Search anew (fresh=True, or --fresh)."
            )
        return file

    def keep(self, numbers: Collection[int]) -> None:
        """Remove all but the files of these trials."""
        kept = {self.file(number) for number in numbers}
        for file in [*self.folder.glob("*.npz"), *self.folder.glob("*.weights.h5")]:
            if file not in kept and (file.is_symlink() or not file.is_dir()):
                file.unlink()


def trained_weights(model: keras.Model) -> list[np.ndarray]:
    """Return copies of the weights that training may have changed, as NumPy can store them."""
    return [
        np.array(keras.ops.convert_to_numpy(keras.ops.cast(variable, _storable(variable))))
        for variable in _kept(model)
    ]


def read_weights(file: str | os.PathLike) -> list[np.ndarray]:
    """Return the weights that `Checkpoints.save` wrote."""
    with np.load(file) as held:
        return [held[str(place)] for place in range(len(held))]


def load(model: keras.Model, weights: str | os.PathLike | Sequence[np.ndarray]) -> None:
    """Give a model the weights that were saved of one of the same structure.

    Args:
        model: The model.
        weights: The file of them, or they themselves.

    Raises:
        ConfigError: They are of another structure.
    """
    if isinstance(weights, str | os.PathLike):
        if not zipfile.is_zipfile(weights):
            # Without an optimizer, whose state Keras would look for.
            keras.Model(model.input, model.output).load_weights(weights)
            return
        weights = read_weights(weights)
    variables, values = _kept(model), weights
    shapes = [tuple(variable.shape) for variable in variables], [one.shape for one in values]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"Expected weights of shapes {shapes[0]}. Received: {shapes[1]}.")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _kept(model: keras.Model) -> list[keras.Variable]:
    """Return the weights that training may have changed: what is frozen is the backbone's."""
    trained = {id(variable) for variable in model.trainable_variables}
    layers = keras_internals.all_layers(model)
    frozen = {id(v) for layer in layers for v in keras_internals.trainable_kind(layer)} - trained
    return [variable for variable in model.weights if id(variable) not in frozen]


def _storable(variable: keras.Variable) -> str:
    """Return the dtype as which NumPy can store a weight, without loss."""
    return "float32" if variable.dtype in ("float16", "bfloat16") else variable.dtype
