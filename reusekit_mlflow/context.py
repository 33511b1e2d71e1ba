"""The origin of a run: versions, backend and machine, as tags."""

import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlflow.tracking.context.abstract_context import RunContextProvider

_NVIDIA = Path("/proc/driver/nvidia/gpus")


class ReusekitContext(RunContextProvider):
    """Tags a run with what it was made by; MLflow asks it at the start of each."""

    def in_context(self) -> bool:
        """Return True: every run in an environment with reusekit in it is tagged."""
        return True

    def tags(self) -> dict[str, str]:
        """Return the tags; one of which nothing is known is left out.

        Example:
            >>> import keras
            >>> sorted(ReusekitContext().tags())
            ['reusekit.backend', 'reusekit.keras', 'reusekit.machine', 'reusekit.version']
        """
        found = {
            "reusekit.version": _version("reusekit"),
            "reusekit.keras": _version("keras"),
            "reusekit.backend": _backend(),
            "reusekit.machine": _machine(),
        }
        return {name: value for name, value in found.items() if value is not None}


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # such as Keras where keras-nightly is installed
        return None


def _backend() -> str | None:
    """Return the backend of Keras, loaded or asked for."""
    keras = sys.modules.get("keras")
    return keras.config.backend() if keras else os.environ.get("KERAS_BACKEND")


@cache
def _machine() -> str:
    """Describe processors, memory and accelerators: `16 processors (x86_64), 128 GiB`.

    The accelerators are those that the NVIDIA driver lists: to ask a backend would start it.
    """
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    parts = [f"{os.cpu_count()} processors ({platform.machine()})", f"{memory:.0f} GiB"]
    for listed in sorted(_NVIDIA.glob("*/information")):
        fields = dict(line.split(":", 1) for line in listed.read_text().splitlines() if ":" in line)
        parts.append(fields["Model"].strip())
    return ", ".join(parts)
