"""The costs of a model: parameters, FLOPs, bytes, and seconds for one example here."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import keras

from reusekit.graph import read
from reusekit.graph.flops import count_flops
from reusekit.search.sizes import LATENCY_RUNS, measure_latency
from reusekit.sharing import ParameterCounts, count_params
from reusekit.sharing.counts import bytes_of


@dataclass(frozen=True)
class Ledger:
    """The costs of a model.

    Attributes:
        parameters: Its parameters, each shared weight once.
        flops: FLOPs of one example, two for each multiply-add.
        bytes: Bytes of its weights in memory.
        latency: Seconds for one example.
        conditions: The conditions under which the latency was measured.
    """

    parameters: ParameterCounts
    flops: int
    bytes: int
    latency: float
    conditions: str

    def numbers(self) -> dict[str, float]:
        """Return all numbers by the names that they have in MLflow.

        Example:
            >>> counts = ParameterCounts(total=3, trainable=2, frozen=1, state=0, tied=0)
            >>> Ledger(counts, 4, 12, 0.5, "on a desk").numbers()["parameters.frozen"]
            1
        """
        counts = {f"parameters.{name}": n for name, n in self.parameters.to_dict().items()}
        return counts | {"flops": self.flops, "bytes": self.bytes, "latency": self.latency}

    def params(self) -> dict[str, str]:
        """Return the ledger as MLflow's parameters, with the way the latency was measured."""
        numbers = {
            name: str(value) if isinstance(value, int) else f"{value:.6g}"
            for name, value in self.numbers().items()
        }
        return numbers | {"latency.conditions": self.conditions}


def take_ledgers(models: Sequence[keras.Model]) -> list[Ledger]:
    """Count and time models; they take turns, so that what else the machine does meets all alike.

    Args:
        models: Built functional models.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> (ledger,) = take_ledgers([model])
        >>> ledger.parameters.total, ledger.flops, ledger.bytes
        (15, 27, 60)
    """
    conditions = (
        f"median of {LATENCY_RUNS} runs of predict_on_batch with one example; Keras "
        f"{keras.__version__} on {keras.backend.backend()}, {platform.machine()}, "
        f"{os.cpu_count()} processors"
    )
    return [
        Ledger(
            count_params(model),
            count_flops(read(model)).total,
            bytes_of(model.weights),
            latency,
            conditions,
        )
        for model, latency in zip(models, measure_latency(models), strict=True)
    ]
