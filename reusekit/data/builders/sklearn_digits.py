"""The TFDS builder `sklearn_digits`: real handwritten digits that scikit-learn carries."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

_DESCRIPTION = """
1,797 handwritten digits of 8x8 pixels: the test part of the "Optical Recognition of Handwritten
Digits" data set of the UCI repository, as scikit-learn ships it. Grey values of 0 to 16 are scaled
to 0 to 255. The split into train (897), validation (300) and test (600) is stratified and fixed.
"""
_CITATION = """
@misc{alpaydin1998digits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  doi = {10.24432/C50P49}
}
"""
_SIZES = {"validation": 300, "test": 600}


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the fixed, stratified split: for each part, which rows of the source belong to it."""
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=_SIZES["test"], random_state=0, stratify=labels
    )
    train, validation = train_test_split(
        rest, test_size=_SIZES["validation"], random_state=0, stratify=labels[rest]
    )
    return {"train": np.sort(train), "validation": np.sort(validation), "test": np.sort(test)}


class SklearnDigits(tfds.core.GeneratorBasedBuilder):
    """Scikit-learn's handwritten digits with a fixed split, prepared without a network."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
        return {
            name: self._generate_examples(rows, images, digits.target)
            for name, rows in split_indices(digits.target).items()
        }

    def _generate_examples(
        self, rows: np.ndarray, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for row in rows:
            yield int(row), {"image": images[row], "label": int(labels[row])}
