"""Examples of a prepared TFDS data set, whatever its files' format."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from reusekit.data.selection import only

FeaturePath = tuple[str, ...]
"""Where a feature lies in an example: `("image",)`, or `("attributes", "Smiling")`."""


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Return whether the data set's files are there. TFDS's own test warns where they are not."""
    return (builder.data_path / "dataset_info.json").exists()


@dataclass(frozen=True)
class Feature:
    """A feature of a data set.

    Attributes:
        name: As a user writes it, such as `attributes/Smiling`.
        path: Where it lies in an example.
        connector: TFDS's own description of it.
    """

    name: str
    path: FeaturePath
    connector: tfds.features.FeatureConnector


def named_features(
    features: tfds.features.FeaturesDict, before: FeaturePath = ()
) -> dict[str, Feature]:
    """List the features of an example by name; parts of a sequence's items are sequences.

    Example:
        >>> features = tfds.features.FeaturesDict({"image": tfds.features.Image(),
        ...                                        "about": {"old": np.bool_}})
        >>> list(named_features(features))
        ['about/old', 'image']
    """
    found: dict[str, Feature] = {}
    for key, feature in sorted(features.items()):
        path = (*before, key)
        name = "/".join(path)
        inner = feature.feature if isinstance(feature, tfds.features.Sequence) else None
        if isinstance(feature, tfds.features.FeaturesDict):
            found |= named_features(feature, path)
        elif isinstance(inner, tfds.features.FeaturesDict):
            items = named_features(inner, path)
            for one in items.values():
                found[one.name] = replace(one, connector=tfds.features.Sequence(one.connector))
        else:
            found[name] = Feature(name, path, feature)
    return found


def read_examples(
    builder: tfds.core.DatasetBuilder,
    split: str,
    paths: Sequence[FeaturePath],
    decoded: bool = True,
    kept: np.ndarray | None = None,
) -> tf.data.Dataset:
    """Read some features of each example of a split, in a fixed order; no other one is decoded.

    Args:
        builder: A prepared builder.
        split: A TFDS split.
        paths: Which features.
        decoded: Whether pictures are decoded; else they are the bytes of their files.
        kept: Positions of the examples that are wanted, ascending; no picture of another one is
            decoded. None for all.

    Returns:
        A data set of known cardinality, of tuples with one part for each path.
    """
    raw = _undecoded(builder, paths) if kept is not None or not decoded else {}
    wanted = tfds.decode.PartialDecoding(_nested(dict.fromkeys(paths, True)), decoders=_nested(raw))
    array_record = tfds.core.file_adapters.FileFormat.ARRAY_RECORD
    if is_prepared(builder) and builder.info.file_format == array_record:
        examples = _from_data_source(builder, split, wanted)
    else:
        log = logging.getLogger("absl")
        log.addFilter(_is_news)
        try:
            examples = builder.as_dataset(
                split=split,
                shuffle_files=False,
                decoders=wanted,
                read_config=tfds.ReadConfig(try_autocache=False, shuffle_seed=0),
            )
        finally:
            log.removeFilter(_is_news)
    examples = examples.map(lambda example: tuple(_at(example, path) for path in paths))
    if kept is None:
        return examples
    own = {path: _at(builder.info.features, path).decode_example for path in raw if decoded}

    def decode(*parts: Any) -> tuple[Any, ...]:
        pairs = zip(paths, parts, strict=True)
        return tuple(own[path](part) if path in own else part for path, part in pairs)

    return only(examples, kept).map(decode, tf.data.AUTOTUNE)


def _nested(by_path: Mapping[FeaturePath, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, value in by_path.items():
        inner = found
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return found


def _undecoded(
    builder: tfds.core.DatasetBuilder, paths: Sequence[FeaturePath]
) -> dict[FeaturePath, tfds.decode.Decoder]:
    """Return what leaves pictures as the bytes of their files, for each of the paths to one."""
    pictures = [p for p in paths if isinstance(_at(builder.info.features, p), tfds.features.Image)]
    return {path: tfds.decode.SkipDecoding() for path in pictures}


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for warnings of properties that TFDS's decoding reads itself."""
    said = record.getMessage()
    return "FeatureConnector.dtype" not in said and "TensorInfo.dtype" not in said


def _from_data_source(
    builder: tfds.core.DatasetBuilder, split: str, wanted: tfds.decode.PartialDecoding
) -> tf.data.Dataset:
    """Read a format that TFDS reads row by row alone."""
    source = builder.as_data_source(
        split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    features = wanted.extract_features(builder.info.features)

    def read(row: tf.Tensor) -> Any:
        data = tf.numpy_function(lambda row: source[int(row)], [row], tf.string)
        return features.deserialize_example(tf.ensure_shape(data, ()), decoders=wanted.decoders)

    return tf.data.Dataset.range(len(source)).map(read, tf.data.AUTOTUNE)


def _at(example: Any, path: FeaturePath) -> Any:
    for key in path:
        example = example[key]
    return example
