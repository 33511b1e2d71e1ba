r"""Pretrain glyphnet to tell letters apart, and write the weights that ship inside the package.

    python scripts/pretrain_glyphnet.py    # about five minutes on two cores

To see how it works in half a minute, with few letters and a place of its own for the result:

    python scripts/pretrain_glyphnet.py --epochs 2 --images 1280 \
        --fonts cmr10 cmss10 cmti10 --out build/tiny.weights.h5

Letters come from the fonts that matplotlib ships (`letters.drawing`); every image is
rendered once, differently (`letters.rendering`), and none shows a digit. Beside
the weights lies a JSON file with the accuracy on letters rendered anew and on fonts held out.
"""

import reusekit  # isort: skip  # noqa: F401  (first: it starts Keras quietly)

import argparse
import json
import math
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
from keras import layers
from letters.drawing import Letters, font_files, load_letters
from letters.rendering import render

from reusekit.backbones import glyphnet

HELD_OUT_FONTS = ("DejaVuSerif-Italic", "cmti10")
BATCH = 128
PEAK_RATE = 3e-3
WARMUP = 0.06  # share of the steps
LABEL_SMOOTHING = 0.1
EVALUATED = 4096  # images, at most, for each accuracy that is written down


class Renderings(keras.utils.PyDataset):
    """Batches of letters rendered anew: every class as often as any other, no image twice.

    Each batch has its own seed, so that the order in which they are made does not matter.

    Args:
        letters: What to render.
        classes: The labels that count, in the order of the network's outputs.
        steps: Batches an epoch.
        seed: The same seed gives the same images.
    """

    def __init__(self, letters: Letters, classes: np.ndarray, steps: int, seed: int) -> None:
        super().__init__(workers=1)
        self._letters = letters
        order = np.argsort(letters.labels, kind="stable")
        present, starts, counts = np.unique(
            letters.labels[order], return_index=True, return_counts=True
        )
        self._order, self._starts, self._counts = order, starts, counts
        self._targets = np.searchsorted(classes, present)
        self._one_hot = np.eye(len(classes), dtype="float32")
        self._steps, self._seed, self._epoch = steps, seed, 0

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels, uint8 (128, 32, 32, 1), and one-hot classes, float32 (128, classes)."""
        rng = np.random.default_rng((self._seed, self._epoch, step))
        picked = rng.integers(0, len(self._starts), BATCH)
        nth = (rng.random(BATCH) * self._counts[picked]).astype(int)
        which = self._order[self._starts[picked] + nth]
        return render(self._letters, which, rng), self._one_hot[self._targets[picked]]

    def on_epoch_end(self) -> None:
        """Move on to renderings not seen before."""
        self._epoch += 1


def classifier(backbone: keras.Model, classes: int) -> keras.Model:
    """Return the backbone between its preprocessing and a softmax over average-pooled features."""
    pixels = keras.Input(glyphnet.INPUT_SHAPE)
    x = backbone(glyphnet.preprocessing()(pixels))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(pixels, layers.Dense(classes, name="letters")(x))


def compile_for(model: keras.Model, steps: int) -> None:
    """Adam with a rate that warms up, then falls to nothing over the given number of steps."""
    warmup = max(1, round(WARMUP * steps))
    rate = keras.optimizers.schedules.CosineDecay(
        PEAK_RATE / 20, max(1, steps - warmup), warmup_target=PEAK_RATE, warmup_steps=warmup
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=LABEL_SMOOTHING
        ),
        metrics=["accuracy"],
    )


def write(backbone: keras.Model, report: dict, out: Path) -> None:
    """Write weights and report beside their places, then move them there whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    report_path = out.with_name(out.name.removesuffix(".weights.h5") + ".json")
    weights_draft = out.with_name(f".{os.getpid()}.{out.name}")
    report_draft = report_path.with_name(f".{os.getpid()}.{report_path.name}")
    try:
        backbone.save_weights(weights_draft)
        report_draft.write_text(json.dumps(report, indent=2) + "\n")
        os.replace(weights_draft, out)
        os.replace(report_draft, report_path)
    finally:
        for draft in (weights_draft, report_draft):
            draft.unlink(missing_ok=True)


def pretrain(args: argparse.Namespace) -> dict:
    """Train, measure and write; returns the report that was written."""
    start = time.perf_counter()
    keras.utils.set_random_seed(args.seed)
    if args.verbose:
        print("Drawing the letters of each font once ...", flush=True)
    letters = load_letters(args.fonts)
    held_out = np.isin(letters.fonts, HELD_OUT_FONTS)
    seen = letters[~held_out]
    classes = np.unique(seen.labels)
    unseen = letters[held_out & np.isin(letters.labels, classes)]
    steps = math.ceil(args.images / BATCH)
    if args.verbose:
        print(
            f"{len(seen)} letters of {len(classes)} classes; {args.epochs} epochs of "
            f"{steps * BATCH} images each.",
            flush=True,
        )

    backbone = glyphnet.build(weights=None)
    model = classifier(backbone, len(classes))
    compile_for(model, args.epochs * steps)
    renderings = Renderings(seen, classes, steps, args.seed)
    model.fit(renderings, epochs=args.epochs, verbose=args.verbose)

    def score(letters: Letters) -> float:
        # Every batch is seeded by (seed, epoch, step): another seed, other images.
        few = max(1, min(EVALUATED // BATCH, args.epochs * steps))
        renderings = Renderings(letters, classes, few, args.seed + 1)
        measured = model.evaluate(renderings, verbose=0, return_dict=True)
        return round(float(measured["accuracy"]), 4)

    report = {
        "network": glyphnet.SOURCE,
        "accuracy_on_new_renderings": score(seen),
        "accuracy_on_held_out_fonts": score(unseen) if len(unseen) else None,
        "held_out_fonts": sorted(set(map(str, unseen.fonts))),
        "classes": len(classes),
        "letters": len(seen),
        "images": args.epochs * steps * BATCH,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - start),
        "parameters": backbone.count_params(),
        "versions": {"python": platform.python_version()}
        | {
            name: version(name) for name in ("keras", "tensorflow", "matplotlib", "numpy", "pillow")
        },
    }
    write(backbone, report, args.out)
    return report


def arguments() -> argparse.Namespace:
    """Return the command line, checked before anything is trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=25_600, help="images an epoch")
    parser.add_argument("--fonts", nargs="+", metavar="FONT", help="default: all")
    parser.add_argument("--out", type=Path, default=glyphnet.WEIGHTS, help="a .weights.h5 file")
    parser.add_argument("--verbose", type=int, choices=(0, 1, 2), default=1)
    args = parser.parse_args()
    known = [file.stem for file in font_files()]
    if unknown := set(args.fonts or ()) - set(known):
        parser.error(f"unknown font {min(unknown)!r}; the fonts are {', '.join(known)}")
    if not args.out.name.endswith(".weights.h5"):
        parser.error(f"--out must end in .weights.h5; received {str(args.out)!r}")
    if args.epochs < 1 or args.images < 1 or args.seed < 0:
        parser.error("--epochs and --images must be at least 1, --seed at least 0")
    return args


if __name__ == "__main__":
    report = pretrain(options := arguments())
    if options.verbose:
        print(json.dumps(report, indent=2))
