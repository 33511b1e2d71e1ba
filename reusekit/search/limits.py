"""Limits on what a model may cost, and its latency."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter

import keras
import numpy as np
from pydantic import PositiveFloat, PositiveInt

from reusekit.arguments import checked
from reusekit.errors import ConfigError
from reusekit.graph import read
from reusekit.search.sizes import Sizes
from reusekit.surgery.certificate import random_inputs

LATENCY_RUNS = 20


@checked(ConfigError)
@dataclass(frozen=True)
class Limits:
    """The limits of a trial's whole model; None is no limit.

    Attributes:
        parameters: Parameters, each shared weight once.
        flops: FLOPs of one example, two for each multiply-add.
        latency: Seconds that the backbone takes up to the cut for one example, on this machine; see
            `measure_latency`.
    """

    parameters: PositiveInt | None = None
    flops: PositiveFloat | None = None
    latency: PositiveFloat | None = None

    @checked(ConfigError)
    def exceeded(self, sizes: Sizes, latency: float | None = None) -> str | None:
        """Return the limit that a model exceeds and by how much, or None."""
        found = {"parameters": sizes.parameters, "flops": sizes.flops, "latency": latency}
        for name, limit in asdict(self).items():
            if limit is not None and found[name] is not None and found[name] > limit:
                return f"{name}: {found[name]:,.6g}, and the limit is {limit:,.6g}"
        return None


@checked(ConfigError)
def measure_latency(models: Sequence[keras.Model], runs: PositiveInt = LATENCY_RUNS) -> list[float]:
    """Measure each model's seconds for one example: the median of some runs.

    The models take turns, so that what else the machine does meets all alike. The first run of
    each, which compiles it, does not count. It is what a caller waits for `predict_on_batch` with a
    single example: of small models that is for the most part Keras's own overhead of a call, not
    their arithmetic, of which `Sizes.flops` tells.
    """
    inputs = [random_inputs(read(model), batch=1) for model in models]
    seconds: list[list[float]] = [[] for _ in models]
    for _ in range(runs + 1):
        for model, x, found in zip(models, inputs, seconds, strict=True):
            began = perf_counter()
            model.predict_on_batch(x)
            found.append(perf_counter() - began)
    return [float(np.median(found[1:])) for found in seconds]
