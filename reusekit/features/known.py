"""Examples whose features other entries of a store hold, and batches that take them from there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reusekit.errors import DataError
from reusekit.features.batches import changed_since
from reusekit.features.entry import Manifest, MappedArray
from reusekit.features.key import FeatureKey
from reusekit.features.layout import Layout
from reusekit.features.store import Batch, FeatureStore

_NONE = -1


@dataclass(frozen=True, eq=False)
class Known:
    """The examples of a key whose features other entries hold.

    Attributes:
        names: The names of the key's features.
        entries: Folders and manifests of these entries.
        entry: For each example the number of the entry that holds it; -1 for none.
        row: For each its position there.
        arrays: The features of each entry by name, mapped, once they are `opened`.
    """

    names: Sequence[str]
    entries: Sequence[tuple[Path, Manifest]]
    entry: np.ndarray = field(repr=False)
    row: np.ndarray = field(repr=False)
    arrays: Sequence[Mapping[str, MappedArray]] = field(default=(), repr=False)

    @property
    def lacking(self) -> np.ndarray:
        """True for each example of the key that is none of them."""
        return self.entry == _NONE

    def opened(self) -> "Known":
        """Map the features of these examples, once their checksums are compared.

        Examples of a damaged entry, or of one that was removed meanwhile, are not among them. What
        is mapped stays readable when the store removes its entry.
        """
        found, entry = [], self.entry.copy()
        for number, (folder, manifest) in enumerate(self.entries):
            arrays = {}
            for position, name in enumerate(self.names):
                values = manifest.mapped(folder, position)
                if values is None:
                    entry[entry == number] = _NONE
                    break
                arrays[name] = MappedArray(values, np.dtype(manifest.arrays[position].dtype))
            found.append(arrays)
        return replace(self, entry=entry, arrays=found)

    def filled(self, rows: slice, new: np.ndarray, made: Batch | None) -> dict[str, np.ndarray]:
        """Return the features of some rows, of which the `new` ones were computed: `made`."""
        if made is not None and new.all():
            return dict(made)
        entry, row, found = self.entry[rows], self.row[rows], {}
        entry = np.where(new, _NONE, entry)
        parts = [(self.arrays[number], entry == number) for number in np.unique(entry[~new])]
        for name in parts[0][0]:
            like = parts[0][0][name]
            values = np.empty((len(entry), *like.shape[1:]), like.dtype)
            told = [one[name] for one, _ in parts] + ([] if made is None else [made[name]])
            if len({(one.shape[1:], one.dtype) for one in told}) > 1:
                shapes = ", ".join(f"{one.shape[1:]} of {one.dtype.name}" for one in told)
                raise DataError(
                    f"Expected features of one shape at {name!r}. Received: {shapes}, of examples "
                    "that were known and of others. Bring examples to one shape with "
                    "Padding(length=...), or load images with an image_size."
                )
            for one, those in parts:
                values[those] = one[name][row[those]]
            if made is not None:
                values[new] = made[name]
            found[name] = values
        return found


def known_examples(store: FeatureStore, keys: Sequence[FeatureKey]) -> list[Known]:
    """Return for each key the examples whose features whole entries of other examples hold.

    Examples are told by their content alone, so that it does not matter where in its data set one
    lies, in which part of it, and what its label is.

    Args:
        store: Where the entries are.
        keys: What is wanted.
    """
    held: dict[str, list[tuple[Path, Manifest]]] = {key.alike: [] for key in keys if key.alike}
    for folder in Layout(store.path).folders("entries") if held else ():
        # One may be removed meanwhile, or be another user's alone.
        with suppress(OSError):
            manifest = Manifest.read(folder)
            if manifest is not None and manifest.done == manifest.size:
                held.get(manifest.alike or "", []).append((folder, manifest))
    for those in held.values():  # as few as can be, and always the same
        those.sort(key=lambda one: (-one[1].size, one[1].digest))
    found = []
    for key in keys:
        names = [name for name in key.arrays if not name.startswith(":")]
        others = [one for one in held.get(key.alike or "", ()) if one[1].digest != key.digest]
        used, entry, row = _matched(key, others)
        found.append(Known(names, [others[number] for number in used], entry, row))
    return found


def known_by_all(known: Sequence[Known]) -> int:
    """Return how many examples are known for each of some keys; the others are computed for all."""
    return int((~np.any([one.lacking for one in known], axis=0)).sum()) if known else 0


def _matched(
    key: FeatureKey, those: Sequence[tuple[Path, Manifest]]
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return the entries that hold examples of a key, which of them holds each, and where."""
    entry, row = np.full(key.size, _NONE, np.int32), np.zeros(key.size, np.int64)
    used: list[int] = []
    for number, (folder, manifest) in enumerate(those):
        left = np.flatnonzero(entry == _NONE)
        examples = manifest.mapped(folder, len(manifest.arrays) - 1) if len(left) else None
        if examples is None or key.examples is None:
            continue
        wanted, order = key.examples[left], np.argsort(examples)
        position = np.searchsorted(examples, wanted, sorter=order)
        at = order[np.minimum(position, len(order) - 1)]
        hit = examples[at] == wanted
        if hit.any():
            entry[left[hit]], row[left[hit]] = len(used), at[hit]
            used.append(number)
    return used, entry, row


def merged(
    known: Sequence[Known],
    computed: Iterator[Sequence[Batch]],
    lacking: np.ndarray,
    rows: range,
) -> Iterator[list[dict[str, np.ndarray]]]:
    """Yield the features of rows in batches: of each key what is known, and what is computed.

    Args:
        known: For each key its known examples.
        computed: Batches of the other examples, for each key, in order.
        lacking: The positions of these, ascending.
        rows: The rows, with the size of a batch as its step.

    Raises:
        DataError: Fewer are computed than are lacking, or features differ in shape.
    """
    held: list[dict[str, np.ndarray]] = []  # computed, and in no batch yet

    def take(count: int) -> list[dict[str, np.ndarray]]:
        nonlocal held
        while not held or len(next(iter(held[0].values()))) < count:
            more = next(computed, None)
            if more is None:
                raise changed_since(len(lacking), "fewer that are new")
            before = held or [{name: one[name][:0] for name in one} for one in more]
            held = [
                {name: np.concatenate([old[name], new[name]]) for name in new}
                for old, new in zip(before, more, strict=True)
            ]
        taken = [{name: values[:count] for name, values in one.items()} for one in held]
        held = [{name: values[count:] for name, values in one.items()} for one in held]
        return taken

    for low in rows:
        batch = slice(low, min(low + rows.step, rows.stop))
        new = np.zeros(batch.stop - low, bool)
        new[lacking[slice(*np.searchsorted(lacking, [low, batch.stop]))] - low] = True
        made: Sequence[Any] = take(int(new.sum())) if new.any() else [None] * len(known)
        yield [one.filled(batch, new, of_it) for one, of_it in zip(known, made, strict=True)]
    if next(computed, None) is not None or (held and len(next(iter(held[0].values())))):
        raise changed_since(len(lacking), "more that are new")
