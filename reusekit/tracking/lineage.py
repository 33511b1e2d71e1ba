"""The data that a registered version was trained and chosen on, as MLflow knows it."""

import json
from dataclasses import dataclass

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from reusekit.tracking.registry import asking


@dataclass(frozen=True)
class RecordedSplit:
    """A TFDS split that a run has read.

    Attributes:
        context: What for: `training`, `validation` or `test`.
        name: Data set and version, such as `sklearn_digits:1.0.0`.
        split: Which part of it.
        class_names: Its classes, in label order; empty where it has none.
    """

    context: str
    name: str
    split: str
    class_names: tuple[str, ...] = ()


def recorded_splits(version: ModelVersion) -> list[RecordedSplit]:
    """Return the TFDS splits that the run of a version has read; none where the run is gone.

    Args:
        version: A registered version.

    Raises:
        TrackingError: The server does not answer.
    """
    if not version.run_id:
        return []
    with asking(f"look up the run of version {version.version} of {version.name}"):
        try:
            inputs = mlflow.get_run(version.run_id).inputs
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return []
    found = []
    for read in inputs.dataset_inputs if inputs else ():
        if read.dataset.source_type == "tfds":
            contexts = [tag.value for tag in read.tags if tag.key == MLFLOW_DATASET_CONTEXT]
            try:
                source = json.loads(read.dataset.source)
                name, split = str(source["name"]), str(source["split"])
                classes = tuple(json.loads(read.dataset.profile or "{}").get("class_names", ()))
            except (ValueError, TypeError, KeyError, AttributeError):  # nothing of reusekit's
                continue
            found += [RecordedSplit(use, name, split, classes) for use in contexts]
    return found
