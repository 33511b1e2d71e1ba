"""The data that trials are trained and compared on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from reusekit.arguments import checked
from reusekit.data.task import Task, joined
from reusekit.digests import array_digest, digest
from reusekit.errors import ConfigError
from reusekit.features import feed
from reusekit.features.frontiers import Features, frontier
from reusekit.features.source import FeatureSource
from reusekit.graph import Graph, Tensor, ancestors, read
from reusekit.graph.padding_mask import AUTO
from reusekit.search.space import TrialSpec
from reusekit.surgery import extract
from reusekit.surgery.extraction import taps
from reusekit.tasks import TaskRules, rules_of


class ArrayFeatures(FeatureSource):
    """Features in memory, or mapped into it.

    Args:
        values: An array of shape (examples, ...), or a dictionary of such; pooled features have
            shape (examples, channels).
        labels: Shape (examples, ...); of several tasks a dictionary of such, or one array with a
            field of each.
        weights: Shape (examples,); None where all count alike.
    """

    def __init__(self, values: Any, labels: np.ndarray, weights: np.ndarray | None = None) -> None:
        self.values = values
        self._given = (joined(labels),) if weights is None else (joined(labels), weights)
        self.size = len(self._given[0])

    @property
    def _told(self) -> tuple[np.ndarray, ...]:
        return self._given

    def batches(self, batch_size: int, seed: int | None = None) -> tf.data.Dataset:
        """Return batches of (features, labels), and weights; see `feed`."""
        return feed(self.values, self.labels, batch_size, seed, self.weights)

    def arrays(self) -> Any:
        """Return the features."""
        return self.values


def collected(source: FeatureSource) -> np.ndarray:
    """Return pooled features of all examples in order, computed where none are held."""
    features: Any = source.arrays()
    if features is None:
        features = np.concatenate([np.asarray(batch) for batch, *_ in source.batches(256)])
    return features


def stand_ins(batches: Iterable[Any]) -> np.ndarray | None:
    """Return two examples with the mean and the variance that all pooled features have.

    They are summed up in float64, batch by batch, so that no more than a batch is held. Channels
    that never vary are the same in both.

    Args:
        batches: Features of shape (examples, channels) each.

    Returns:
        Shape (2, channels), float64; None for features that are not pooled.

    Example:
        >>> stand_ins([np.array([[1.0, 5.0], [2.0, 5.0]]), np.array([[6.0, 5.0]])]).round(3)
        array([[0.84, 5.  ],
               [5.16, 5.  ]])
    """
    sums: tuple[Any, ...] = 0, 0.0, 0.0, np.inf, -np.inf
    count, mean, squares, low, high = sums
    for batch in batches:
        features = np.asarray(batch, "float64")
        if features.ndim != 2:
            return None
        rows, center = len(features), features.mean(axis=0)
        count += rows
        apart = center - mean
        squares += ((features - center) ** 2).sum(axis=0) + apart**2 * rows * (1 - rows / count)
        mean += apart * rows / count
        low, high = np.minimum(low, features.min(axis=0)), np.maximum(high, features.max(axis=0))
    deviation = np.where(low == high, 0.0, np.sqrt(squares / count))
    mean = np.where(low == high, low, mean)
    return np.stack([mean - deviation, mean + deviation])


def _held(cut: str, features: Any, labels: Any) -> ArrayFeatures:
    """Return pooled features and their labels as arrays.

    Raises:
        ConfigError: They are none, or not of the same examples.
    """
    try:
        features, labels = np.asarray(features), joined(labels)
        sound = features.ndim == 2 and labels.ndim > 0 and len(features) == len(labels) > 0
        received = f"shapes {features.shape} and {labels.shape}"
    except (TypeError, ValueError):
        sound, received = False, "no arrays"
    if not sound:
        raise ConfigError(
            f"Expected features of {cut!r} of shape (examples, channels) and a label for each "
            f"example. Received: {received}."
        )
    return ArrayFeatures(features, labels)


@checked(ConfigError)
@dataclass(frozen=True, eq=False)
class TrialData:
    """Features where each trial begins, with labels, for training and comparison.

    A trial that trains a head alone begins behind the cut, with pooled features; one that trains a
    part of the backbone begins where that part does, with whole maps.

    Attributes:
        train: Features of the training examples by name: (cut, pooling).
        validation: The same of the validation examples.
        task: What is to be told about each example.
        pooling: The pooling of features for a head; None leaves that to the heads.
        model: The backbone, where a part of it is trained.
        plain: Whether trials begin at the model's inputs and run all of the frozen bottom for each
            batch, as they do without reusekit; for comparison.
        mask: The positions that pooling passes over, as for `rk.extract`.
        identity: The facts that tell these features from others, for a search that is resumed.
    """

    train: Mapping[Features, FeatureSource]
    validation: Mapping[Features, FeatureSource]
    task: Task
    pooling: str | None = "avg"
    model: keras.Model | Graph | None = field(default=None, repr=False)
    plain: bool = False
    mask: Any = AUTO
    identity: Mapping[str, Any] | None = None
    _trunks: dict[Any, keras.Model] = field(default_factory=dict, repr=False)

    @classmethod
    @checked(ConfigError)
    def of_arrays(
        cls,
        train: Mapping[str, Any],
        labels: Any,
        validation: Mapping[str, Any],
        validation_labels: Any,
        task: Task,
    ) -> "TrialData":
        """Pooled features by cut, in memory, each of shape (examples, channels)."""
        held: list[Any] = [
            {(cut, "avg"): _held(cut, features, given) for cut, features in named.items()}
            for named, given in ((train, labels), (validation, validation_labels))
        ]
        return cls(held[0], held[1], task)

    def described(self) -> Mapping[str, Any]:
        """Return the identity of these features, or a digest of those in memory."""
        if self.identity is not None:
            return self.identity
        held = [
            [repr(features), array_digest(source.arrays()), array_digest(source.labels)]
            for sources in (self.train, self.validation)
            for features, source in sources.items()
        ]
        return {"features": digest(held)}

    @cached_property
    def rules(self) -> TaskRules:
        """The rules of the task, which heads begin with."""
        rules = rules_of(self.task)
        source = next(iter(self.train.values()), None)
        return rules if source is None else rules.fitted(source.labels)

    @property
    def mixes(self) -> bool:
        """True where training examples are mixed, so that their labels are shares."""
        return any(source.mixes for source in self.train.values())

    @cached_property
    def graph(self) -> Graph:
        """The backbone, read once."""
        return read(self.model, keep_masks=self.mask is not None)

    @checked(ConfigError)
    def begin(self, spec: TrialSpec) -> Features:
        """Return the features that a trial's own model begins with."""
        if self.plain:
            return self.graph.inputs[0].address, None
        return (spec.frozen_up_to, None) if spec.trains_backbone else (spec.cut, self.pooling)

    @checked(ConfigError)
    def is_before(self, address: str, cut: str) -> bool:
        """Return whether a cut depends on what another address names."""
        if self.model is None:
            return False
        one, other = (self.graph.maker[self.graph.names[at]].index for at in (address, cut))
        return one < other

    @checked(ConfigError)
    def placed(self, spec: TrialSpec) -> TrialSpec:
        """Return a specification whose head stands alone where nothing is before it to train."""
        if spec.trains_backbone and self.is_before(spec.frozen_up_to, spec.cut):
            return spec
        return replace(spec, frozen_up_to=spec.cut, adaptation=None)

    @checked(ConfigError)
    def trunk(self, spec: TrialSpec) -> keras.Model | None:
        """Return the part of the backbone in a trial's own model, with its weights.

        It goes from what crosses where the trial begins to the features of its cut. None where the
        trial begins with these.
        """
        features = self.begin(spec)
        key = (features, spec.cut)
        if key not in self._trunks:
            self._trunks[key] = self._trunk(features, spec.cut)
        return self._trunks[key]

    def _trunk(self, features: Features, cut: str) -> keras.Model | None:
        if self.plain:
            return extract(self.graph, cut, self.pooling, self.mask)
        if features == (cut, self.pooling) and (self.pooling or len(self._crossing(cut)) == 1):
            return None
        if self.model is None:
            return None
        tensor, crossing = self.graph.names[cut], self._crossing(features[0])
        return taps(self.graph, tensor, self.pooling, {}, self.mask, fed=crossing)

    def _crossing(self, at: str) -> tuple[Tensor, ...]:
        """Return the crossing tensors of a cut, the mask of its features among them."""
        if self.model is None:
            return ()
        return frontier(self.graph, at, None, self.mask, carries_mask=True).crossing

    @checked(ConfigError)
    def shared(self, spec: TrialSpec) -> tuple[list[str], set[int]]:
        """Return what a trial's own model shares with the rest of the backbone, and so is frozen.

        Returns:
            The addresses of such layers in the trial's own model, and the ids of such weights.
        """
        trunk = self.trunk(spec)
        if trunk is None:
            return [], set()
        frozen = ancestors(self.graph, self._crossing(self.begin(spec)[0]))
        layers = {id(c.operation) for c in frozen if isinstance(c.operation, keras.Layer)}
        weights = {id(variable) for call in frozen for variable in call.variables}
        own = [call for call in read(trunk).calls if not call.is_input]
        return (
            [call.address for call in own if id(call.operation) in layers],
            {id(variable) for call in own for variable in call.variables} & weights,
        )

    @checked(ConfigError)
    def head_mask(self, spec: TrialSpec) -> str | None:
        """Return the name of the trunk's input that masks the features of a head."""
        if self.pooling is not None or self.model is None:
            return self.mask
        mask = frontier(self.graph, spec.cut, None, self.mask, carries_mask=True).mask
        if self.plain or mask is None:
            return self.mask
        number = self._crossing(self.begin(spec)[0]).index(mask)
        trunk: Any = self.trunk(spec)
        return trunk.inputs[number].name

    @checked(ConfigError)
    def frozen(self, spec: TrialSpec) -> keras.Model:
        """Return the rest of the backbone: from its inputs to where the trial begins."""
        at, pooling = self.begin(spec)
        if pooling is not None:
            return extract(self.graph, at, pooling, self.mask)
        crossing = [tensor.address for tensor in self._crossing(at)]
        return extract(self.graph, crossing if len(crossing) > 1 else crossing[0])
