"""The hypermodel of a cut search, which builds and trains the model of each trial."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from time import perf_counter
from typing import Any

import keras
import keras_tuner
import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from reusekit.arguments import checked
from reusekit.errors import ConfigError
from reusekit.features.frontiers import Features
from reusekit.graph import read
from reusekit.planning.rule import VALIDATION_BATCH
from reusekit.search.config import SearchConfig
from reusekit.search.objective import BY_LOSS, objective_of, with_metric
from reusekit.search.sizes import SizeCounter
from reusekit.search.space import SearchSpace, TrialSpec
from reusekit.search.trial_data import TrialData, stand_ins
from reusekit.surgery import clone
from reusekit.tasks import TaskRules
from reusekit.training import adapt, attach, freeze
from reusekit.training.adaptation import AdaptedPart
from reusekit.training.fit import Fit, Stopping, best_epoch
from reusekit.training.heads import Head

_FIT_OPTIONS = ("epochs", "initial_epoch", "callbacks", "class_weight", "verbose")


class SearchArgumentError(ConfigError, keras_tuner.errors.FatalError):
    """An argument of a tuner's `search` that would be dropped; it ends the search, not a trial."""


class CutHyperModel(keras_tuner.HyperModel):
    """Builds and trains what a trial asks for: a head, perhaps with the top of the backbone.

    The part before is frozen and ran before the search, so building is cheap. Works unchanged with
    `RandomSearch`, `GridSearch`, `BayesianOptimization` and `Hyperband` of keras-tuner; the
    objective, by which a trial is stopped, is the tuner's: a metric of the heads, or the one that
    the settings name as theirs.

    Args:
        data: Features where trials begin; of several backbones those of each by its name.
        space: The choices of trials.
        config: The settings: `epochs`, `patience`, `objective` and `seed` are heeded here, the
            others by a `CutTuner`.

    Example:
        >>> features = {"shallow": np.zeros((8, 4)), "deep": np.ones((8, 6))}
        >>> labels = np.arange(8) % 2
        >>> from reusekit.data.task import Task
        >>> task = Task("classification", ("even", "odd"))
        >>> data = TrialData.of_arrays(features, labels, features, labels, task)
        >>> hypermodel = CutHyperModel(data, SearchSpace(cuts=["shallow", "deep"]))
        >>> hp = keras_tuner.HyperParameters()
        >>> hypermodel.build(hp).input_shape
        (None, 4)
    """

    @checked(ConfigError)
    def __init__(
        self,
        data: TrialData | Mapping[str, TrialData],
        space: SearchSpace,
        config: SearchConfig = SearchConfig(),
    ) -> None:
        super().__init__(name="cut_search")
        self.data, self.space, self.config = data, space, config
        self._stand_ins: dict[Any, np.ndarray | None] = {}  # for the features where trials begin

    @property
    def by_backbone(self) -> Mapping[str | None, TrialData]:
        """The features by the names of backbones; None is that of an only one."""
        data: Any = self.data
        return {None: data} if isinstance(data, TrialData) else data

    @checked(ConfigError)
    def data_of(self, spec: TrialSpec) -> TrialData:
        """Return the features of a trial's backbone."""
        return self.by_backbone[spec.backbone]

    @checked(ConfigError)
    def begin(self, spec: TrialSpec) -> Features | tuple[str, str, str | None]:
        """Return where a trial begins: features, of several backbones with the name of its own."""
        features = self.data_of(spec).begin(spec)
        return features if spec.backbone is None else (spec.backbone, *features)

    @cached_property
    def counters(self) -> Mapping[str | None, SizeCounter]:
        """The counters of sizes by the names of backbones."""
        return {name: SizeCounter(data) for name, data in self.by_backbone.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Return what it is made of, without what was built and counted on the way."""
        state = {name: value for name, value in vars(self).items() if name != "counters"}
        bare = {name: replace(data, _trunks={}) for name, data in self.by_backbone.items()}
        return state | {"data": bare.get(None, bare)}

    @property
    def rules(self) -> TaskRules:
        """The rules of the task, which heads begin with."""
        return next(iter(self.by_backbone.values())).rules

    @property
    def joint(self) -> bool:
        """Return whether trials can be trained together: on TensorFlow, unless `plain`."""
        plain = any(data.plain for data in self.by_backbone.values())
        return keras.backend.backend() == "tensorflow" and not plain

    @checked(ConfigError)
    def spec(self, hp: keras_tuner.HyperParameters) -> TrialSpec:
        """Read a specification from hyperparameters, declaring them to keras-tuner."""
        spec = self.space.sample(hp)
        return self.data_of(spec).placed(spec)

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Return the untrained model of a trial, compiled; see `build_for`."""
        return self.build_for(self.spec(hp))

    @checked(ConfigError)
    def build_for(self, spec: TrialSpec) -> keras.Model:
        """Return the untrained model of a trial, compiled: from where it begins to the end."""
        data = self.data_of(spec)
        trunk = data.trunk(spec)
        head = self._head(spec, trunk)
        if trunk is None:
            begins = data.train[data.begin(spec)].spec
            keras.utils.set_random_seed(self.config.seed)
            model = head.build_like(keras.tree.map_structure(_placeholder, begins))
        else:
            own = clone(trunk, weights="copy")
            if spec.adaptation is not None:
                keras.utils.set_random_seed(self.config.seed)
                self._adapt(spec.adaptation, spec, trunk, own)
            keras.utils.set_random_seed(self.config.seed)
            model = attach(own, head, data.head_mask(spec))
            if spec.adaptation is None:
                self._freeze(spec, trunk, own, model)
        rules = data.rules
        objective = self.config.objective or rules.objective
        args = with_metric(head, objective, rules, data.mixes)
        model.compile(self._optimizer(spec), **args)
        return model

    def _freeze(
        self, spec: TrialSpec, trunk: keras.Model, own: keras.Model, model: keras.Model
    ) -> None:
        """Freeze what a trial does not train: `own` in `model` is its copy of `trunk`."""
        data = self.data_of(spec)
        if data.plain:
            freeze(model, up_to=spec.frozen_up_to)
        else:
            shared, weights = data.shared(spec)
            freeze(model, up_to=None, layers=shared or None)
            for old, new in zip(trunk.variables, own.variables, strict=True):
                if id(old) in weights:
                    new.trainable = False
        if spec.trains_backbone and self.space.batch_norm == "frozen":
            for layer in batch_normalizations(model):
                layer.trainable = False

    def _adapt(
        self, adaptation: str, spec: TrialSpec, trunk: keras.Model, own: keras.Model
    ) -> None:
        """Freeze a trial's copy of `trunk` but for the few weights of its adaptation."""
        targets = self.space.targets_of(adaptation)
        data = self.data_of(spec)
        if data.plain:
            adapt(own, adaptation, from_=spec.frozen_up_to, targets=targets)
            return
        fixed, weights = data.shared(spec)
        tied = (
            call.address for call in read(trunk).calls if weights & set(map(id, call.variables))
        )
        layers = list(dict.fromkeys([*fixed, *tied]))
        adapt(own, adaptation, targets=targets, layers=layers or None)

    def _head(self, spec: TrialSpec, trunk: keras.Model | None) -> Head:
        wanted = self.space.standardize and not spec.trains_backbone and self.space.heads is None
        return self.space.head(
            spec, self.data_of(spec).rules, self._to_standardize(spec, trunk) if wanted else None
        )

    def _to_standardize(self, spec: TrialSpec, trunk: keras.Model | None) -> np.ndarray | None:
        """Return examples with the mean and the variance of the features that a head takes."""
        data = self.data_of(spec)
        source = data.train[data.begin(spec)]
        batches = (features for features, *_ in source.batches(VALIDATION_BATCH))
        if trunk is not None:
            return stand_ins(map(trunk.predict_on_batch, batches))
        if keras.tree.is_nested(source.spec):
            return None  # several tensors, which the head takes or refuses
        begins = self.begin(spec)
        if begins not in self._stand_ins:
            self._stand_ins[begins] = stand_ins(batches)
        return self._stand_ins[begins]

    def _optimizer(self, spec: TrialSpec) -> keras.optimizers.Optimizer:
        config = {"learning_rate": spec.learning_rate}
        return keras.optimizers.get({"class_name": spec.optimizer, "config": config})

    @checked(ConfigError)
    def stopping(self, objective: keras_tuner.Objective) -> list[keras.callbacks.Callback]:
        """Return the callback that ends a trial without gains and restores its best epoch."""
        return [Stopping(objective.name, self.config.patience, objective.direction)]

    @checked(ConfigError)
    def batches(self, spec: TrialSpec) -> tuple[Any, Any]:
        """Return the batches that a trial is trained on and those it is validated on."""
        data = self.data_of(spec)
        at = data.begin(spec)
        return (
            data.train[at].batches(spec.batch_size, self.config.seed),
            data.validation[at].batches(VALIDATION_BATCH),
        )

    @checked(ConfigError)
    def train(
        self,
        spec: TrialSpec,
        model: keras.Model,
        objective: keras_tuner.Objective = BY_LOSS,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        epochs: PositiveInt | None = None,
        initial_epoch: NonNegativeInt = 0,
        **options: Any,
    ) -> Fit:
        """Train one trial's model alone with Keras's `fit`, and leave it at its best epoch.

        Args:
            spec: The trial.
            model: Its model, as `build` makes it.
            objective: The metric by which it is stopped and its best epoch is kept.
            callbacks: Keras callbacks that watch.
            epochs: The epoch to end at, where a tuner sets it; else as configured.
            initial_epoch: The epoch to begin at, where a tuner goes on with a trial.
            **options: Further arguments of Keras's `fit`, such as `class_weight`.

        Raises:
            ConfigError: The model reports no such objective.
            TrainingError: The validation loss or the objective was never finite.
        """
        if not model.compiled:
            raise ConfigError(
                "Expected a compiled model, as build_for makes it. Received: "
                f"{model.name!r}, which is not compiled."
            )
        train, validation = self.batches(spec)
        began = perf_counter()
        history = model.fit(
            train,
            validation_data=validation,
            epochs=epochs or self.config.epochs,
            initial_epoch=initial_epoch,
            shuffle=False,  # the batches come shuffled
            callbacks=[*self.stopping(objective), *callbacks],
            **{"verbose": 0, **options},
        ).history
        best = best_epoch(history, objective.name, objective.direction == "max")
        return Fit(history, best, perf_counter() - began)

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        """Train as keras-tuner's own tuners ask for it; returns the metrics of the best epoch.

        Args:
            hp: The trial's choices.
            model: Their model, as `build` makes it.
            *args: Nothing: the examples are those of the hypermodel's data.
            **kwargs: `callbacks`, `epochs`, `initial_epoch`, `class_weight` and `verbose`, as
                Keras's `fit` takes them.

        Raises:
            SearchArgumentError: Examples or weights of examples, or another option; the tuner's
                search ends there.
        """
        refused = [f"{len(args)} by position"] * bool(args)
        refused += [n for n, given in kwargs.items() if n not in _FIT_OPTIONS and given is not None]
        if refused:
            raise SearchArgumentError(
                f"Expected search({', '.join(f'{name}=' for name in _FIT_OPTIONS)}) at most, since "
                "trials are trained and compared on the examples that the search was made with. "
                f"Received: {', '.join(refused)}."
            )
        spec = self.spec(hp)
        data = self.data_of(spec)
        source = data.train[data.begin(spec)]
        if kwargs.get("class_weight") is not None and source.weights is not None:
            raise SearchArgumentError(
                "Expected no class_weight for examples that have weights already. Received: "
                f"{kwargs['class_weight']!r}."
            )
        if data.task.parts and kwargs.get("class_weight") is not None:
            raise SearchArgumentError(
                "Expected no class_weight for several tasks at once. Received: "
                f"{kwargs['class_weight']!r}."
            )
        if source.mixes and kwargs.get("class_weight") is not None:
            raise SearchArgumentError(
                "Expected no class_weight for examples that are mixed; train.balanced() gives them "
                f"weights that are mixed too. Received: {kwargs['class_weight']!r}."
            )
        options = {name: kwargs[name] for name in ("class_weight", "verbose") if name in kwargs}
        callbacks = kwargs.get("callbacks") or ()
        fit = self.train(
            spec,
            model,
            objective_of(callbacks),
            callbacks,
            epochs=kwargs.get("epochs"),
            initial_epoch=kwargs.get("initial_epoch", 0),
            **options,
        )
        return fit.metrics


def check_adaptations(space: SearchSpace, data: TrialData) -> None:
    """Raise `TrainingError` for an adaptation that some trial of a space could not be given."""
    for cut in space.cuts:
        for up_to, adaptation in space.parts(cut):
            spec = data.placed(TrialSpec(cut, up_to, adaptation=adaptation))
            if spec.adaptation is not None:
                targets = space.targets_of(spec.adaptation)
                AdaptedPart(data.graph, spec.adaptation, spec.frozen_up_to, cut, targets)


def batch_normalizations(model: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    """Yield the batch normalizations of a model, those of nested models among them."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from batch_normalizations(layer)


def _placeholder(spec: Any) -> keras.KerasTensor:
    return keras.KerasTensor(tuple(spec.shape), spec.dtype.name)
