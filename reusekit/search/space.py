"""What a trial may vary: the cut, the head on it, and how it is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras_tuner

from reusekit.errors import ConfigError

CUT = "cut"


@dataclass(frozen=True)
class SearchSpace:
    """The choices of a cut search.

    Attributes:
        cuts: Addresses to cut at, shallow to deep.
        units: Widths of the hidden layer to try; 0 is no hidden layer.
        dropout: Dropout rates to try.
        learning_rate: Lowest and highest learning rate, searched on a logarithmic scale.
    """

    cuts: Sequence[str]
    units: Sequence[int] = (0, 64)
    dropout: Sequence[float] = (0.0, 0.25, 0.5)
    learning_rate: tuple[float, float] = (1e-3, 1e-1)

    def __post_init__(self) -> None:
        """Check what keras-tuner would pass over."""
        if not self.cuts:
            raise ConfigError("Expected at least one cut to search. Received none.")
        low, high = self.learning_rate
        if not 0 < low <= high:
            raise ConfigError(
                f"Expected learning_rate=(lowest, highest), above 0. Received: {(low, high)}."
            )

    def sample(self, hp: keras_tuner.HyperParameters) -> dict[str, object]:
        """Declare the choices to keras-tuner and return the values of this trial.

        Every trial that keras-tuner does not choose itself uses the first of each list and the
        geometric mean of the learning rates.
        """
        low, high = self.learning_rate
        return {
            CUT: hp.Choice(CUT, list(self.cuts)),
            "units": hp.Choice("units", list(self.units), default=self.units[0]),
            "dropout": hp.Choice("dropout", list(self.dropout), default=self.dropout[0]),
            "learning_rate": hp.Float(
                "learning_rate", low, high, sampling="log", default=(low * high) ** 0.5
            )
            if low < high
            else hp.Fixed("learning_rate", low),
        }
