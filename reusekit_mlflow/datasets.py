"""Splits as MLflow data sets: which part of what, named by its content, and found again."""

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


class SplitSource(DatasetSource):
    """The source of a split, as `rk.data` reads it: split, treatment and fingerprint.

    What is recorded says which data they were, never where to look for them: a folder or a file is
    named anew by whoever reads it.

    Args:
        name: Data set, with its version where it has one, such as `mnist:3.0.1`.
        split: Part of it, such as `train[:80%]`.
        treatment: How examples were selected and treated, and the features that were named.
        fingerprint: What the examples were; other ones are refused.
        origin: What else the reader was told.
    """

    reader = ""
    """The function of `rk.data` that reads it; empty where none does."""

    def __init__(
        self,
        name: str,
        split: str,
        treatment: dict[str, Any],
        fingerprint: str,
        origin: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.split = name, split
        self.treatment, self.fingerprint = treatment, fingerprint
        self.origin = origin or {}

    @staticmethod
    def _get_source_type() -> str:
        return "memory"

    def load(self, **where: Any) -> Any:
        """Single examples in their fixed order, selected and treated as they were.

        They come as a `tf.data.Dataset`.

        Args:
            **where: As for `load_split`.

        Raises:
            DataError: The data are not there, or are not what they were.
        """
        return self.load_split(**where).examples

    def load_split(self, **where: Any) -> "DataSplit":
        """Return the data as a split, with its task, sizes and batches.

        Args:
            **where: Where the data lie now: `data_dir` and `download` for a data set of TFDS,
                `path` for a folder, `table` for a table.

        Raises:
            DataError: The data are not there, or are not what they were.
        """
        split = self.load_as_it_is(**where)
        _check_fingerprint(split, self.fingerprint)
        return split

    def load_as_it_is(self, **where: Any) -> "DataSplit":
        """Return the data as a split, whatever has become of them.

        Args:
            **where: As for `load_split`.

        Raises:
            DataError: The data are not there, or cannot be read.
        """
        from reusekit.errors import DataError

        try:
            return self._read(**where)
        except TypeError as error:
            raise DataError(
                f"Expected what finds {self.name} again, as rk.data.{self.reader} takes it. "
                f"Received: {', '.join(where) or 'nothing'}."
            ) from error

    def _read(self, **where: Any) -> "DataSplit":
        from reusekit.errors import DataError

        raise DataError(
            f"Expected a data set that can be found again. Received: {self.name}, {self.split}, "
            "which was in a program's memory and is not kept. Make it again as it was made."
        )

    @classmethod
    def _can_resolve(cls, raw_source: Any) -> bool:
        # Asked about every source that any user of MLflow names; there can be no split before
        # reusekit has been imported.
        data = sys.modules.get("reusekit.data")
        if data is None or not isinstance(raw_source, data.DataSplit):
            return False
        return _source_class(raw_source) is cls

    @classmethod
    def _resolve(cls, raw_source: "DataSplit") -> "SplitSource":
        told = {key: value for key, value in raw_source.origin.items() if key != "reader"}
        treatment = raw_source.treatment.decisive()
        if raw_source.treatment.skip_unreadable:  # decides no number, but whether it can be read
            treatment["skip_unreadable"] = True
        return cls(raw_source.name, raw_source.split, treatment, raw_source.fingerprint, told)

    def to_dict(self) -> dict[str, Any]:
        """Return the source as MLflow stores it."""
        found = {
            "name": self.name,
            "split": self.split,
            "treatment": self.treatment,
            "fingerprint": self.fingerprint,
        }
        return found | ({"origin": self.origin} if self.origin else {})

    @classmethod
    def from_dict(cls, source_dict: dict[str, Any]) -> "SplitSource":
        """Return the source from what MLflow stored."""
        return cls(**source_dict)


class TFDSSource(SplitSource):
    """The source of a split of TFDS."""

    reader = "load"

    @staticmethod
    def _get_source_type() -> str:
        return "tfds"

    def _read(self, **where: Any) -> "DataSplit":
        from reusekit.data import Treatment, load

        said = dict(self.treatment)
        # Which features were named stood in the treatment before.
        named = {role: said.pop(role, self.origin.get(role)) for role in ("input", "label")}
        return load(self.name, self.split, **named, **where, treatment=Treatment(**said))


class FolderSource(SplitSource):
    """The source of a part of a folder, which `path` names anew."""

    reader = "from_folder"

    @staticmethod
    def _get_source_type() -> str:
        return "folder"

    def _read(self, **where: Any) -> "DataSplit":
        from reusekit.data import Shares, Treatment, from_folder

        drawn = self.origin.get("shares")
        shares = None if drawn is None else Shares(**drawn)
        treatment = Treatment(**self.treatment)
        return from_folder(**where, split=self.split, shares=shares, treatment=treatment)


class TableSource(SplitSource):
    """The source of a part of a table, which `table` names anew: a file, or a DataFrame."""

    reader = "from_table"

    @staticmethod
    def _get_source_type() -> str:
        return "table"

    def _read(self, **where: Any) -> "DataSplit":
        from reusekit.data import Shares, Treatment, from_table

        told = dict(self.origin)
        drawn, part = told.pop("shares"), told.pop("part")
        return from_table(
            **where,
            **told,
            split=self.split,
            parts=part if drawn is None else Shares(**drawn),
            treatment=Treatment(**self.treatment),
        )


def _source_class(split: "DataSplit") -> type[SplitSource]:
    found = {one.reader: one for one in (TFDSSource, FolderSource, TableSource)}
    return found.get(split.origin.get("reader", ""), SplitSource)


class SplitDataset(Dataset):
    """A split as MLflow records it: its digest is its fingerprint.

    Args:
        split: A loaded split.
        name: What to call it; its own name where None.
    """

    def __init__(self, split: "DataSplit", name: str | None = None) -> None:
        self._split = split
        source = _source_class(split)._resolve(split)
        super().__init__(source, name or split.name, split.fingerprint)

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
        task = self._split.task
        several = {name: list(one.names) for name, one in task.by_name.items()}
        return {
            "split": self._split.split,
            "examples": self._split.size,
            "task": task.kind,
            "classes": task.size,
            "class_names": several or list(task.names),
        }

    def to_dict(self) -> dict[str, str]:
        """Return the data set as MLflow stores it.

        Beside MLflow's own schema of tensors, which its pages do not show, the same is there as a
        table of names and types, which they do.
        """
        schema: Any = self.schema
        columns = [
            {"name": spec.name, "type": f"{spec.type} {spec.shape}"}
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
) -> SplitDataset:
    """Return a split as an MLflow data set, for `mlflow.log_input`: `mlflow.data.from_tfds`.

    Args:
        data: A TFDS name, perhaps with configuration and version, or a split that
            `rk.data` has read.
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
            f"split of rk.data alone. Received: {data!r}"
            f"{' with ' + ', '.join(given) if given else ' without a split'}."
        )
    if digest is not None:
        _check_fingerprint(loaded, digest)
    return SplitDataset(loaded, name)


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
            f"Expected {split.name}, {split.split}, with the fingerprint {expected}. Received: "
            f"{split.fingerprint}. Load what is there now with "
            f"rk.data.{split.origin.get('reader', 'load')}."
        )


# TFDSSource has an entry point, which loads this module. The registry loads it when it is imported
# itself, and so it is only here, where the classes are there.
from mlflow.data.dataset_source_registry import register_dataset_source  # noqa: E402

for _kind in (SplitSource, FolderSource, TableSource):
    register_dataset_source(_kind)  # type: ignore[arg-type]  # it means the class
