"""Compares rankings of cuts with exhaustive searches: how well does each foretell training?

python scripts/benchmark_ranking.py          # 3 backbones x 4 data sets of pictures, and texts
python scripts/benchmark_ranking.py --quick  # a few cuts of small sets: does it work?

Of every data set all cuts of all backbones are searched, each with the same heads. A ranking is
judged by Kendall's tau between its scores and the best validation accuracy of each cut: within a
backbone (how deep?), averaged over backbones, and among all cuts of all backbones (which, and how
deep?). Prints one JSON line for each data set, then a table. Nothing is downloaded: beside glyphnet
stand the same network and MobileNetV2 with random weights.
"""

import reusekit as rk  # isort: skip  (first: it starts Keras quietly)

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from reusekit.backbones import Backbone
from reusekit.data import DataSplit
from reusekit.features import FeatureStore
from reusekit.search import CutSearch, SearchConfig, SearchSpace, rank_correlation, rank_cuts
from reusekit.search.ranking import Method
from reusekit.search.trial_data import collected
from reusekit.stages import candidate_cuts

METHODS = [*get_args(Method), "size"]
EXAMPLES, QUICK = (300, 300), (40, 40)
"""Examples to train on and to validate on."""


def digits(part: str, count: int) -> DataSplit:
    """Return handwritten digits."""
    return rk.data.load("sklearn_digits", f"{part}[:{count}]")


def parity(part: str, count: int) -> DataSplit:
    """Return the same digits, of which is told whether they are odd."""
    images, labels = digits(part, count).arrays()
    words = np.array(["even", "odd"])[labels % 2]
    return rk.data.from_arrays(images.astype("uint8"), words, part)


def textures(part: str, count: int) -> DataSplit:
    """Return noisy stripes and checks of two widths."""
    numbers = np.random.default_rng(part == "train")
    labels = np.arange(count) % 6
    rows, columns = np.indices((16, 16))
    shift = numbers.integers(0, 16, (2, count, 1, 1))
    width = 2 + labels[:, None, None] % 2
    across, down = (rows + shift[0]) // width % 2, (columns + shift[1]) // width % 2
    kind = labels[:, None, None] // 2
    drawn = np.where(kind == 0, across, np.where(kind == 1, down, (across + down) % 2))
    return _drawn(part, drawn, labels, numbers, noise=150)


def shapes(part: str, count: int) -> DataSplit:
    """Return discs, squares, rings and crosses of any size at any place."""
    numbers = np.random.default_rng(2 + (part == "train"))
    labels = np.arange(count) % 4
    rows, columns = np.indices((24, 24))[:, None]
    y, x = numbers.uniform(8, 16, (2, count, 1, 1))
    radius = numbers.uniform(4, 8, (count, 1, 1))
    dy, dx = np.abs(rows - y), np.abs(columns - x)
    far, round_ = np.maximum(dy, dx), np.hypot(dy, dx)
    kinds = [
        round_ < radius,
        far < 0.9 * radius,
        np.abs(round_ - 0.8 * radius) < 1.5,
        (np.minimum(dy, dx) < 1.5) & (far < radius),
    ]
    drawn = np.choose(labels[:, None, None], kinds)
    return _drawn(part, drawn, labels, numbers, noise=120)


def _drawn(
    part: str, drawn: np.ndarray, labels: np.ndarray, numbers: np.random.Generator, noise: int
) -> DataSplit:
    images = (255 - noise) * drawn + numbers.uniform(0, noise, drawn.shape)
    return rk.data.from_arrays(images[..., None].astype("uint8"), labels, part)


def topics(part: str, count: int) -> DataSplit:
    """Return texts on topics of Python's library."""
    return rk.data.load("python_topics", f"{part}[:{count}]")


