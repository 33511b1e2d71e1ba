"""The choices of a trial: the cut, what is frozen, the head, and its training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import keras
import keras_tuner
from annotated_types import MinLen
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from reusekit.arguments import Choices, Distinct, Rate, checked
from reusekit.errors import ConfigError, nearest
from reusekit.search.spec import TrialSpec
from reusekit.training.heads import Classifier, Head

CUT, FREEZE = "cut", "freeze"

BatchNorm = Literal["frozen", "train"]


@checked(ConfigError)
@dataclass(frozen=True)
class SearchSpace:
    """The choices of a cut search. Of each list the first is what trials use by default.

    Attributes:
        cuts: Addresses to cut at, shallow to deep.
        freeze: Addresses up to which the backbone may be frozen. Where one lies before the trial's
            cut, the part between the two is trained with the head; else everything before the cut
            is frozen, as it always is where there are none.
        heads: Heads to try, by name; None tries classifiers of `units` and `dropout`.
        units: Widths of the classifier's hidden layer; 0 is no hidden layer.
        dropout: Dropout rates of the classifier.
        optimizers: Names of Keras optimizers.
        learning_rate: Lowest and highest learning rate, searched on a logarithmic scale.
        learning_rates: Learning rates to choose from instead.
        batch_sizes: Examples a step.
        standardize: Whether heads learn the features' mean and variance first and remove them, so
            that one learning rate suits cuts of any scale. Where a part of the backbone is trained
            they do not.
        batch_norm: What BatchNormalization does in a part of the backbone that is trained: "frozen"
            keeps its statistics and its weights, "train" trains it as Keras does.

    Example:
        >>> space = SearchSpace(cuts=["block3_out", "block5_out"], units=[0, 64])
        >>> hp = keras_tuner.HyperParameters()
        >>> space.sample(hp).cut, [choice.name for choice in hp.space]
        ('block3_out', ['cut', 'units', 'dropout', 'optimizer', 'learning_rate', 'batch_size'])
    """

    cuts: Choices[str]
    freeze: Distinct[str] = ()
    heads: Annotated[Mapping[str, Head], MinLen(1)] | None = None
    units: Choices[NonNegativeInt] = (0, 64)
    dropout: Choices[Rate] = (0.0, 0.25, 0.5)
    optimizers: Choices[str] = ("adam",)
    learning_rate: tuple[PositiveFloat, PositiveFloat] = (1e-3, 1e-1)
    learning_rates: Choices[PositiveFloat] | None = None
    batch_sizes: Choices[PositiveInt] = (32,)
    standardize: bool = True
    batch_norm: BatchNorm = "frozen"

    def __post_init__(self) -> None:
        """Check what keras-tuner would pass over."""
        low, high = self.learning_rate
        if low > high:
            raise ConfigError(f"Expected learning_rate=(lowest, highest). Received: {(low, high)}.")
        for name in self.optimizers:
            try:
                keras.optimizers.get(name)
            except ValueError as error:
                known = ("adam", "adamw", "sgd", "rmsprop", "nadam", "lion", "adagrad", "lamb")
                raise ConfigError(
                    f"Expected the name of a Keras optimizer. Received: {name!r}. "
                    f"{nearest(name, known)}"
                ) from error

    @checked(ConfigError)
    def sample(self, hp: keras_tuner.HyperParameters) -> TrialSpec:
        """Declare the choices to keras-tuner and return the specification of this trial.

        Every trial that keras-tuner does not choose itself uses the first of each list and the
        geometric mean of the learning rates.
        """
        cut = freeze = hp.Choice(CUT, list(self.cuts), default=self.cuts[0])
        if self.freeze:
            freeze = hp.Choice(FREEZE, list(self.freeze), default=self.freeze[0])
        values: dict[str, Any] = {}
        if self.heads is not None:
            values["head"] = hp.Choice("head", list(self.heads))
        else:
            values["units"] = hp.Choice("units", list(self.units), default=self.units[0])
            values["dropout"] = hp.Choice("dropout", list(self.dropout), default=self.dropout[0])
        values["optimizer"] = hp.Choice("optimizer", list(self.optimizers))
        values["learning_rate"] = self._rate(hp)
        values["batch_size"] = hp.Choice(
            "batch_size", list(self.batch_sizes), default=self.batch_sizes[0]
        )
        return TrialSpec(cut, freeze, **values)

    def _rate(self, hp: keras_tuner.HyperParameters) -> float:
        low, high = self.learning_rate
        if self.learning_rates is not None:
            rates = list(self.learning_rates)
            return hp.Choice("learning_rate", rates, default=rates[0])
        if low == high:
            return hp.Fixed("learning_rate", low)
        return hp.Float("learning_rate", low, high, sampling="log", default=(low * high) ** 0.5)

    @checked(ConfigError)
    def head(self, spec: TrialSpec, classes: int, standardize: Any = None) -> Head:
        """Return the head of a trial, not built yet.

        Args:
            spec: The trial.
            classes: How many classes there are, for a classifier.
            standardize: Features whose mean and variance a classifier removes.
        """
        if self.heads is not None:
            return self.heads[spec.head]  # type: ignore[index]
        return Classifier(classes, units=spec.units, dropout=spec.dropout, standardize=standardize)
