"""Log the parts of a fine-tuned model and register the whole."""

from collections.abc import Mapping
from importlib.metadata import version

import keras
import mlflow
import mlflow.keras
import numpy as np
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.models.model import ModelInfo

from reusekit.backbones.digest import model_digest
from reusekit.errors import TrackingError
from reusekit.graph.keras_internals import all_layers
from reusekit.sharing import count_params


def log_parts(
    bottom: keras.Model,
    top: keras.Model,
    whole: keras.Model,
    examples: np.ndarray,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
) -> ModelInfo:
    """Log bottom, top and whole to the active run, each with signature and parameter counts.

    Args:
        bottom: From input to the cut.
        top: From the cut, head included, to the predictions.
        whole: The two joined.
        examples: A few inputs, shape (batch, ...), from which the signatures are read.
        tags: What all three have in common, such as `reusekit.cut` and `reusekit.source`.
        metrics: Measured on the whole model; attached to it.

    Returns:
        What MLflow knows of the whole.
    """
    at_cut = np.asarray(bottom.predict_on_batch(examples))
    logged_bottom = _log(bottom, "bottom", examples, tags)
    parent = {"reusekit.parent": logged_bottom.model_id}
    _log(top, "top", at_cut, {**tags, **parent})
    logged_whole = _log(whole, "whole", examples, {**tags, **parent})
    mlflow.log_metrics(dict(metrics), model_id=logged_whole.model_id)
    return logged_whole


def register(logged: ModelInfo, name: str, alias: str, tags: Mapping[str, str]) -> ModelVersion:
    """Register a logged model as the next version of a name, and point an alias at it.

    Args:
        logged: What was logged.
        name: The name in the registry.
        alias: What is moved to the new version.
        tags: Set on the version.

    Returns:
        The new version.

    Raises:
        TrackingError: The registry refuses.
    """
    try:
        made = mlflow.register_model(logged.model_uri, name, tags=dict(tags))
        mlflow.MlflowClient().set_registered_model_alias(name, alias, made.version)
    except MlflowException as error:
        raise TrackingError(f"The registry refuses {name}@{alias}: {error.message}") from error
    return made


def _log(model: keras.Model, role: str, inputs: np.ndarray, tags: Mapping[str, str]) -> ModelInfo:
    return mlflow.keras.log_model(
        model,
        name=role,
        signature=infer_signature(inputs, np.asarray(model.predict_on_batch(inputs))),
        # Named here, since MLflow takes 6 to 14 seconds to infer them.
        pip_requirements=requirements(model),
        params={f"parameters.{k}": v for k, v in count_params(model).to_dict().items()},
        tags={
            **tags,
            "reusekit.role": role,
            "reusekit.digest": model_digest(model),
        },
    )


def requirements(model: keras.Model) -> list[str]:
    """What a saved model needs where it is loaded: Keras, its backend, and reusekit if it is tied.

    A model with a `TiedDense` loads once reusekit has been imported; any other needs no reusekit.
    """
    backend = {"torch": "torch", "jax": "jax"}.get(keras.backend.backend(), "tensorflow")
    packages = ["keras", backend, "numpy"]
    if any(type(layer).__module__.startswith("reusekit.") for layer in all_layers(model)):
        packages.append("reusekit")
    return [f"{package}=={version(package)}" for package in packages]
