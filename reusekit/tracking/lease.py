"""One process at a time moves an alias, as far as a registry without compare-and-set allows."""

import json
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from uuid import uuid4

import mlflow
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from reusekit.errors import TrackingError
from reusekit.tracking.registry import asking, registered_model

LEASE = "reusekit.lease"
LASTS = 60.0
"""Seconds after which a process that still holds a lease has died."""
SETTLES = 0.5
"""Seconds to wait: longer than another process takes from looking for a lease to taking one."""


@dataclass(frozen=True)
class Lease:
    """The right to move an alias.

    Attributes:
        name: The name in the registry.
        alias: The alias.
        token: Tells this lease from every other.
    """

    name: str
    alias: str
    token: str

    def check(self) -> RegisteredModel:
        """Return the registered model, if this lease is still in force.

        Raises:
            TrackingError: Another process has taken it over.
        """
        model = registered_model(self.name)
        if _read(model, self.alias).get("token") != self.token:
            raise TrackingError(
                f"Another process began to move {self.name}@{self.alias} at the same time. Look "
                "which version has it now, and start again."
            )
        return model


@contextmanager
def lease(name: str, alias: str) -> Iterator[Lease]:
    """Hold the right to move an alias of a name, in a tag of the registered model.

    Two that ask at the same time may both find no lease and write their own. Each then waits for
    longer than any process takes between the two, and reads again: whoever wrote last goes on.
    (Fischer's algorithm, in Lamport 1987, "A fast mutual exclusion algorithm".) Where a network is
    slower than that, `Lease.check` at each step finds out. What a process that died has left ends
    after a minute, by the clock of whoever looks.

    Args:
        name: The name in the registry.
        alias: The alias.

    Yields:
        The lease.

    Raises:
        TrackingError: Another process holds it.
    """
    held = _read(registered_model(name), alias)
    age = abs(time.time() - held.get("since", 0.0))
    if age < LASTS:
        raise TrackingError(
            f"{name}@{alias} is being moved by another process, {held.get('holder')}. Try again in "
            f"{math.ceil(LASTS - age)} seconds."
        )
    own = Lease(name, alias, uuid4().hex)
    holder = f"{os.getpid()} on {platform.node()}"
    value = {"token": own.token, "since": time.time(), "holder": holder}
    client = mlflow.MlflowClient()
    with asking(f"take a lease on {name}@{alias}"):
        try:
            client.set_registered_model_tag(name, _tag(alias), json.dumps(value))
        except MlflowException:  # a database may let only one of two in
            if not _read(registered_model(name), alias):
                raise
    time.sleep(SETTLES)
    own.check()
    try:
        yield own
    finally:
        # Where it cannot be given back, it ends by itself.
        with suppress(TrackingError), asking(f"give the lease on {name}@{alias} back"):
            own.check()
            client.delete_registered_model_tag(name, _tag(alias))


def _tag(alias: str) -> str:
    return f"{LEASE}.{alias}"


def _read(model: RegisteredModel, alias: str) -> dict:
    """Return the lease on an alias as written, or None where none can be read."""
    try:
        written = json.loads(model.tags.get(_tag(alias), "{}"))
        return {**written, "since": float(written["since"])}
    except (ValueError, TypeError, KeyError):
        return {}
