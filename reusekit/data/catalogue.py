"""Load a split of any TFDS data set as inputs and labels."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from annotated_types import MinLen
from filelock import FileLock

from reusekit.arguments import AnyPath, Distinct, checked, expanded
from reusekit.data.examples import Feature, is_prepared, named_features, read_examples
from reusekit.data.fingerprint import fingerprint
from reusekit.data.labels import (
    Labels,
    check_labels,
    counted_labels,
    joint_labels,
    stated_labels,
)
from reusekit.data.selection import few_per_class, rows_of
from reusekit.data.split import Contents, DataSplit, cause_of
from reusekit.data.task import by_task, joined, kinds_of, plain
from reusekit.data.treatment import Treatment
from reusekit.digests import digest
from reusekit.errors import DataError, nearest
from reusekit.progress import bars_wanted

# Data sets whose builders this package carries; they are prepared on first use, without a network.
_EMBEDDED = {name: f"reusekit.data.builders.{name}" for name in ("python_topics", "sklearn_digits")}
_AS_THEY_ARE = Treatment()

Names = Annotated[Distinct[str], MinLen(1)]
"""Several features."""


@checked(DataError)
def load(
    name: str,
    split: str,
    *,
    input: str | Names | None = None,
    label: str | Names | Mapping[str, str | Names] | None = None,
    data_dir: AnyPath | None = None,
    download: bool = False,
    treatment: Treatment = _AS_THEY_ARE,
) -> DataSplit:
    """Load one split of a TFDS data set.

    Args:
        name: A TFDS name, perhaps with configuration and version: `oxford_iiit_pet:4.0.0`.
        split: A TFDS split, with slices: `train`, `train[:80%]`, `train+test`.
        input: The feature that a model is fed, such as `image`, or a list of several, which are
            given by name; None for the data set's own.
        label: The feature to tell, such as `attributes/Smiling`, or a list of several; None for
            the data set's own. Classes, true and false and whole numbers of few values are classes;
            several classes an example, or several features of true and false, are labels of which
            any may hold; other numbers are predicted. `treatment.task` says otherwise. A dictionary
            names the features of several tasks at once: `{"breed": "label", "age": "age"}`.
        data_dir: TFDS's folder, where its data sets lie; its own default (`~/tensorflow_datasets`)
            where None. Refused for a data set that this package carries, and for a download where
            other files lie in it.
        download: Whether absent data may be downloaded.
        treatment: Which examples are kept, and how pictures are resized and converted.

    Returns:
        The split; its order is fixed, and shuffling is left to `DataSplit.batches`.

    Raises:
        DataError: An unknown name, split or feature, absent data, labels that fit no task or are
            missing, images of an unknown range, or too few examples of a class.

    Example:
        >>> digits = load("sklearn_digits", "train", treatment=Treatment(examples_per_class=5))
        >>> digits.size, digits.input_shape, digits.task.kind
        (50, (8, 8, 1), 'classification')
        >>> load("sklearn_digits", "trian")
        Traceback (most recent call last):
        ...
        reusekit.errors.DataError: Expected a split of sklearn_digits. Received: 'trian'. Did you
        mean 'train'?
    """
    data_dir = None if data_dir is None else expanded(data_dir, DataError)
    split = "".join(split.split())  # as people write it: train + test
    builder = _builder(name, data_dir)
    inputs = _features(builder, "input", input)
    tasks: Any = label if isinstance(label, Mapping) else {None: label}
    kinds = kinds_of(treatment.task, list(label) if isinstance(label, Mapping) else None)
    targets = {name: _features(builder, "label", one) for name, one in tasks.items()}
    told_by = [feature.path for features in targets.values() for feature in features]
    paths = [feature.path for feature in inputs], told_by
    stated = {
        name: stated_labels(
            builder, [t.name for t in features], [t.connector for t in features], kinds[name]
        )
        for name, features in targets.items()
    }
    _prepare(builder, download, data_dir)
    try:
        _check_rows(builder, split)
        stored = read_examples(builder, split, [*paths[0], *paths[1]], decoded=False)
    except DataError:
        raise
    except (AssertionError, ValueError, KeyError) as error:
        raise _explained(error, builder, split) from error
    by_name: Any = {
        name: stated[name] or counted_labels(builder, features[0].name, features[0].path)
        for name, features in targets.items()
    }
    sizes: Any = {name: len(features) for name, features in targets.items()}
    found = joint_labels(by_name, sizes) if isinstance(label, Mapping) else by_name[None]
    try:
        labels, keys = _told(stored, len(inputs), found)
    except tf.errors.OpError as error:
        raise _explained(error, builder, split) from error
    check_labels(labels, found.task, f"{_full_name(builder)}, split {split!r},")
    few = None
    chosen = np.arange(len(keys))
    if treatment.examples_per_class is not None:
        few = chosen = few_per_class(labels, found.task, treatment)
        keys, labels = keys[few], labels[few]
    examples = read_examples(builder, split, [*paths[0], *paths[1]], kept=few)
    names = None if input is None or isinstance(input, str) else _short(inputs)

    def arranged(parts: Sequence[Any]) -> Any:
        return parts[0] if names is None else dict(zip(names, parts[: len(names)], strict=True))

    if not any(map(treatment.shortens, tf.nest.flatten(arranged(examples.element_spec)))):
        treatment = treatment.model_copy(update={"length": None})
    treat = treatment.of(arranged(examples.element_spec))
    named = {k: v for k, v in (("input", input), ("label", label)) if v is not None}
    named = {key: plain(value) for key, value in named.items()}

    def fed(*parts: Any) -> tuple[Any, Any]:
        return treat(arranged(parts)), found.of(parts[len(inputs) :])

    def taken(at: np.ndarray) -> tf.data.Dataset:
        wanted = read_examples(builder, split, [*paths[0], *paths[1]], kept=chosen[at])
        return wanted.map(fed, tf.data.AUTOTUNE)

    print_of = fingerprint(builder, split, treatment.decisive() | named)
    stored_as = [repr(feature.connector) for feature in inputs]
    examples = examples.map(fed, tf.data.AUTOTUNE)
    of_inputs = [stored_as, treatment.of_inputs(), str(examples.element_spec[0])]
    contents = Contents(keys, digest(of_inputs), (by_task(labels),), taken, print_of)
    return DataSplit(
        name=_full_name(builder),
        split=split,
        examples=examples,
        size=int(examples.cardinality()),
        task=found.task,
        fingerprint=print_of,
        treatment=treatment,
        origin={"reader": "load", **named},
        rows=rows_of(builder, split),
        keys=keys,
        reopened=lambda other: load(
            name, split, input=input, label=label, data_dir=data_dir, treatment=other
        ),
        contents=contents,
    )


def _told(stored: tf.data.Dataset, inputs: int, found: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Read examples once: the label of each, and a number that follows from its inputs.

    The numbers are made where the examples are read, so that no content is handed on.
    """
    told = stored.map(
        lambda *parts: (found.of(parts[inputs:]), _key(parts[:inputs])), tf.data.AUTOTUNE
    )
    alike = all(part.shape.is_fully_defined() for part in tf.nest.flatten(told.element_spec))
    labels, keys = [], []
    for label, key in told.batch(1024 if alike else 1).as_numpy_iterator():
        labels.append(joined(label))
        keys.append(key.view(np.uint64))
    return np.concatenate(labels), np.concatenate(keys)


