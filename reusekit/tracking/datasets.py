"""TFDS data as MLflow data sets: which split of what, named by its content."""

import json
from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource

from reusekit.data import DataSplit, load_split


class TFDSSource(DatasetSource):
    """Where a split comes from: a data set of TFDS, with version, split and treatment.

    Args:
        name: TFDS name with version, such as `mnist:3.0.1`.
        split: TFDS split, such as `train[:80%]`.
        treatment: How examples were selected and resized: options of `reusekit.data.load_split`.
    """

    def __init__(self, name: str, split: str, treatment: Mapping[str, Any]) -> None:
        self.name, self.split, self.treatment = name, split, dict(treatment)

    @staticmethod
    def _get_source_type() -> str:
        return "tfds"

    def load(self, **options: Any) -> DataSplit:
        """Load the split again, treated as it was; options as in `reusekit.data.load_split`."""
        return load_split(self.name, self.split, **self.treatment | options)

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return isinstance(raw_source, DataSplit)

    @classmethod
    def _resolve(cls, raw_source: DataSplit) -> "TFDSSource":
        return cls(raw_source.name, raw_source.split, raw_source.treatment)

    def to_dict(self) -> dict[str, Any]:
        """The source as MLflow stores it."""
        return {"name": self.name, "split": self.split, "treatment": self.treatment}

    @classmethod
    def from_dict(cls, source_dict: dict[str, Any]) -> "TFDSSource":
        """The source from what MLflow stored."""
        return cls(source_dict["name"], source_dict["split"], source_dict["treatment"])


class TFDSDataset(Dataset):
    """A split as MLflow records it: its digest is its fingerprint.

    Args:
        split: A loaded split.
    """

    def __init__(self, split: DataSplit) -> None:
        self._split = split
        super().__init__(TFDSSource._resolve(split), name=split.name, digest=split.fingerprint)

    def _compute_digest(self) -> str:
        return self._split.fingerprint

    @property
    def schema(self) -> dict[str, Any]:
        """Shape and dtype of an input, and the number of classes."""
        spec = self._split.examples.element_spec[0]
        return {
            "input": {"shape": list(spec.shape), "dtype": spec.dtype.name},
            "classes": self._split.classes,
        }

    @property
    def profile(self) -> dict[str, Any]:
        """How many examples there are."""
        return {"examples": self._split.size}

    def to_dict(self) -> dict[str, str]:
        """The data set as MLflow stores it."""
        return super().to_dict() | {
            "schema": json.dumps(self.schema),
            "profile": json.dumps(self.profile),
        }


def log_data(split: DataSplit, context: str) -> None:
    """Record a split as an input of the active run.

    Args:
        split: What is read.
        context: What for: `training`, `validation` or `test`.
    """
    mlflow.log_input(TFDSDataset(split), context=context)
