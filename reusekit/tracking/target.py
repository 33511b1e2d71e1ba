"""The target of operations: an experiment on a server, its runs known by keys."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from reusekit.errors import TrackingError
from reusekit.tracking.names import KEY


@dataclass(frozen=True)
class Address:
    """The address of an experiment, for this process or a later one.

    Attributes:
        uri: Of the server or database.
        experiment: Name of the experiment, which is made where it does not exist.
        run_id: A run that is there already; its experiment is the one, whatever the name.
    """

    uri: str
    experiment: str | None = None
    run_id: str | None = None


class Target:
    """An experiment on a tracking server.

    Args:
        address: Which experiment where.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.client = MlflowClient(tracking_uri=address.uri)
        self._run_ids: dict[str, str] = {}

    @cached_property
    def experiment_id(self) -> str:
        """The experiment's id; the experiment is made where there is none of that name.

        Raises:
            TrackingError: It has been deleted.
        """
        if self.address.run_id is not None:
            return self.client.get_run(self.address.run_id).info.experiment_id
        name: Any = self.address.experiment
        found: Any = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was quicker
                    raise
                found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"The experiment {name!r} cannot be used: it has been deleted. Restore it, or name "
                "another with --tracking.experiment."
            )
        return found.experiment_id

    def know(self, key: str, run_id: str) -> None:
        """Remember which run has a key."""
        self._run_ids[key] = run_id

    def known(self, key: str) -> str | None:
        """Return the id of the run of a key, if this process has sent or found it."""
        return self._run_ids.get(key)

    def find(self, key: str) -> str | None:
        """Return the id of the run of a key; asks the server, and gives None where it has none."""
        if key not in self._run_ids:
            found = self.client.search_runs(
                [self.experiment_id], f"tags.`{KEY}` = '{key}'", ViewType.ALL, max_results=1
            )
            if not found:
                return None
            self.know(key, found[0].info.run_id)
        return self._run_ids[key]

    def run_id(self, key: str) -> str:
        """Return the id of the run of a key.

        Raises:
            TrackingError: The server has no such run.
        """
        found = self.find(key)
        if found is None:
            raise TrackingError(f"There is no run with the tag {KEY} = {key}.")
        return found