def _key(parts: Sequence[Any]) -> tf.Tensor:
    """Return a whole number that follows from the content of an example's inputs."""
    content = []
    for part in tf.nest.flatten(parts, expand_composites=True):
        if part.dtype.is_floating:
            part += 0  # -0.0 is 0.0
        text = part.dtype == tf.string and part.shape.rank == 0  # or a picture, undecoded
        content.append(_hashed(part if text else tf.io.serialize_tensor(part)))
    if len(content) == 1:
        return content[0]
    return _hashed(tf.io.serialize_tensor(tf.stack(content)))


def _hashed(content: tf.Tensor) -> tf.Tensor:
    return tf.strings.to_hash_bucket_fast(content, 2**63 - 1)


def _builder(name: str, data_dir: str | os.PathLike | None) -> tfds.core.DatasetBuilder:
    try:
        plain = tfds.core.naming.parse_builder_name_kwargs(name)[0].name
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            "Expected the name of a TFDS data set, perhaps with configuration and version, such "
            f"as mnist:3.0.1. Received: {name!r}. Name a folder of TFDS with data_dir."
        ) from error
    module = _EMBEDDED.get(plain)
    if module:
        if data_dir is not None:
            raise DataError(
                f"Expected no data_dir for {plain}, which comes with this package and is kept in "
                f"TFDS's own folder. Received: {os.fspath(data_dir)!r}."
            )
        importlib.import_module(module)  # registers the builder with TFDS
    try:
        return tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except tfds.core.registered.DatasetNotFoundError as error:
        known = [*_EMBEDDED, *tfds.list_builders(with_community_datasets=False)]
        hint = nearest(name, known)
        if not hint.startswith("Did you mean"):  # a list of hundreds helps nobody
            hint = "See tfds.list_builders() for those there are."
        raise DataError(
            f"Expected the name of a TFDS data set. Received: {name!r}. {hint}"
        ) from error
    except Exception as error:  # an unknown version, a catalogue elsewhere that does not answer
        raise DataError(
            f"Expected a TFDS data set that can be used. Received: {name!r}: "
            f"{cause_of(error).rstrip('.')}. Check its configuration, its version and data_dir."
        ) from error


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
            f"Expected {builder.name} to be {what} in {builder.data_dir}. Received: "
            f"{cause_of(error).rstrip('.')}. Check the network and the disk, or name a folder that "
            "has it (data_dir)."
        ) from error


