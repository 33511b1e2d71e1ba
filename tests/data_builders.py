"""Small data sets of the tests' own, prepared in a folder."""

from collections.abc import Iterable
from pathlib import Path

import tensorflow_datasets as tfds

F = tfds.features


def prepare(
    folder: Path,
    name: str,
    features: dict,
    examples: Iterable[dict] | dict[str, Iterable[dict]],
    supervised: tuple[str, str] | None = ("image", "label"),
    file_format: str | None = None,
) -> str:
    """Prepare a data set whose examples are given, in one split or in several; returns its name."""
    splits = examples if isinstance(examples, dict) else {"train": examples}
    body = {
        "__module__": __name__,
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": lambda self: tfds.core.DatasetInfo(
            builder=self, features=F.FeaturesDict(features), supervised_keys=supervised
        ),
        "_split_generators": lambda self, _: {
            split: enumerate(rows) for split, rows in splits.items()
        },
        "_generate_examples": lambda self: iter(()),
    }
    builder = type(
        name.title().replace("_", ""), (tfds.core.GeneratorBasedBuilder,), body
    )  # registers itself
    builder(data_dir=folder, file_format=file_format).download_and_prepare()
    return name
