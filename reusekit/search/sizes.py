"""The costs of a trial's whole model: parameters, FLOPs, bytes, latency."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

import keras
from pydantic import PositiveInt

from reusekit.arguments import checked
from reusekit.errors import ConfigError
from reusekit.exports import Figures
from reusekit.graph import Graph, ancestors, keras_internals, read
from reusekit.graph.flops import count_flops
from reusekit.planning.costs import median_seconds
from reusekit.search.config import Limits
from reusekit.search.space import TrialSpec
from reusekit.search.trial_data import TrialData
from reusekit.sharing import count_params
from reusekit.sharing.counts import bytes_of
from reusekit.surgery.certificate import random_inputs

LATENCY_RUNS = 20


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model.

    Attributes:
        parameters: Its parameters, each shared weight once.
        flops: FLOPs of one example, two for each multiply-add.
        bytes: Bytes of its weights.
    """

    parameters: int = 0
    flops: int = 0
    bytes: int = 0

    def __add__(self, other: "Sizes") -> "Sizes":
        return self._with(other, 1)

    def __sub__(self, other: "Sizes") -> "Sizes":
        return self._with(other, -1)

    def _with(self, other: "Sizes", sign: int) -> "Sizes":
        return Sizes(
            self.parameters + sign * other.parameters,
            self.flops + sign * other.flops,
            self.bytes + sign * other.bytes,
        )


def exceeded(
    limits: Limits, sizes: Sizes, latency: float | None = None, file: Figures | None = None
) -> tuple[float, str] | None:
    """Return how many times a model is the limit that it exceeds most, in words too; or None.

    Args:
        limits: The limits.
        sizes: The model's.
        latency: Its seconds, where they were measured.
        file: Its figures as a file, which limits of bytes and latency are about where it has them.
    """
    found: dict[str, float | None] = {**asdict(sizes), "latency": latency}
    of = {}
    if file is not None:
        found |= {"bytes": file.bytes, "latency": file.latency_alone}
        of = {"bytes": " of the file", "latency": " of the file"}
    over = [
        (value / limit, f"{name}{of.get(name, '')}: {value:,.6g}, and the limit is {limit:,.6g}")
        for name, limit in limits
        if limit is not None and (value := found[name]) is not None and value > limit
    ]
    return max(over, default=None)


class SizeCounter:
    """Counts the whole models of trials; what they have in common is counted once.

    Args:
        data: Knows the backbone; features without one count as nothing.
    """

    def __init__(self, data: TrialData) -> None:
        self._data = data
        self._flops = None if data.model is None else count_flops(data.graph).per_call
        self._bottoms: dict[str, Sizes] = {}
        self._trunks: dict[int, Sizes] = {}

    def bottom(self, cut: str) -> Sizes:
        """Return the sizes of everything that the tensor at a cut depends on."""
        if self._flops is None:
            return Sizes()
        if cut not in self._bottoms:
            graph = self._data.graph
            calls = ancestors(graph, [graph.names[cut]])
            variables = {id(v): v for call in calls for v in call.variables}.values()
            self._bottoms[cut] = Sizes(
                sum(math.prod(v.shape) for v in variables),
                sum(self._flops[call.index] for call in calls),
                bytes_of(variables),
            )
        return self._bottoms[cut]

    def whole(self, spec: TrialSpec, model: keras.Model) -> Sizes:
        """Return the whole model of a trial, whose own part is `model`.

        The pooling between the two, one addition for each number at the cut, is not counted, nor is
        LoRA of a trial, which is merged in the end.
        """
        sizes = self.bottom(spec.cut) + self._of(model) - self._trunk(spec)
        return sizes if spec.adaptation is None else sizes - _lora(model)

    def _trunk(self, spec: TrialSpec) -> Sizes:
        trunk = self._data.trunk(spec)
        if trunk is None:
            return Sizes()
        if id(trunk) not in self._trunks:
            self._trunks[id(trunk)] = self._of(trunk)
        return self._trunks[id(trunk)]

    def _of(self, model: keras.Model) -> Sizes:
        graph: Graph = read(model)
        return Sizes(
            count_params(model).total,
            sum(count_flops(graph).per_call),
            bytes_of(model.weights),
        )


def _lora(model: keras.Model) -> Sizes:
    """Return the sizes of LoRA in a model."""
    weights = [
        weight
        for layer in keras_internals.lora_layers(model)
        for weight in keras_internals.lora_weights(layer)
    ]
    return Sizes(sum(math.prod(v.shape) for v in weights), 0, bytes_of(weights))


@checked(ConfigError)
def measure_latency(models: Sequence[keras.Model], runs: PositiveInt = LATENCY_RUNS) -> list[float]:
    """Measure each model's seconds for one example: the median of some runs.

    The models take turns, so that what else the machine does meets all alike. The first run of
    each, which compiles it, does not count. It is what a caller waits for `predict_on_batch` with a
    single example: of small models that is for the most part Keras's own overhead of a call, not
    their arithmetic, of which `Sizes.flops` tells.
    """
    calls = [
        partial(model.predict_on_batch, random_inputs(read(model), batch=1)) for model in models
    ]
    return median_seconds(calls, runs)
