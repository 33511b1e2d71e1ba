"""A registered model as a backbone to cut again."""

import re
from collections.abc import Sequence

import mlflow
from mlflow.entities.model_registry import ModelVersion

from reusekit.backbones import Backbone
from reusekit.backbones.files import as_backbone
from reusekit.errors import BackboneError, TrackingError, nearest
from reusekit.tracking.registry import MODEL_ID, aliased_version, asking, find_version
from reusekit.tracking.stored import Stored

_ADDRESS = re.compile(
    rf"models:/(?:(?P<id>{MODEL_ID})"
    r"|(?P<name>[^/:]+)(?:@(?P<alias>[^/:@]+)|/(?P<number>\d{1,9}|latest)))"
    r"|runs:/(?P<run>[0-9a-f]{32})/(?P<logged>[^/:@]+)"
)


def find_registered(address: str) -> Stored:
    """Find what an address means now; an alias becomes the version that it points at.

    Args:
        address: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/NAME/latest`,
            `models:/MODEL_ID` or `runs:/RUN_ID/NAME`.

    Raises:
        BackboneError: It is no such address.
        TrackingError: There is no such model, alias or version; the message names those there are.
    """
    parts, client = _parts_of(address), mlflow.MlflowClient()
    model_id = parts["id"] or (parts["run"] and _logged_by(parts["run"], parts["logged"]))
    if model_id:
        with asking(f"look up the logged model {model_id}"):
            client.get_logged_model(model_id)
        return Stored.of_logged(model_id, client)
    return Stored.of_version(_version_of(parts), client)


def find_registered_version(address: str) -> ModelVersion:
    """Find the version that an address means now.

    Args:
        address: `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/NAME/latest`.

    Raises:
        BackboneError: It is no such address.
        TrackingError: There is no such model, alias or version; the message names those there are.
    """
    parts = _parts_of(address)
    if parts["name"] is None:
        raise BackboneError(
            f"Expected a version: models:/NAME@ALIAS or models:/NAME/VERSION. Received: {address}."
        )
    return _version_of(parts)


def _parts_of(address: str) -> re.Match[str]:
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise BackboneError(
            "Expected models:/NAME@ALIAS, models:/NAME/VERSION, models:/MODEL_ID or "
            f"runs:/RUN_ID/NAME. Received: {address[:200]!r}."
        )
    return parts


def _version_of(parts: re.Match[str]) -> ModelVersion:
    if parts["alias"] not in (None, "latest"):
        return aliased_version(parts["name"], parts["alias"])
    wanted = parts["alias"] or parts["number"]
    return find_version(parts["name"], None if wanted == "latest" else int(wanted))


def load_registered(
    source: str, weights: str | None = "default", input_shape: Sequence[int | None] | None = None
) -> Backbone:
    """Load a model that MLflow holds, whole as it is, head included.

    Args:
        source: See `find_registered`.
        weights: `default` for its own, None for random ones.
        input_shape: Shape of one example, to be sure of it; None for whatever the model takes.

    Returns:
        The backbone. Its source is the version that an alias points at now, its `parent` the
        logged model, so that what is made from it can name it, and its `head` what its tags say.

    Raises:
        BackboneError: It is no Keras model, asks for code to be run, or takes another shape.
        TrackingError: There is no such model, or a part of it is gone or altered.
    """
    stored = find_registered(source)
    model = stored.load(mlflow.MlflowClient())
    return as_backbone(model, stored.named, weights, input_shape, stored.model_id, stored.head)


def _logged_by(run_id: str, name: str) -> str:
    """Return the model of a name that a run has logged last."""
    client = mlflow.MlflowClient()
    with asking(f"look up the run {run_id}"):
        outputs = client.get_run(run_id).outputs
        made = [
            client.get_logged_model(one.model_id)
            for one in (outputs.model_outputs if outputs else ())
        ]
    named = [model for model in made if model.name == name]
    if not named:
        choices = nearest(name, dict.fromkeys(model.name for model in made))
        raise TrackingError(
            f"Expected a model that the run {run_id} has logged. Received: {name!r}. "
            f"{choices or 'Name another run, since it has logged none.'}"
        )
    return max(named, key=lambda model: model.creation_timestamp).model_id
