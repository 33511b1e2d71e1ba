"""A registered model as a backbone to cut again."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import mlflow.artifacts
import mlflow.keras
from mlflow.exceptions import MlflowException

from reusekit.backbones import Backbone
from reusekit.backbones.files import as_backbone
from reusekit.errors import BackboneError, ReusekitError
from reusekit.tracking.linked import SCHEME, logged_model_id
from reusekit.tracking.registry import asking, find_version
from reusekit_mlflow.artifacts import LinkedModelRepository

_ADDRESS = re.compile(
    r"models:/(?:(?P<id>m-[0-9a-f]{32})|(?P<name>[^/:@]+)[/@](?P<wanted>[^/:@]+))"
)


@dataclass(frozen=True)
class Registered:
    """A model that MLflow holds.

    Attributes:
        uri: Its exact address: `models:/NAME/VERSION`, or `models:/MODEL_ID` where it is logged and
            not registered.
        model_id: The logged model.
    """

    uri: str
    model_id: str | None


def find_registered(address: str) -> Registered:
    """Find what an address means now; an alias becomes the version that it points at.

    Args:
        address: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/MODEL_ID`.

    Raises:
        BackboneError: It is no such address.
        TrackingError: There is no such model, alias or version; the message names those there are.
    """
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise BackboneError(
            "Expected models:/NAME@ALIAS, models:/NAME/VERSION or models:/MODEL_ID, received "
            f"{address!r}."
        )
    if parts["id"]:
        with asking(f"look up the logged model {parts['id']}"):
            return Registered(address, mlflow.MlflowClient().get_logged_model(parts["id"]).model_id)
    version = find_version(parts["name"], parts["wanted"])
    return Registered(f"models:/{version.name}/{version.version}", logged_model_id(version))


def load_registered(
    source: str, weights: str | None = "default", input_shape: Sequence[int | None] | None = None
) -> Backbone:
    """Load a model that MLflow holds, whole as it is, head included.

    Args:
        source: See `find_registered`.
        weights: `default` for its own, None for random ones.
        input_shape: Shape of one example, to be sure of it; None for whatever the model takes.

    Returns:
        The backbone. Its source is the version that an alias points at now, and its `parent` the
        logged model, so that what is made from it can name it.

    Raises:
        BackboneError: It is no Keras model, asks for code to be run, or takes another shape.
        TrackingError: There is no such model, or a part of it is gone or altered.
    """
    found = find_registered(source)
    try:
        with TemporaryDirectory() as scratch:
            folder = _fetch(found, scratch)
            model = mlflow.keras.load_model(folder, load_model_kwargs={"compile": False})
    except ReusekitError:
        raise
    except (MlflowException, ValueError, TypeError, OSError, KeyError) as error:
        cause = " ".join(str(error).split())
        raise BackboneError(f"{found.uri} cannot be loaded: {cause[:500]}") from error
    return as_backbone(model, found.uri, weights, input_shape, found.model_id)


def _fetch(found: Registered, scratch: str) -> str:
    if found.model_id is None:  # registered by other means than a logged model
        return mlflow.artifacts.download_artifacts(artifact_uri=found.uri, dst_path=scratch)
    return LinkedModelRepository(f"{SCHEME}:/{found.model_id}").download_artifacts("", scratch)
