"""Load a split of any TFDS data set as (input, label) pairs."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from filelock import FileLock
from pydantic import PositiveInt

from reusekit.arguments import AnyPath, Seed, checked, expanded
from reusekit.data.classes import check_classes, counted_classes, stated_classes
from reusekit.data.examples import FeaturePath, is_prepared, named_features, read_examples
from reusekit.data.fingerprint import fingerprint
from reusekit.data.selection import few_per_class, only, rows_of
from reusekit.data.split import DataSplit, cause_of
from reusekit.data.treatment import Resize, treatment
from reusekit.errors import DataError, nearest
from reusekit.progress import bars_wanted

# Data sets whose builders this package carries; they are prepared on first use, without a network.
_EMBEDDED = {"sklearn_digits": "reusekit.data.builders.sklearn_digits"}


@checked(DataError)
def load_split(
    name: str,
    split: str,
    *,
    data_dir: AnyPath | None = None,
    download: bool = False,
    image_size: tuple[PositiveInt, PositiveInt] | None = None,
    channels: Literal[1, 3] | None = None,
    resize: Resize = "stretch",
    examples_per_class: PositiveInt | None = None,
    seed: Seed = 0,
    input: str | None = None,
    label: str | None = None,
) -> DataSplit:
    """Load one split of a TFDS data set, decoded and resized.

    Args:
        name: A TFDS name, perhaps with configuration and version: `oxford_iiit_pet:4.0.0`.
        split: A TFDS split, with slices: `train`, `train[:80%]`, `train+test`.
        data_dir: TFDS's folder, where its data sets lie; its own default (`~/tensorflow_datasets`)
            where None. Refused for a data set that this package carries, and for a download where
            other files lie in it.
        download: Whether absent data may be downloaded.
        image_size: (height, width) of the images; None leaves them as they are.
        channels: 1 or 3, converting between grey and colour; None leaves them as they are.
        resize: What to do where the aspect ratio differs: `stretch`, `crop` or `pad`.
        examples_per_class: Keep that many examples of each class, drawn by `seed`; None keeps all.
        seed: Decides which examples are kept.
        input: The feature that a model is fed, such as `image`; None for the data set's own.
        label: The feature to classify by, such as `attributes/Smiling`; None for the data set's
            own. True and false and whole numbers of few values are classes, too.

    Returns:
        The split; its order is fixed, and shuffling is left to `DataSplit.batches`.

    Raises:
        DataError: An unknown name, split or feature, absent data, labels that are no classes or
            are missing, images of an unknown range, or too few examples of a class.

    Example:
        >>> digits = load_split("sklearn_digits", "train", examples_per_class=5)
        >>> digits.size, digits.input_shape
        (50, (8, 8, 1))
        >>> load_split("sklearn_digits", "trian")
        Traceback (most recent call last):
        ...
        reusekit.errors.DataError: sklearn_digits has no split 'trian'. Did you mean 'train'?
    """
    data_dir = None if data_dir is None else expanded(data_dir, DataError)
    split = "".join(split.split())  # as people write it: train + test
    builder = _builder(name, data_dir)
    (_, input_path, _), (label_name, label_path, feature) = _pair(builder, input, label)
    classes = stated_classes(builder, label_name, feature)
    _prepare(builder, download, data_dir)
    try:
        _check_rows(builder, split)
        stored = read_examples(builder, split, [label_path])
    except DataError:
        raise
    except (AssertionError, ValueError, KeyError) as error:
        raise _explained(error, builder, split) from error
    classes = classes or counted_classes(builder, label_name, label_path)
    try:
        labels = np.concatenate(list(stored.map(classes.of).batch(4096).as_numpy_iterator()))
    except tf.errors.OpError as error:
        raise _explained(error, builder, split) from error
    check_classes(labels, classes, f"{_full_name(builder)}, split {split!r},")
    examples = read_examples(builder, split, [input_path, label_path])
    if examples_per_class is not None:
        examples = only(examples, few_per_class(labels, examples_per_class, seed))
    treat = treatment(examples.element_spec[0], image_size, channels, resize)
    treated: dict[str, Any] = {
        "image_size": image_size and list(image_size),
        "channels": channels,
        "resize": resize,
        "examples_per_class": examples_per_class,
        "seed": seed if examples_per_class else 0,
    }
    # Only where they are given, so that features and versions of before keep their fingerprints.
    treated |= {k: v for k, v in (("input", input), ("label", label)) if v is not None}
    return DataSplit(
        name=_full_name(builder),
        split=split,
        examples=examples.map(lambda x, y: (treat(x), classes.of(y)), tf.data.AUTOTUNE),
        size=int(examples.cardinality()),
        class_names=classes.names,
        fingerprint=fingerprint(builder, split, treated),
        treatment=treated,
        rows=rows_of(builder, split),
    )


def _builder(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    try:
        plain = tfds.core.naming.parse_builder_name_kwargs(name)[0].name
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            "Expected the name of a TFDS data set, perhaps with configuration and version, such as "
            f"mnist:3.0.1. Received: {name!r}. A folder of TFDS is named by data_dir."
        ) from error
    module = _EMBEDDED.get(plain)
    if module:
        if data_dir is not None:
            raise DataError(
                f"{plain} comes with this package and is kept in TFDS's own folder. Expected no "
                f"data_dir. Received: {os.fspath(data_dir)!r}."
            )
        importlib.import_module(module)  # registers the builder with TFDS
    try:
        return tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except tfds.core.registered.DatasetNotFoundError as error:
        known = [*_EMBEDDED, *tfds.list_builders(with_community_datasets=False)]
        hint = nearest(name, known)
        if not hint.startswith("Did you mean"):  # a list of hundreds helps nobody
            hint = "tfds.list_builders() lists the data sets of TFDS."
        raise DataError(f"Unknown data set {name!r}. {hint}") from error
    except Exception as error:  # an unknown version, a catalogue elsewhere that does not answer
        raise DataError(f"The data set {name!r} cannot be used: {cause_of(error)}") from error


def _prepare(
    builder: tfds.core.DatasetBuilder, download: bool, data_dir: str | os.PathLike | None
) -> None:
    """Prepare what is embedded, and download what is absent where that is allowed."""
    if (not download and builder.name not in _EMBEDDED) or is_prepared(builder):
        return
    if data_dir is not None:
        _check_folder(Path(data_dir))
    if not bars_wanted() or builder.name in _EMBEDDED:
        tfds.disable_progress_bar()
    try:
        # TFDS prints that it downloads, also where it only prepares what is there.
        told = io.StringIO() if builder.name in _EMBEDDED else sys.stderr
        with contextlib.redirect_stdout(told), _sole_maker(builder):
            if is_prepared(builder):  # by another process meanwhile
                builder.info.read_from_directory(builder.data_dir)
            else:
                builder.download_and_prepare()
    except Exception as error:  # TFDS lets through whatever a builder, a disk or a network raises
        what = "prepared" if builder.name in _EMBEDDED else "downloaded and prepared"
        raise DataError(
            f"{builder.name} could not be {what} in {builder.data_dir}: {cause_of(error)}"
        ) from error


def _pair(
    builder: tfds.core.DatasetBuilder, input: str | None, label: str | None
) -> list[tuple[str, FeaturePath, tfds.features.FeatureConnector]]:
    """Return name, path and feature of the input and of the label."""
    known = named_features(builder.info.features)
    own = builder.info.supervised_keys
    pair = []
    for role, position, asked in (("input", 0, input), ("label", 1, label)):
        name = asked
        if name is None:
            name = own[position] if own and len(own) == 2 else None
            if not isinstance(name, str) or name not in known:
                raise DataError(
                    f"{builder.name} has no (input, label) pair that says its {role}. Expected "
                    f"{role} (--data.{role}) to name one of its features: {', '.join(known)}."
                )
        if name not in known:
            raise DataError(
                f"{builder.name} has no feature {name!r} for {role}. {nearest(name, known)}"
            )
        pair.append((name, *known[name]))
    return pair


@contextlib.contextmanager
def _sole_maker(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
    """Wait while another process prepares the same data set; TFDS fails where two do at once."""
    root = Path(builder.data_dir).parent
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{builder.version}.lock"):
        yield


def _check_folder(folder: Path) -> None:
    """Refuse to download between files that are none of TFDS's."""
    prepared = ("downloads", "*/*/dataset_info.json", "*/*/*/dataset_info.json")
    if (
        folder.is_dir()
        and any(folder.iterdir())
        and not any(match for pattern in prepared for match in folder.glob(pattern))
    ):
        raise DataError(
            f"{str(folder)!r} holds files that are none of TFDS's, and nothing is downloaded "
            "between them. Expected data_dir to be TFDS's folder, or a new one."
        )


