"""Faults in the folder of a search: its state, its weights, and what else lies in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faults.files import Outside, damage
from faults.outcome import LONGEST, Outcome
from reusekit.data.task import Task
from reusekit.errors import ReusekitError
from reusekit.search import (
    CutHyperModel,
    CutSweepOracle,
    CutTuner,
    SearchConfig,
    SearchSpace,
    TrialData,
)

TRIES = 120

_CUTS = ["shallow", "deep"]


def run(generator: np.random.Generator, tries: int, folder: Path) -> Iterator[Outcome]:
    """Damage copies of the folder of one finished search, and go on with it."""
    draw = np.random.default_rng(0)
    labels = np.arange(30) % 3
    features = {at: draw.normal(size=(30, 6)).astype("float32") for at in _CUTS}
    data = TrialData.of_arrays(
        features, labels, features, labels, Task("classification", tuple("abc"))
    )
    whole = _tuner(data, folder / "whole")
    whole.search()
    weights = [model.get_weights() for model in whole.get_best_models(2)]
    for number in range(tries):
        root = folder / str(number)
        outside = Outside(root / "outside")
        search = shutil.copytree(folder / "whole", root / "search")
        case, what = _damage(generator, search, outside)
        yield _judged(case, f"{number}: {what}", data, search, whole, weights, outside)
        shutil.rmtree(root)


def _tuner(data: TrialData, folder: Path) -> CutTuner:
    space = SearchSpace(_CUTS, units=(0,), dropout=(0.0,), learning_rates=(0.1,))
    oracle = CutSweepOracle(_CUTS, 2, objective="val_loss", seed=1)
    return CutTuner(CutHyperModel(data, space, SearchConfig(epochs=1, keep=2)), oracle, folder)


def _damage(generator: np.random.Generator, search: Path, outside: Outside) -> tuple[str, str]:
    kind = generator.choice(["state", "state", "weights", "weights", "stray"])
    if kind == "state":
        return "C6", damage(generator, search / "state.json", [], outside)
    if kind == "stray":
        for name in ("state.part", "state.json.x.part", "weights/part-0001.npz"):
            (search / name).symlink_to(outside.folder / "file")
        return "C8", "links where files are written"
    files = sorted(search.glob("weights/*.npz"))
    file = files[generator.integers(len(files))]
    return "C7", damage(generator, file, [one for one in files if one != file], outside)


def _judged(
    case: str,
    detail: str,
    data: TrialData,
    search: Path,
    whole: CutTuner,
    weights: list,
    outside: Outside,
) -> Outcome:
    try:
        tuner = _tuner(data, search)
        tuner.search()
        models = tuner.get_best_models(2)
    except ReusekitError as error:
        if not outside.untouched():
            return Outcome(case, "outside", detail)
        return Outcome(case, "refused" if len(str(error)) < LONGEST else "foreign", detail)
    except Exception as error:
        return Outcome(case, "foreign", f"{detail}: {type(error).__name__}: {error}")
    same = [r.to_dict() for r in tuner.records] == [r.to_dict() for r in whole.records]
    anew = not same and [r.values for r in tuner.records] == [r.values for r in whole.records]
    found = [model.get_weights() for model in models]
    equal = all(
        np.array_equal(a, b)
        for one, other in zip(found, weights, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    if not outside.untouched():
        return Outcome(case, "outside", detail)
    # Without a state it is a new search, which ends like the first but for its seconds.
    return Outcome(case, "right" if equal and (same or anew) else "wrong", detail)
