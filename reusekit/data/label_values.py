"""Labels from values in memory: columns of a table, arrays, all that a data set gave."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reusekit.data.labels import MOST_CLASSES
from reusekit.data.task import Kind, Task, joined, kinds_of
from reusekit.errors import DataError, nearest

_FEW_WORDS = 20
"""Different words that are classes even where most occur once."""
_LISTS = (list, tuple, np.ndarray)

Names = Sequence[str] | None


def labels_from(
    values: np.ndarray | Mapping[str, np.ndarray],
    where: str,
    names: Names | Mapping[str, Names] = None,
    kind: Kind | Mapping[str, Kind] | None = None,
) -> tuple[Task, np.ndarray]:
    """Turn values into labels, and find the task that they state.

    Words, true and false, and whole numbers of few different values are classes; so are 0.0 and
    1.0. Other numbers are predicted. In two dimensions, rows with a single 1 are classes, other
    rows of 0 and 1 are several labels, and all else are numbers to predict. Lists of words are the
    labels that apply; lists of numbers are rows.

    Args:
        values: Shape (size,) or (size, outputs); a dictionary of such is several tasks. A missing
            word is None or NaN.
        where: The data, as a message calls them.
        names: Of the classes, the labels or the numbers, in the order of outputs; None counts the
            classes and numbers the rest. With names, whole numbers are positions among them, unless
            all names are whole numbers or true and false themselves. Of several tasks they go by
            the tasks' names.
        kind: The task; None for the one that the values look like. Of several tasks likewise.

    Returns:
        The task, and the label of each example, of several tasks `joined`; a missing word is -1,
        which `check_labels` finds.

    Raises:
        DataError: The values are no labels, or none of that task.

    Example:
        >>> labels_from(np.array(["dog", "cat", "dog"], object), "Pets")
        (Task(kind='classification', names=('cat', 'dog'), parts=()), array([1, 0, 1]))
        >>> labels_from(np.array([0.5, 1.5]), "Sizes")[0].kind
        'regression'
    """
    kinds = kinds_of(kind, list(values) if isinstance(values, Mapping) else None)
    if isinstance(values, Mapping):
        return _of_several(values, where, names, kinds)
    kind = kinds[None]
    if isinstance(names, Mapping):
        raise DataError(
            f"Expected names of one task, since {where.rstrip(',')} has one label. Received: "
            f"those of {', '.join(map(repr, names))}."
        )
    if values.ndim == 1 and len(values) and all(isinstance(one, _LISTS) for one in values):
        values, told = _of_lists(values, where, names)
        if told and kind == "regression":
            raise DataError(f"Expected numbers as labels of {where} for {kind}. Received: text.")
        kind, names = (kind or "multilabel", told) if told else (kind, names)
    if values.ndim == 2 and values.shape[1] == 1 and kind != "multilabel":
        values = values[:, 0]
    if values.dtype.kind in "SO" and values.ndim == 1:
        values = _plain(values, where)
    numeric = values.dtype.kind in "biuf"
    words = values.ndim == 1 and values.dtype.kind in "OU"
    if values.ndim not in (1, 2) or not len(values) or not (numeric or words):
        raise DataError(
            f"Expected a word, a number or several numbers as label of each example of "
            f"{where.rstrip(',')}. Received: {values.dtype} of shape {values.shape}."
        )
    if kind is None and words:
        _refuse_commas(values, where)
    kind = kind or _stated(values)
    if kind == "classification":
        found, labels = _classes(values, where, names)
    elif not numeric:
        raise DataError(f"Expected numbers as labels of {where} for {kind}. Received: text.")
    else:
        labels = values.astype(np.float32)
        if kind == "multilabel":
            labels = labels.reshape(len(labels), -1)
        found = list(map(str, range(1 if labels.ndim == 1 else labels.shape[1])))
    if names is not None and found and len(names) != len(found):
        raise DataError(
            f"Expected a name for each of {len(found)} outputs of {where}. Received: {len(names)}."
        )
    return Task(kind, tuple(found if names is None else names)), labels


def _of_lists(values: np.ndarray, where: str, names: Names) -> tuple[np.ndarray, Names]:
    """Return lists of words as rows of 0 and 1, with the words; lists of numbers as rows."""
    lists = [list(one) for one in values]
    found = {word for one in lists for word in one if isinstance(word, str)}
    if all(isinstance(word, str) for one in lists for word in one):
        words = sorted(found) if names is None else list(names)
        unknown = sorted(found.difference(words))
        if not words or unknown:
            raise DataError(
                f"Expected lists of {'words' if names is None else 'the names'} as labels of "
                f"{where.rstrip(',')}. Received: {unknown[0] if unknown else 'empty ones alone'!r}."
            )
        _refuse_many(words if names is None else [], len(values), where)
        place = {word: number for number, word in enumerate(words)}
        rows = np.zeros((len(lists), len(words)), np.float32)
        for row, one in zip(rows, lists, strict=True):
            row[[place[word] for word in one]] = 1
        return rows, words
    try:
        numbers = np.stack([np.asarray(one) for one in lists])
    except ValueError:
        numbers = values
    if numbers.dtype.kind not in "biuf" or numbers.ndim != 2:
        raise DataError(
            f"Expected lists of words, or of as many numbers each, as labels of "
            f"{where.rstrip(',')}. Received: {str(lists[0])[:60]} and others."
        )
    return numbers, None


def _refuse_many(words: Sequence[str], size: int, where: str) -> None:
    """Refuse words that hardly repeat, which are texts rather than classes."""
    if len(words) > max(_FEW_WORDS, size / 2):
        raise DataError(
            f"Expected words that repeat as classes in {where.rstrip(',')}. Received: "
            f"{len(words):,} different ones of {size:,}, such as {words[0][:60]!r}."
        )


def _of_several(
    values: Mapping[str, np.ndarray], where: str, names: Any, kinds: Mapping[Any, Kind | None]
) -> tuple[Task, np.ndarray]:
    """Return several tasks, and their labels joined."""
    if names is not None and not (isinstance(names, Mapping) and names.keys() <= values.keys()):
        raise DataError(
            f"Expected names by task, some of {', '.join(map(repr, values))}, since {where} has "
            f"several labels. Received: {names!r}."
        )
    found = {
        name: labels_from(part, f"{where}, task {name!r}", (names or {}).get(name), kinds[name])
        for name, part in values.items()
    }
    task = Task.joint({name: task for name, (task, _) in found.items()})
    return task, joined({name: labels for name, (_, labels) in found.items()})


def _plain(values: np.ndarray, where: str) -> np.ndarray:
    """Return objects as words, or as numbers or truth values where they are these."""
    try:
        found = [one.decode() if isinstance(one, bytes) else one for one in values.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"Expected words as labels of {where} in UTF-8. Received: {error.object!r}."
        ) from error
    words = np.empty(len(found), object)
    words[:] = found
    kind = pd.api.types.infer_dtype(words, skipna=True)
    missing = pd.isna(words)
    if kind in ("integer", "boolean") and not missing.any():
        return words.astype(np.int64 if kind == "integer" else bool)
    if kind in ("floating", "mixed-integer-float", "decimal"):
        return pd.to_numeric(pd.Series(words)).to_numpy(np.float64)
    if kind not in ("string", "integer", "boolean", "empty"):
        raise DataError(
            f"Expected labels of {where} to be all words, or all numbers. Received: {kind}, such "
            f"as {words[~missing][0]!r}."
        )
    return words


def _refuse_commas(values: np.ndarray, where: str) -> None:
    """Refuse numbers with commas, which would be taken for words."""
    words = [str(word) for word in pd.unique(values) if not pd.isna(word)]
    if words and all(re.fullmatch(r"[-+]?[\d.]*\d,\d[\d,.]*", word) for word in words):
        raise DataError(
            f"Expected numbers of {where} without commas, or task to be 'classification' where "
            f"they are words. Received: {words[0]!r}."
        )


def _stated(values: np.ndarray) -> Kind:
    """Return the task that values look like."""
    letter = values.dtype.kind
    if letter not in "iuf":
        return "classification" if values.ndim == 1 else "multilabel"
    binary = bool(np.isin(values, (0, 1)).all())
    if values.ndim == 1:
        return "classification" if binary or letter != "f" else "regression"
    if not binary:
        return "regression"
    return "classification" if (values.sum(axis=1) == 1).all() else "multilabel"


def _classes(
    values: np.ndarray, where: str, names: Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    """Return the names of the classes that occur, and the class of each example."""
    where = where.rstrip(",")
    if values.ndim == 2:
        single = np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all()
        if not single:
            raise DataError(
                f"Expected one class for each example of {where}, as a word, a whole number or a "
                f"row with a single 1. Received: {values[0].tolist()}."
            )
        return list(map(str, range(values.shape[1]))), values.argmax(axis=1)
    if values.dtype.kind == "f":
        broken = values[~(values == np.floor(values))]
        if len(broken):
            raise DataError(
                f"Expected classes as words or whole numbers in {where}. Received: {broken[0]}."
            )
        values = values.astype(np.int64)
    if names is not None and all(map(_is_number, names)):
        values = values if values.dtype.kind == "b" else values.astype(str).astype(object)
    if values.dtype.kind == "b":
        if names is None or set(names) != {"False", "True"}:
            return ["False", "True"], values.astype(np.int64)
        values = values.astype(str).astype(object)
    if names is not None and values.dtype.kind in "iu":
        return [], values.astype(np.int64)
    positions, found = pd.factorize(values, sort=True)
    if values.dtype.kind in "iu" and len(found) > MOST_CLASSES:
        raise DataError(
            f"Expected at most {MOST_CLASSES} different whole numbers as classes in {where}; "
            f"numbers are predicted where the task is 'regression'. Received: {len(found):,}."
        )
    words = [str(one) for one in found]
    if not words:
        raise DataError(f"Expected labels in {where}. Received: none.")
    if names is None:
        _refuse_many(words, len(values), where)
        return words, positions.astype(np.int64)
    unknown = [word for word in words if word not in names]
    if unknown:
        raise DataError(
            f"Expected classes of {where} to be among the names. Received: {unknown[0]!r}. "
            f"{nearest(unknown[0], names)}"
        )
    places: Any = np.array([*map(list(names).index, words), -1], np.int64)
    return [], places[positions]


def _is_number(name: str) -> bool:
    return re.fullmatch(r"-?\d+", name) is not None
