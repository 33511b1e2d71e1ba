"""Campaign G: what searches and splits leave behind in one process."""

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

import reusekit as rk
from faults.outcome import Outcome
from reusekit.features import FeatureStore
from reusekit.search import CutHyperModel, CutSearch, SearchConfig, SearchSpace, TrialData

TRIES = 20
"""Searches; and ten times as many splits."""

_WARM = 2
_ALLOWED = 40 << 20  # bytes, of all searches after the warm ones


def run(generator: np.random.Generator, tries: int, folder: Path) -> Iterator[Outcome]:
    """Run small searches, then split, attach and extract, and look at what stays.

    Args:
        generator: Draws the learning rates.
        tries: How many searches.
        folder: Where searches and features are kept.
    """
    backbone = rk.load_backbone("reusekit/glyphnet").model
    splits = [
        rk.data.load("sklearn_digits", part, treatment=rk.data.Treatment(image_size=(32, 32)))
        for part in ("train[:60]", "validation[:40]")
    ]
    store = FeatureStore(folder / "features")

    def search(number: int) -> None:
        rates = [float(generator.uniform(0.01, 0.1)), 0.1]
        space = SearchSpace(["stem_out", "block7_out"], units=[0], learning_rates=rates)
        one = CutSearch(
            backbone,
            *splits,
            space,
            SearchConfig(epochs=2),
            folder=folder / str(number),
            store=store,
        )
        one.run()
        one.best_model()

    def loop() -> None:
        bottom, _ = rk.split(backbone, "block4_out")
        rk.attach(bottom, rk.heads.Classifier(10))
        rk.extract(backbone, "block7_out", pooling="avg")

    for what, step, count in (
        ("searches", search, tries),
        ("splits", lambda _: loop(), 10 * tries),
    ):
        for number in range(_WARM):
            step(-1 - number)
        before = _memory()
        for number in range(count):
            step(number)
        grown = _memory() - before
        detail = f"{count} {what} left {grown / (1 << 20):.0f} MB"
        yield Outcome("G1", "right" if grown <= _ALLOWED else "wrong", detail)
    alive = [type(one).__name__ for one in gc.get_objects() if isinstance(one, _KINDS)]
    yield Outcome("G1", "wrong" if alive else "right", f"alive afterwards: {alive}")


_KINDS = (CutSearch, CutHyperModel, TrialData)


def _memory() -> int:
    """Return the bytes that this process holds, without what its allocator keeps for later."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)
    return psutil.Process().memory_info().rss
