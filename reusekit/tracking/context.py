"""MLflow's facts about this process, for the tags of a run."""

from functools import cache

from mlflow.tracking.context.registry import resolve_tags


@cache
def context_tags() -> dict[str, str]:
    """Return user, source, versions and machine, asked for once since git is slow."""
    return resolve_tags()
