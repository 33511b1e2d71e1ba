"""Faults in a feature store: in each try some of its files are damaged, and features asked for."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faults.files import Outside, damage
from faults.outcome import Outcome
from reusekit.errors import CacheError
from reusekit.features import FeatureKey, FeatureStore

TRIES = 300

_SIZE = 40
_KEYS = {name: FeatureKey(name * 8, ("x",), _SIZE) for name in "abc"}
_MARK = "feature_store.json"


def run(generator: np.random.Generator, tries: int, folder: Path) -> Iterator[Outcome]:
    """Damage copies of one store."""
    whole = FeatureStore(folder / "whole", block_bytes=320)
    for name in "ab":
        _computed(whole, name)
    (whole.path / "locks" / "budget.lock").touch()
    for number in range(tries):
        root = folder / str(number)
        outside = Outside(root / "outside")
        store = FeatureStore(shutil.copytree(whole.path, root / "store"), block_bytes=320)
        store.get(_KEYS["a"]).close()  # what was sound once
        case, what = _damage(generator, store.path, outside)
        yield _judged(case, f"{number}: {what}", store, outside)
        shutil.rmtree(root)


def _rows(name: str) -> np.ndarray:
    return np.arange(_SIZE * 8, dtype="float32").reshape(_SIZE, 8) + 1000 * ord(name)


def _computed(store: FeatureStore, name: str) -> np.ndarray:
    def compute(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        for at in range(start, stop, 10):
            yield {"x": _rows(name)[at : at + 10]}

    with store.get_or_compute(_KEYS[name], compute) as entry:
        return np.asarray(entry["x"])


def _damage(generator: np.random.Generator, store: Path, outside: Outside) -> tuple[str, str]:
    kind = generator.choice(["array", "array", "manifest", "lock", "mark", "folder", "stray"])
    if kind == "folder":
        return "B1,B6", _folders(generator, store, outside)
    if kind == "stray":
        where = store / str(generator.choice(["entries", "drafts", "locks", "removed"]))
        (where / ".DS_Store").write_bytes(generator.bytes(9))
        (where / "a folder").mkdir()
        (where / "link").symlink_to(outside.folder)
        return "B5", f"stray files in {where.name}"
    files = {
        "array": sorted(store.glob("entries/*/*.npy")),
        "manifest": sorted(store.glob("entries/*/manifest.json")),
        "lock": sorted(path for path in (store / "locks").iterdir()),
        "mark": [store / _MARK],
    }[str(kind)]
    file = files[generator.integers(len(files))]
    others = [one for one in files if one != file]
    case = {"array": "B2", "mark": "B4", "manifest": "B4", "lock": "B5"}[str(kind)]
    return case, damage(generator, file, others, outside)


def _folders(generator: np.random.Generator, store: Path, outside: Outside) -> str:
    """Move entries' folders under other names, and put links in their place."""
    entries, drafts = store / "entries", store / "drafts"
    own, other = (_KEYS[name].digest for name in generator.permutation(["a", "b"]))
    third = _KEYS["c"].digest
    way = int(generator.integers(7))
    if way == 0:
        shutil.rmtree(entries / other)
        (entries / own).rename(entries / other)
    elif way == 1:
        shutil.rmtree(entries / other)
        shutil.copytree(entries / own, entries / other)
    elif way == 2:
        shutil.copytree(entries / own, drafts / third)
    elif way == 3:
        (entries / own).rename(drafts / own)
    elif way == 4:
        (drafts / third).symlink_to(outside.folder)
    elif way == 5:
        shutil.rmtree(entries / own)
        (entries / own).symlink_to(outside.folder)
    else:
        shutil.copytree(entries / own, entries / third)
        (entries / third / "0.npy").unlink()
    return f"way {way} of folders, {own[0]} for {other[0]}"


def _judged(case: str, detail: str, store: FeatureStore, outside: Outside) -> Outcome:
    mark = store.path / _MARK
    try:
        try:
            found = FeatureStore(store.path, block_bytes=320)
        except CacheError as error:
            way_out = "write " in str(error) or "hoose another" in str(error)
            altered = not mark.is_file() or mark.read_text(errors="replace") != '{"format": 2}'
            refused = "refused" if way_out and altered else "wrong"
            return Outcome(case, refused, f"{detail}: {error}")
        for name in "abc":
            entry = found.get(_KEYS[name])
            if entry is not None:
                with entry:
                    if not np.array_equal(np.asarray(entry["x"]), _rows(name)):
                        return Outcome(case, "wrong", f"{detail}: get of {name}")
        found.entries()
        found.verify()
        for name in "abc":
            if not np.array_equal(_computed(found, name), _rows(name)):
                return Outcome(case, "wrong", f"{detail}: features of {name}")
        if set(found.verify().values()) != {0} or found.gc() or len(found.clear()) != 3:
            return Outcome(case, "wrong", f"{detail}: it is not whole afterwards")
    except CacheError as error:
        return Outcome(case, "wrong", f"{detail}: refused needlessly: {error}")
    except Exception as error:
        return Outcome(case, "foreign", f"{detail}: {type(error).__name__}: {error}")
    if not outside.untouched():
        return Outcome(case, "outside", detail)
    return Outcome(case, "right", detail)