def _features(
    builder: tfds.core.DatasetBuilder, role: str, asked: str | Sequence[str] | None
) -> list[Feature]:
    """Return the features that were asked for as the input or the label, or the data set's own."""
    known = named_features(builder.info.features)
    own = builder.info.supervised_keys
    if asked is None:
        asked = own[("input", "label").index(role)] if own and len(own) == 2 else None
        if not isinstance(asked, str) or asked not in known:
            raise DataError(
                f"Expected {role} (--data.{role}) to name a feature of {builder.name}, which has "
                f"no (input, label) pair of its own: {', '.join(known)}. Received: none."
            )
    names = [asked] if isinstance(asked, str) else asked
    for name in names:
        if name not in known:
            raise DataError(
                f"Expected a feature of {builder.name} as {role}. Received: {name!r}. "
                f"{nearest(name, known)}"
            )
    return [known[name] for name in names]


def _short(inputs: Sequence[Feature]) -> list[str]:
    """Return the last part of each name, by which a model knows its input; whole where equal."""
    short = [one.path[-1] for one in inputs]
    return short if len(set(short)) == len(short) else [one.name for one in inputs]


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
            f"Expected data_dir to be TFDS's folder, or a new one. Received: {str(folder)!r}, "
            "which holds files that are none of TFDS's. Choose another folder, since nothing is "
            "downloaded between them."
        )


def _explained(error: Exception, builder: tfds.core.DatasetBuilder, split: str) -> DataError:
    splits = list(builder.info.splits or {})
    if isinstance(error, AssertionError):
        return DataError(
            f"Expected {builder.name} in {builder.data_dir}. Received: nothing. Allow its download "
            "(download=True, or --data.download true), or name the folder that has it (data_dir)."
        )
    for unknown in (part.partition("[")[0] for part in split.split("+")):
        if unknown not in (*splits, "all"):
            hint = nearest(unknown, splits)
            if len(splits) == 1:
                hint += f" Take parts of it, such as {splits[0]}[:80%] and {splits[0]}[80%:]."
            return DataError(f"Expected a split of {builder.name}. Received: {unknown!r}. {hint}")
    if "format" in str(error) or "literal" in str(error):  # TFDS cannot parse it
        return DataError(
            f"Expected a split of {builder.name}, or parts of some, such as {splits[0]}[:80%] or "
            f"{splits[0]}[100:200]. Received: {split!r}."
        )
    return DataError(
        f"Expected a split of {builder.name} that can be read, of {', '.join(splits)}. Received: "
        f"{split!r}: {cause_of(error)}"
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