def _explained(error: Exception, builder: tfds.core.DatasetBuilder, split: str) -> DataError:
    splits = list(builder.info.splits or {})
    if isinstance(error, AssertionError):
        return DataError(
            f"{builder.name} is not in {builder.data_dir}. Allow its download (download=True, "
            "or --data.download true), or name the folder that has it (data_dir)."
        )
    for unknown in (part.partition("[")[0] for part in split.split("+")):
        if unknown not in (*splits, "all"):
            hint = nearest(unknown, splits)
            if len(splits) == 1:
                hint += f" Parts of it do as well, such as {splits[0]}[:80%] and {splits[0]}[80%:]."
            return DataError(f"{builder.name} has no split {unknown!r}. {hint}")
    if "format" in str(error) or "literal" in str(error):  # TFDS cannot parse it
        return DataError(
            f"Expected a split of {builder.name}, or parts of some, such as {splits[0]}[:80%] or "
            f"{splits[0]}[100:200]. Received: {split!r}."
        )
    return DataError(
        f"The split {split!r} of {builder.name} cannot be read: {cause_of(error)} "
        f"Its splits: {', '.join(splits)}."
    )


def _check_rows(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Refuse a split of which a part has no rows: TFDS counts one that runs backwards below 0."""
    for part in split.split("+") if builder.info.splits else ():
        if "[" in part and builder.info.splits[part].num_examples < 1:
            raise DataError(
                f"Expected a split with examples, such as train[2:5]. Received: {part!r}, "
                f"which has none of {_full_name(builder)}."
            )


def _full_name(builder: tfds.core.DatasetBuilder) -> str:
    """Return name, configuration and version in the form that `tfds.load` takes."""
    configuration = f"/{builder.builder_config.name}" if builder.builder_config else ""
    return f"{builder.name}{configuration}:{builder.version}"
