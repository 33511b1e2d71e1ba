"""Feed a folder of JPEGs, beside Keras's own reader of folders.

    python scripts/benchmark_data.py --pictures 10000

Both bring pictures of 500x375 to one size and hand them over in batches of 32. Keras reads them in
each pass; reusekit opens the folder (reads contents, draws parts, decodes all files once) and then
passes over it. Prints the seconds of each as JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import reusekit as rk

BATCH = 32


def make_pictures(folder: Path, count: int) -> None:
    """Write smooth pictures with some noise, as compressible as photographs are."""
    numbers = np.random.default_rng(0)
    for number in range(count):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        coarse = Image.fromarray(numbers.integers(0, 256, (12, 16, 3), "uint8"))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), "float32")
        noisy = smooth + numbers.normal(0, 6, smooth.shape)
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype("uint8"))
        picture.save(folder / "ab"[number % 2] / f"{number}.jpg", quality=90)


def timed(work: Callable[[], tf.data.Dataset | None]) -> float:
    """Return the seconds of some work, and of a pass over the batches that it returns."""
    start = perf_counter()
    batches = work()
    if batches is not None:
        for _ in batches:
            pass
    return perf_counter() - start


def main() -> None:
    """Make the pictures, read them both ways in turn, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    size = (options.size, options.size)
    treatment = rk.data.Treatment(image_size=size, channels=3)
    every = rk.data.Shares(train=1, validation=0, test=0)
    seconds: dict[str, list[float]] = {"keras": [], "reusekit": [], "reusekit, next pass": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_pictures(folder, options.pictures)

        def by_keras() -> tf.data.Dataset:
            return keras.utils.image_dataset_from_directory(
                folder, image_size=size, batch_size=BATCH, shuffle=False, verbose=False
            )

        for _ in range(options.rounds):
            seconds["keras"].append(timed(by_keras))
            rk.data.files.look_at.cache_clear()
            opened: list[rk.data.DataSplit] = []

            def by_reusekit(opened: list = opened) -> tf.data.Dataset:
                opened.append(
                    rk.data.from_folder(folder, "train", shares=every, treatment=treatment)
                )
                return opened[0].batches(BATCH)

            seconds["reusekit"].append(timed(by_reusekit))
            seconds["reusekit, next pass"].append(timed(lambda o=opened: o[0].batches(BATCH)))
    best = {name: round(min(each), 2) for name, each in seconds.items()}
    print(json.dumps({"pictures": options.pictures, "size": options.size, "seconds": best}))


if __name__ == "__main__":
    main()
