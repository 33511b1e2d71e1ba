"""Folders of pictures, sounds or texts, with a folder for each class."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from reusekit.arguments import AnyPath, checked, expanded
from reusekit.data.files import ExampleFile, Stamp, look_at, stamp
from reusekit.data.opened_files import open_files, reading_of
from reusekit.data.rows import Rows
from reusekit.data.selection import positions_of
from reusekit.data.shares import Shares, draw_parts
from reusekit.data.split import DataSplit
from reusekit.data.task import Task
from reusekit.data.treatment import Treatment
from reusekit.errors import DataError, nearest
from reusekit.progress import say

_AS_THEY_ARE = Treatment()


@dataclass(frozen=True)
class _Listed:
    """The files of a folder.

    Attributes:
        classes: Names of all classes, sorted.
        parts: The files of each part with their class, unless the parts are still to be drawn.
        drawn: Files of which parts are drawn.
    """

    classes: tuple[str, ...]
    parts: Mapping[str, Sequence[tuple[Stamp, str]]]
    drawn: Sequence[tuple[Stamp, str]]


@checked(DataError)
def from_folder(
    path: AnyPath,
    split: str,
    *,
    shares: Shares | None = None,
    treatment: Treatment = _AS_THEY_ARE,
) -> DataSplit:
    """Open a part of a folder of pictures, sounds (WAV) or texts (UTF-8), sorted by class.

    Either the folder holds one folder for each class, of which parts are drawn, or a folder for
    each part with class folders in it. Files are known by their content, not by their names; those
    that begin with a dot are passed over. Nothing is written into the folder.

    Args:
        path: The folder.
        split: A part: `train`, `validation` or `test` where they are drawn, the name of a folder
            otherwise; with slices and sums as TFDS has them, such as `train[:80%]`. Files come in
            an order that follows from their content, so that slices have all classes.
        shares: How parts are drawn, where class folders are all there is; None for `Shares()`, and
            for folders that are parts.
        treatment: Which examples are kept, and how pictures are resized and converted.

    Returns:
        The split. Examples of equal content never lie in two drawn parts.

    Raises:
        DataError: No such folder or part, an empty class, or files that cannot be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> for number, name in enumerate(["cat", "dog"] * 10):
        ...     (folder / name).mkdir(exist_ok=True)
        ...     Image.new("RGB", (8, 6), (9 * number, 0, 0)).save(folder / name / f"{number}.png")
        >>> pets = from_folder(folder, "train", shares=Shares(train=0.5, validation=0.2, test=0.3))
        >>> pets.size, pets.input_shape, pets.task.names
        (10, (6, 8, 3), ('cat', 'dog'))
    """
    folder = expanded(path, DataError)
    split = "".join(split.split())
    listed = _listed(folder, split, shares)
    task = _task(listed, treatment, folder)
    where = f"{str(folder)!r}, split {split!r},"
    if listed.drawn:
        shares = shares or Shares()
        if shares.group is not None:
            raise DataError(
                f"Expected shares without a group for {str(folder)!r}; a group is a column of a "
                f"table. Received: {shares.group!r}."
            )
        found = _sorted(listed.drawn, task)
        keys = np.array([file.key for file, _ in found], np.uint64)
        labels = np.array([label for _, label in found], np.int64)
        positions = draw_parts(keys, shares, labels).positions
        parts = {part: [found[place] for place in places] for part, places in positions.items()}
    else:
        wanted = _names(split)
        parts = {
            name: _sorted(files, task)
            for name, files in listed.parts.items()
            if name in wanted or "all" in wanted
        }
    chosen = [
        parts[part][place]
        for part, places in positions_of(
            split, {part: len(files) for part, files in parts.items()}, str(folder)
        )
        for place in places
    ]
    among = [file for files in parts.values() for file, _ in files]
    _say_duplicates(chosen, task, where)
    files = [file for file, _ in chosen]

    def opened(positions: np.ndarray, treatment: Treatment) -> tuple[tf.data.Dataset, np.ndarray]:
        found = open_files([files[one] for one in positions], treatment, where, among)
        return found.inputs, positions[found.kept]

    rows = Rows(
        folder.resolve().name,
        opened,
        np.array([file.key for file in files], np.uint64),
        task,
        np.array([label for _, label in chosen], np.int64),
        open_length=True,
        reading=partial(reading_of, files),
    )
    origin = {
        "reader": "from_folder",
        "path": str(folder.resolve()),
        "shares": shares and shares.model_dump(),
    }
    return rows.split(split, np.arange(len(files)), treatment, origin)


def _names(split: str) -> set[str]:
    return {part.partition("[")[0] for part in split.split("+")}


def _listed(folder: Path, split: str, shares: Shares | None) -> _Listed:
    """List the files of a folder; those of other parts only to know all classes."""
    inside = _folders(folder, "a folder with one folder for each class")
    nested = {name: _folders_of(folder / name) for name in inside}
    if shares is None and (all(nested.values()) or any(nested.get(n) for n in _names(split))):
        for name in sorted(_names(split) - {"all"}):
            if name not in nested:
                raise DataError(
                    f"Expected split to name folders of {str(folder)!r}. Received: {name!r}. "
                    f"{nearest(name, inside)} Take parts of one, such as train[:80%] and "
                    "train[80%:], or have shares (--data.shares) draw them where these folders "
                    "are classes."
                )
        parts = {name: _files_by_class(folder / name, classes) for name, classes in nested.items()}
        classes = {label for files in parts.values() for _, label in files}
        return _Listed(tuple(sorted(classes)), parts, ())
    flat = next((name for name, classes in nested.items() if not classes), None)
    deep = next((name for name, classes in nested.items() if classes), None)
    if shares is None and flat and deep:
        raise DataError(
            f"Expected either class folders or parts with class folders in {str(folder)!r}. "
            f"Received: {deep!r} with folders, {flat!r} without. Have shares (--data.shares) draw "
            "the parts where all are classes."
        )
    files = _files_by_class(folder, inside)
    return _Listed(tuple(sorted(inside)), {}, files)


def _folders(folder: Path, expected: str) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"Expected {expected}. Received: {str(folder)!r}, which is no folder.")
    found = _folders_of(folder)
    if not found:
        files = sum(1 for _ in folder.iterdir())
        held = f"{files:,} files and no folder" if files else "nothing"
        raise DataError(f"Expected {expected}. Received: {str(folder)!r}, which holds {held}.")
    return found


def _folders_of(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _files_by_class(folder: Path, classes: Sequence[str]) -> list[tuple[Stamp, str]]:
    """List the files below each class folder."""
    found: list[tuple[Stamp, str]] = []
    for name in classes:
        before = len(found)
        for root, folders, files in os.walk(folder / name, followlinks=True):
            folders[:] = sorted(
                one for one in folders if not one.startswith(".") and not _is_above(root, one)
            )
            found += [
                (stamp(os.path.join(root, file)), name)
                for file in sorted(files)
                if not file.startswith(".")
            ]
        if len(found) == before:
            raise DataError(
                f"Expected files in each class folder. Received: none in {str(folder / name)!r}. "
                "Put examples in it, or remove it."
            )
    return found


def _is_above(root: str, name: str) -> bool:
    """Return whether a link leads back to a folder that it lies in."""
    path = Path(root, name)
    return path.is_symlink() and Path(root).resolve().is_relative_to(path.resolve())


def _task(listed: _Listed, treatment: Treatment, folder: Path) -> Task:
    if treatment.task not in (None, "classification"):
        raise DataError(
            f"Expected task to be None or 'classification' for {str(folder)!r}, whose folders are "
            f"classes. Received: {treatment.task!r}. Name files with other labels in a table."
        )
    return Task("classification", listed.classes)


def _sorted(files: Sequence[tuple[Stamp, str]], task: Task) -> list[tuple[ExampleFile, int]]:
    """Read files once, in an order that follows from their content."""
    found = look_at(tuple(stamp for stamp, _ in files))
    label_of = {name: label for label, name in enumerate(task.names)}
    pairs = [(file, label_of[name]) for file, (_, name) in zip(found, files, strict=True)]
    return sorted(pairs, key=lambda pair: (pair[0].digest, pair[1], pair[0].path))


def _say_duplicates(files: Sequence[tuple[ExampleFile, int]], task: Task, where: str) -> None:
    """Say how many files an earlier one equals, and name one that is in two classes."""
    first: dict[bytes, tuple[ExampleFile, int]] = {}
    twice, contrary = 0, ""
    for file, label in files:
        earlier, its_label = first.setdefault(file.digest, (file, label))
        if file.trouble or earlier is file:
            continue
        twice += 1
        if its_label != label and not contrary:
            contrary = f" Of two classes, too: {earlier.path} and {file.path}."
    if twice:
        say(f"warning: {where} has {twice:,} files whose content another one has.{contrary}")
