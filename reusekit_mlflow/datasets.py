"""TFDS data as MLflow data sets: which split of what, named by its content, and found again."""

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.schema import TensorDatasetSchema
from mlflow.types.schema import Schema, TensorSpec

if TYPE_CHECKING:
    from reusekit.data import DataSplit


class TFDSSource(DatasetSource):
    """The source of a split: a data set of TFDS, with version, split and fingerprint.

    Args:
        name: TFDS name with version, such as `mnist:3.0.1`.
        split: TFDS split, such as `train[:80%]`.
        treatment: How examples were selected and treated, and the features that were named.
        fingerprint: What the examples were; other ones are refused.
    """

    def __init__(self, name: str, split: str, treatment: dict[str, Any], fingerprint: str) -> None:
        self.name, self.split = name, split
        self.treatment, self.fingerprint = treatment, fingerprint

    @staticmethod
    def _get_source_type() -> str:
        return "tfds"

    def load(self, **where: Any) -> Any:
        """Single (input, label) pairs in their fixed order, selected and resized as they were.

        They come as a `tf.data.Dataset`.

        Args:
            **where: `data_dir` and `download`, as for `rk.data.load`.

        Raises:
            DataError: The data are not there, or are not what they were.
        """
        return self.load_split(**where).examples

    def load_split(self, **where: Any) -> "DataSplit":
        """Return the data as a split, with class names, sizes and batches."""
        from reusekit.data import Treatment, load

        said = dict(self.treatment)
        named = {role: said.pop(role, None) for role in ("input", "label")}
        split = load(self.name, self.split, **named, **where, treatment=Treatment(**said))
        _check_fingerprint(split, self.fingerprint)
        return split

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        # Asked about every source that any user of MLflow names; there can be no split before
        # reusekit has been imported.
        data = sys.modules.get("reusekit.data")
        return data is not None and isinstance(raw_source, data.DataSplit)

    @classmethod
    def _resolve(cls, raw_source: "DataSplit") -> "TFDSSource":
        named = {k: v for k, v in raw_source.origin.items() if k != "reader"}
        treatment = raw_source.treatment.decisive() | named
        return cls(raw_source.name, raw_source.split, treatment, raw_source.fingerprint)

    def to_dict(self) -> dict[str, Any]:
        """Return the source as MLflow stores it."""
        return {
            "name": self.name,
            "split": self.split,
            "treatment": self.treatment,
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, source_dict: dict[str, Any]) -> "TFDSSource":
        """Return the source from what MLflow stored."""
        return cls(**source_dict)


class TFDSDataset(Dataset):
    """A split as MLflow records it: its digest is its fingerprint.

    Args:
        split: A loaded split.
        name: What to call it; its TFDS name with version where None.
    """

    def __init__(self, split: "DataSplit", name: str | None = None) -> None:
        self._split = split
        super().__init__(TFDSSource._resolve(split), name or split.name, split.fingerprint)

    def _compute_digest(self) -> str:
        return self._split.fingerprint

    @property
    def schema(self) -> TensorDatasetSchema:
        """Shape and dtype of inputs and labels, the batch axis first."""
        inputs, labels = self._split.examples.element_spec[:2]
        return TensorDatasetSchema(_schema("input", inputs), _schema("label", labels))

    @property
    def profile(self) -> dict[str, Any]:
        """Return the numbers of examples, the part of the data set, and the classes."""
        return {
            "split": self._split.split,
            "examples": self._split.size,
            "task": self._split.task.kind,
            "classes": self._split.task.size,
            "class_names": list(self._split.task.names),
        }

    def to_dict(self) -> dict[str, str]:
        """Return the data set as MLflow stores it.

        Beside MLflow's own schema of tensors, which its pages do not show, the same is there as a
        table of names and types, which they do.
        """
        schema = self.schema
        columns = [
            {"name": spec.name, "type": f"{spec.type} {spec.shape}"}  # type: ignore[union-attr]
            for part in (schema.features, schema.targets)
            for spec in part.inputs
        ]
        return super().to_dict() | {
            "schema": json.dumps(schema.to_dict() | {"mlflow_colspec": columns}),
            "profile": json.dumps(self.profile),
        }


def from_tfds(
    data: "str | DataSplit",
    split: str | None = None,
    *,
    name: str | None = None,
    digest: str | None = None,
    **options: Any,
) -> TFDSDataset:
    """Return a TFDS split as an MLflow data set, for `mlflow.log_input`: `mlflow.data.from_tfds`.

    Args:
        data: A TFDS name, perhaps with configuration and version, or a split that
            `rk.data.load` loaded.
        split: A TFDS split, such as `train[:80%]`, where a name is given.
        name: What to call it in MLflow; its TFDS name with version where None.
        digest: The fingerprint that the data must have; None takes any.
        **options: What else `rk.data.load` takes, where a name is given.

    Raises:
        DataError: The data cannot be read, or have another fingerprint.

    Example:
        >>> import mlflow
        >>> digits = mlflow.data.from_tfds("sklearn_digits", split="test")
        >>> digits.name, digits.profile["examples"]
        ('sklearn_digits:1.0.0', 600)
        >>> digits.source.load().element_spec[0].shape
        TensorShape([8, 8, 1])
    """
    from reusekit.data import DataSplit, load
    from reusekit.errors import DataError

    if isinstance(data, str) and split is not None:
        loaded = load(data, split, **options)
    elif isinstance(data, DataSplit) and split is None and not options:
        loaded = data
    else:
        given = [*(["split"] if split is not None else []), *options]
        raise DataError(
            "Expected a TFDS name and a split, such as from_tfds('mnist', split='train'), or a "
            f"split of rk.data.load alone. Received {data!r}"
            f"{' with ' + ', '.join(given) if given else ' without a split'}."
        )
    if digest is not None:
        _check_fingerprint(loaded, digest)
    return TFDSDataset(loaded, name)


def _schema(name: str, part: Any) -> Schema:
    """Return the tensors of a part of an example; those of a dictionary are named by its keys."""
    tensors = part if isinstance(part, dict) else {name: part}
    return Schema(
        [
            TensorSpec(np.dtype(spec.dtype.as_numpy_dtype), _batched(spec.shape), key)
            for key, spec in tensors.items()
        ]
    )


def _batched(shape: Iterable[int | None]) -> tuple[int, ...]:
    """Return a shape as MLflow writes it: the batch axis first, -1 where a size is open."""
    return (-1, *(-1 if size is None else size for size in shape))


def _check_fingerprint(split: "DataSplit", expected: str) -> None:
    if split.fingerprint != expected:
        from reusekit.errors import DataError

        raise DataError(
            f"{split.name}, {split.split}, is not the data that was asked for: expected the "
            f"fingerprint {expected}, found {split.fingerprint}. What is there now is loaded by "
            f"rk.data.load({split.name!r}, {split.split!r})."
        )