OF_PICTURES = {
    "glyphnet": partial(rk.load_backbone, "reusekit/glyphnet"),
    "glyphnet, random": partial(rk.load_backbone, "reusekit/glyphnet", weights=None),
    "MobileNetV2, random": partial(
        rk.load_backbone, "keras.applications/MobileNetV2", weights=None,
        input_shape=(32, 32, 3), alpha=0.35,
    ),
}  # fmt: skip
OF_TEXTS = {
    "prosenet": partial(rk.load_backbone, "reusekit/prosenet"),
    "prosenet, random": partial(rk.load_backbone, "reusekit/prosenet", weights=None),
}
SETS: dict[str, tuple[Callable[[str, int], DataSplit], dict[str, Callable[[], Backbone]]]] = {
    "digits": (digits, OF_PICTURES),
    "parity": (parity, OF_PICTURES),
    "textures": (textures, OF_PICTURES),
    "shapes": (shapes, OF_PICTURES),
    "topics": (topics, OF_TEXTS),
}


def judged(name: str, quick: bool, folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """Return Kendall's tau of each ranking on a data set, within backbones and among all."""
    opened, loaders = SETS[name]
    keras.utils.set_random_seed(seed)  # whatever sets were searched before
    backbones = {of: load() for of, load in list(loaders.items())[: 2 if quick else None]}
    sizes = QUICK if quick else EXAMPLES
    train, validation = (
        opened(part, count) for part, count in zip(("train", "validation"), sizes, strict=True)
    )
    cuts = {
        of: [point.at for point in candidate_cuts(one, most=2 if quick else 12)]
        for of, one in backbones.items()
    }
    space = SearchSpace(cuts, units=[0], dropout=[0.0], learning_rates=[1e-2, 1e-1])
    config = SearchConfig(epochs=2 if quick else 60, patience=10, seed=seed)
    store = FeatureStore(folder / "features")
    search = CutSearch(backbones, train, validation, space, config, folder / name, store)
    reached = {cut.named_cut: cut.best.accuracy for cut in search.run().cuts}
    data = search.extract()
    features = {
        of: {at: collected(data[of].train[at, "avg"]) for at in those} for of, those in cuts.items()
    }
    labels = next(iter(data[next(iter(cuts))].train.values())).labels
    found = {}
    for method in METHODS:
        if method == "size":
            scores = {
                (of, at): search.backbones[of].points[at].params_before
                for of, those in cuts.items()
                for at in those
            }
        else:
            frame = rank_cuts(features, labels, method)
            places = zip(frame["backbone"], frame["cut"], strict=True)
            scores = dict(zip(places, frame["score"], strict=True))
        within = [
            tau(scores, reached, [place for place in reached if place[0] == of]) for of in cuts
        ]
        known = [one for one in within if np.isfinite(one)]
        found[method] = {
            "within": float(np.mean(known)) if known else float("nan"),
            "among": tau(scores, reached, list(reached)),
        }
    return found


def tau(scores: dict, reached: dict, places: Sequence) -> float:
    """Return the agreement of scores with results on some cuts."""
    pairs = [(scores[place], reached[place]) for place in places]
    return rank_correlation(*map(list, zip(*pairs, strict=True))).kendall


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", choices=list(SETS), action="append", help="all by default")
    parser.add_argument(
        "--seeds", type=int, default=1, help="random networks and heads of each set"
    )
    parser.add_argument("--quick", action="store_true", help="little of everything")
    options = parser.parse_args()
    found = {}
    for name in options.set or SETS:
        drawn = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder:
                drawn.append(judged(name, options.quick, Path(folder), seed))
            print(json.dumps({"set": name, "seed": seed, **drawn[-1]}), flush=True)
        found[name] = {
            method: {of: float(np.nanmean([one[method][of] for one in drawn])) for of in known}
            for method, known in drawn[0].items()
        }
    table = Table("ranking", *found, "mean", title="Kendall's tau within backbones / among all")
    for method in METHODS:
        pairs = [(one[method]["within"], one[method]["among"]) for one in found.values()]
        pairs.append(tuple(np.nanmean(pairs, axis=0)))
        table.add_row(method, *(f"{within:.2f} / {among:.2f}" for within, among in pairs))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
