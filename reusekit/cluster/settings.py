"""The settings of a cluster: where it is, and what each worker has of it."""

import re
from typing import Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from reusekit.arguments import Settings
from reusekit.errors import ConfigError

_ADDRESS = re.compile(r"local|auto|(ray://)?(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):\d{1,5}")


class ClusterSettings(Settings):
    """The workers that features and trials are computed on.

    Example:
        >>> ClusterSettings(address="ray://gpu-box:10001", gpus=1).retries
        3
        >>> ClusterSettings(address="gpu-box")
        Traceback (most recent call last):
        reusekit.errors.ConfigError: Expected address to be local, auto, HOST:PORT or
        ray://HOST:PORT. Received: 'gpu-box'.
    """

    address: str | None = Field(
        None,
        description="Ray cluster: local starts one on this machine, auto finds the one that this "
        "machine is in, HOST:PORT or ray://HOST:PORT is another; null works in this process.",
    )
    workers: PositiveInt | None = Field(
        None, description="Workers at most; null for as many as there is room for."
    )
    cpus: PositiveInt = Field(
        1, description="CPUs of each worker, which are the threads that TensorFlow has there."
    )
    gpus: NonNegativeFloat = Field(
        0.0, description="GPUs of each worker; 0 keeps off them, 0.5 has two workers share one."
    )
    retries: NonNegativeInt = Field(
        3,
        description="Times that work is given to another worker since the one before, or its node, "
        "died.",
    )
    wait: PositiveInt = Field(
        60, description="Seconds to wait for the cluster to answer, and for a node to come back."
    )

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            raise ConfigError(
                "Expected address to be local, auto, HOST:PORT or ray://HOST:PORT. Received: "
                f"{self.address!r}."
            )
        return self

    @model_validator(mode="after")
    def _whole_or_shared(self) -> Self:
        if self.gpus > 1 and self.gpus % 1:
            raise ConfigError(
                "Expected gpus to be whole GPUs, or a share of one. Received: "
                f"{self.gpus:g}. Give {self.gpus // 1:g}, or {self.gpus // 1 + 1:g}."
            )
        return self
