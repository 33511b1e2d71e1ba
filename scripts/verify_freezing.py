"""Freezes a model of `keras.applications` at each of its clean cuts, trains it, and looks.

After three steps every frozen variable and every moving statistic before the cut must be what it
was, to the last bit, and every other variable must have moved.

    python scripts/verify_freezing.py                    # ResNet50, all cuts: some minutes
    python scripts/verify_freezing.py --every 10
"""

import reusekit as rk  # isort: skip  (first: it starts Keras quietly)

import argparse

import keras
import numpy as np

from reusekit.progress import tracked
from reusekit.training import Freezing


def main() -> None:
    """Print a row for each cut, and how many were right."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="ResNet50", help="a name in keras.applications")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every Nth cut only")
    options = parser.parse_args()
    points = rk.cut_points(build(options.model))[:: options.every]
    print(f"{'cut':28}{'frozen':>12}{'trained':>12}  wrong")
    right = 0
    for point in tracked(points, "Freezing and training"):
        report, wrong = freeze_and_train(options.model, point.at)
        right += not wrong
        counts = report.parameters()
        fixed = counts["frozen"] + counts["state"]
        print(f"{point.at:28}{fixed:12,}{counts['trainable']:12,}  {', '.join(wrong) or '-'}")
    print(f"{right} of {len(points)} cuts: frozen bit for bit, all else moved")
    if right < len(points):
        raise SystemExit(1)


def build(name: str) -> keras.Model:
    """Return a model with random weights, always the same, for small images."""
    keras.utils.set_random_seed(0)
    return getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=3)


def freeze_and_train(name: str, at: str) -> tuple[Freezing, list[str]]:
    """Freeze a model at one cut and train it for three steps of Adam.

    Args:
        name: A name in `keras.applications`.
        at: The address of a clean cut.

    Returns:
        What was frozen, and what is wrong with it: the paths of variables that should have moved
        and did not, or did and should not have, and another number of parameters than lie before
        the cut.
    """
    model = build(name)
    report = rk.freeze(model, at)
    counts = report.parameters()
    fixed, expected = counts["frozen"] + counts["state"], rk.cut_points(model)[at].params_before
    wrong = [] if fixed == expected else [f"{fixed:,} parameters are fixed, expected {expected:,}"]
    before = [keras.ops.convert_to_numpy(v) for v in model.weights]
    model.compile(keras.optimizers.Adam(0.001), "mse", run_eagerly=True)  # sooner than compiled
    random = np.random.default_rng(0)
    x, y = random.normal(size=(4, *model.input_shape[1:])), random.normal(size=(4, 3))
    model.fit(x, y, batch_size=4, epochs=3, verbose=0)
    for told, old, new in zip(report.variables, before, model.weights, strict=True):
        moved = not np.array_equal(old, keras.ops.convert_to_numpy(new))
        if moved == (told.state in ("frozen", "state")):
            wrong.append(told.path)
    return report, wrong


if __name__ == "__main__":
    main()
