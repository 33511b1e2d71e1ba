"""What MLflow and its plugins say of this process, for the tags of a run."""

from functools import cache

from mlflow.tracking.context.registry import resolve_tags


@cache
def context_tags() -> dict[str, str]:
    """User, source, versions, machine; asked for once, since asking git each time takes long."""
    return resolve_tags()
