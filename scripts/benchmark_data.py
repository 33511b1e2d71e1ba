"""Feed a folder of JPEGs, beside Keras's own reader of folders.

    python scripts/benchmark_data.py --pictures 10000

Both bring pictures to one size and hand them over in batches of 32. Keras reads and decodes them in
each pass, and resizes without antialiasing, so that fine detail turns into noise. reusekit opens
the folder (reads contents, draws parts, decodes all files once, resizes with antialiasing) and then
passes over it. Between the two stands Keras's reader with the same resizing. Prints the seconds of
each as JSON.
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


def make_pictures(folder: Path, count: int, width: int) -> None:
    """Write smooth pictures with some noise, as compressible as photographs are."""
    numbers = np.random.default_rng(0)
    for number in range(count):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        coarse = Image.fromarray(numbers.integers(0, 256, (12, 16, 3), "uint8"))
        shape = width, width * 3 // 4
        smooth = np.asarray(coarse.resize(shape, Image.Resampling.BICUBIC), "float32")
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
    parser.add_argument("--width", type=int, default=500, help="of the pictures, 4 to 3")
    parser.add_argument("--size", type=int, default=224, help="that they are brought to")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    size = (options.size, options.size)
    treatment = rk.data.Treatment(image_size=size, channels=3)
    every = rk.data.Shares(train=1, validation=0, test=0)
    ways = ("keras", "keras, antialiased", "reusekit", "reusekit, next pass")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_pictures(folder, options.pictures, options.width)

        def by_keras() -> tf.data.Dataset:
            return keras.utils.image_dataset_from_directory(
                folder, image_size=size, batch_size=BATCH, shuffle=False, verbose=False
            )

        def antialiased() -> tf.data.Dataset:
            resizing = keras.layers.Resizing(*size, antialias=True)

            def read(path: tf.Tensor) -> tf.Tensor:
                data = tf.io.read_file(path)
                return resizing(tf.io.decode_image(data, channels=3, expand_animations=False))

            paths = tf.data.Dataset.from_tensor_slices(by_keras().file_paths)
            return paths.map(read, tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)

        for _ in range(options.rounds):
            seconds["keras"].append(timed(by_keras))
            seconds["keras, antialiased"].append(timed(antialiased))
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
    print(json.dumps(vars(options) | {"seconds": best}))


if __name__ == "__main__":
    main()
