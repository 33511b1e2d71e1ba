"""Feed a folder of JPEGs, beside Keras's own reader of folders.

    python scripts/benchmark_data.py --pictures 10000

Both bring pictures to one size and hand them over in batches of 32. Keras reads and decodes them in
each pass, and resizes without antialiasing, so that fine detail turns into noise. reusekit opens
the folder (reads contents, draws parts, decodes all files once, resizes with antialiasing) and then
passes over it. Between the two stands Keras's reader with antialiasing. Then both feed pictures
into glyphnet, grey and 32x32, of which features are kept at its last cut. Each round takes the
other order. Prints the seconds of each, and those of all processors, the fewest of all rounds, as
JSON.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import reusekit as rk
from reusekit.features import stored_features

BATCH = 32
CUT = "block7_out"
EVERY = rk.data.Shares(train=1, validation=0, test=0)


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


def by_keras(folder: Path, side: int, grey: bool = False) -> tf.data.Dataset:
    """Return the batches of Keras's reader."""
    return keras.utils.image_dataset_from_directory(
        folder,
        image_size=(side, side),
        color_mode="grayscale" if grey else "rgb",
        batch_size=BATCH,
        shuffle=False,
        verbose=False,
    )


def antialiased(folder: Path, side: int) -> tf.data.Dataset:
    """Return the same batches, resized with antialiasing."""
    resizing = keras.layers.Resizing(side, side, antialias=True)

    def read(path: tf.Tensor) -> tf.Tensor:
        data = tf.io.read_file(path)
        return resizing(tf.io.decode_image(data, channels=3, expand_animations=False))

    paths = tf.data.Dataset.from_tensor_slices(by_keras(folder, side).file_paths)
    return paths.map(read, tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)


def by_reusekit(folder: Path, side: int, channels: int = 3) -> rk.data.DataSplit:
    """Open the folder, as if for the first time."""
    rk.data.files.look_at.cache_clear()
    treatment = rk.data.Treatment(image_size=(side, side), channels=channels)
    return rk.data.from_folder(folder, "train", shares=EVERY, treatment=treatment)


def passed(batches: tf.data.Dataset) -> None:
    """Take all batches."""
    for _ in batches:
        pass


def main() -> None:
    """Make the pictures, read them in each way in turn, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--width", type=int, default=500, help="of the pictures, 4 to 3")
    parser.add_argument("--size", type=int, default=224, help="that they are brought to")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    side, model = options.size, rk.load_backbone("reusekit/glyphnet").model
    bottom = rk.extract(model, CUT, pooling="avg")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "pictures")
        folder.mkdir()
        make_pictures(folder, options.pictures, options.width)
        opened = [by_reusekit(folder, side)]

        def open_and_pass() -> None:
            opened.clear()  # else two of them were held at a time
            opened.append(by_reusekit(folder, side))
            passed(opened[0].batches(BATCH))

        def store() -> None:
            with tempfile.TemporaryDirectory(dir=scratch) as features:
                split = by_reusekit(folder, 32, channels=1)
                stored_features(rk.FeatureStore(features), model, [CUT], split, pooling="avg")

        ways: dict[str, Callable[[], object]] = {
            "keras": lambda: passed(by_keras(folder, side)),
            "keras, antialiased": lambda: passed(antialiased(folder, side)),
            "reusekit": open_and_pass,
            "reusekit, next pass": lambda: passed(opened[0].batches(BATCH)),
            "keras into glyphnet": lambda: bottom.predict(by_keras(folder, 32, True), verbose=0),
            "reusekit into glyphnet": store,
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        processor: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(options.rounds):
            for way in list(ways)[:: -1 if number % 2 else 1]:
                start, used = perf_counter(), process_time()
                ways[way]()
                seconds[way].append(perf_counter() - start)
                processor[way].append(process_time() - used)
    best = {
        name: {way: round(min(each), 2) for way, each in taken.items()}
        for name, taken in (("seconds", seconds), ("processor", processor))
    }
    print(json.dumps(vars(options) | best))


if __name__ == "__main__":
    main()
