"""Load a split of any TFDS data set as (input, label) pairs."""

import contextlib
import io
import os
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from reusekit.data.fingerprint import fingerprint
from reusekit.data.selection import few_per_class, only, rows_of
from reusekit.data.split import DataSplit
from reusekit.data.treatment import Resize, treatment
from reusekit.errors import DataError, nearest
from reusekit.progress import bars_wanted

# Data sets whose builders this package carries; they are prepared on first use, without a network.
_EMBEDDED = {"sklearn_digits": "reusekit.data.builders.sklearn_digits"}


def load_split(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    image_size: Sequence[int] | None = None,
    channels: int | None = None,
    resize: Resize = "stretch",
    examples_per_class: int | None = None,
    seed: int = 0,
) -> DataSplit:
    """Load one split of a TFDS data set, decoded and resized.

    Args:
        name: A TFDS name, perhaps with configuration and version: `oxford_iiit_pet:4.0.0`.
        split: A TFDS split, with slices: `train`, `train[:80%]`, `train+test`.
        data_dir: TFDS's folder; its own default (`~/tensorflow_datasets`) where None.
        download: Whether absent data may be downloaded.
        image_size: (height, width) of the images; None leaves them as they are.
        channels: 1 or 3, converting between grey and colour; None leaves them as they are.
        resize: What to do where the aspect ratio differs: `stretch`, `crop` or `pad`.
        examples_per_class: Keep that many examples of each class, drawn by `seed`; None keeps all.
        seed: Decides which examples are kept.

    Returns:
        The split; its order is fixed, and shuffling is left to `DataSplit.batches`.

    Raises:
        DataError: An unknown name or split, absent data, a data set without class labels, images
            that are not 8-bit grey or colour, or too few examples of a class.

    Example:
        >>> digits = load_split("sklearn_digits", "train", examples_per_class=5)
        >>> digits.size, digits.input_shape
        (50, (8, 8, 1))
        >>> load_split("sklearn_digits", "trian")
        Traceback (most recent call last):
        ...
        reusekit.errors.DataError: sklearn_digits has no split 'trian'. Did you mean 'train'?
    """
    builder = _builder(name, data_dir)
    _prepare(builder, download)
    input_key, label_key = _supervised_keys(builder)
    read = {"split": split, "shuffle_files": False, "read_config": _in_fixed_order()}
    try:
        examples = builder.as_dataset(as_supervised=True, **read)
    except (AssertionError, ValueError, KeyError) as error:
        raise _explained(error, builder, split) from error

    if examples_per_class is not None:
        skip = {input_key: tfds.decode.SkipDecoding()}
        undecoded = builder.as_dataset(decoders=skip, **read)
        labels = [int(e[label_key]) for e in undecoded.as_numpy_iterator()]
        examples = only(examples, few_per_class(np.array(labels), examples_per_class, seed))
    treat = treatment(examples.element_spec[0], image_size, channels, resize)
    treated = {
        "image_size": image_size and list(image_size),
        "channels": channels,
        "resize": resize,
        "examples_per_class": examples_per_class,
        "seed": seed if examples_per_class else 0,
    }
    return DataSplit(
        name=_full_name(builder),
        split=split,
        examples=examples.map(treat, tf.data.AUTOTUNE),
        size=int(examples.cardinality()),
        class_names=tuple(builder.info.features[label_key].names),
        fingerprint=fingerprint(builder, split, treated),
        treatment=treated,
        rows=rows_of(builder, split),
    )


def _builder(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    module = _EMBEDDED.get(name.split(":")[0].split("/")[0])
    if module:
        __import__(module)  # registers the builder with TFDS
    try:
        return tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except tfds.core.registered.DatasetNotFoundError as error:
        known = [*_EMBEDDED, *tfds.list_builders(with_community_datasets=False)]
        raise DataError(f"Unknown data set {name!r}. {nearest(name, known)}") from error
    except (AssertionError, ValueError) as error:  # an unknown version or configuration
        raise DataError(f"The data set {name!r} cannot be used: {_one_line(error)}") from error


def _prepare(builder: tfds.core.DatasetBuilder, download: bool) -> None:
    """Prepare what is embedded, and download what is absent where that is allowed."""
    if not download and builder.name not in _EMBEDDED:
        return
    if not bars_wanted() or builder.name in _EMBEDDED:
        tfds.disable_progress_bar()
    try:
        # TFDS prints that it downloads, also where it only prepares what is there.
        told = io.StringIO() if builder.name in _EMBEDDED else sys.stderr
        with contextlib.redirect_stdout(told):
            builder.download_and_prepare()
    except Exception as error:  # TFDS lets through whatever a builder, a disk or a network raises
        what = "prepared" if builder.name in _EMBEDDED else "downloaded and prepared"
        raise DataError(
            f"{builder.name} could not be {what} in {builder.data_dir}: {_one_line(error)}"
        ) from error


def _supervised_keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    keys = builder.info.supervised_keys
    if not keys or len(keys) != 2 or not all(isinstance(key, str) for key in keys):
        raise DataError(
            f"{builder.name} has no (input, label) pair. Expected supervised_keys of two names. "
            f"Received: {keys}."
        )
    label = builder.info.features[keys[1]]
    if not isinstance(label, tfds.features.ClassLabel):
        raise DataError(
            f"The labels of {builder.name} are no classes. Expected a ClassLabel. Received: "
            f"{label}."
        )
    return keys


def _explained(error: Exception, builder: tfds.core.DatasetBuilder, split: str) -> DataError:
    splits = list(builder.info.splits or {})
    if isinstance(error, AssertionError):
        return DataError(
            f"{builder.name} is not in {builder.data_dir}. Allow its download (download=True, "
            "or --data.download true), or name the folder that has it (data_dir)."
        )
    unknown = split.split("[")[0]
    if "+" not in split and unknown not in splits:
        return DataError(f"{builder.name} has no split {unknown!r}. {nearest(unknown, splits)}")
    return DataError(
        f"The split {split!r} of {builder.name} cannot be read: {_one_line(error)} "
        f"Its splits: {', '.join(splits)}."
    )


def _full_name(builder: tfds.core.DatasetBuilder) -> str:
    """Name, configuration and version in the form that `tfds.load` takes."""
    configuration = f"/{builder.builder_config.name}" if builder.builder_config else ""
    return f"{builder.name}{configuration}:{builder.version}"


def _in_fixed_order() -> tfds.ReadConfig:
    return tfds.ReadConfig(try_autocache=False, shuffle_seed=0)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
