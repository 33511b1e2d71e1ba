"""The settings of a search: everything that decides what is tried, how, and on what resources."""

from typing import Any, Literal, Self, TypedDict

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from reusekit.arguments import Seed, Settings
from reusekit.errors import ConfigError, nearest
from reusekit.exports.formats import WRITTEN
from reusekit.features import Padding
from reusekit.graph.padding_mask import AUTO
from reusekit.workers import Workers

SHIPPED = 3
"""The number of trials, the best ones, that are exported at the end where `ship` is set."""


class Limits(Settings):
    """Limits on a trial's whole model; cuts and trials beyond them are left out.

    Example:
        >>> Limits(flops=10**9)
        Limits(parameters=None, flops=1000000000.0, latency=None, bytes=None)
    """

    parameters: PositiveInt | None = Field(
        None, description="Parameters, each shared weight once; null: any."
    )
    flops: PositiveFloat | None = Field(
        None, description="FLOPs of one example, two for each multiply-add; null: any."
    )
    latency: PositiveFloat | None = Field(
        None,
        description="Seconds for one example up to the cut, as measured here; with ship, of the "
        "whole model as a file, on one thread; null: any.",
    )
    bytes: PositiveInt | None = Field(
        None, description="Bytes of the weights; with ship, of the file; null: any."
    )


class SearchOptions(Settings):
    """The settings of a search that a configuration file can hold."""

    objective: str | None = Field(
        None,
        description="Metric by which trials are compared and stopped: val_ and what heads report "
        "or any metric of Keras, such as val_f1; null for val_accuracy of classes, val_auc of "
        "labels and val_loss of numbers.",
    )
    direction: Literal["max", "min"] | None = Field(
        None, description="Whether more or less of the objective is better; null where it is known."
    )
    limits: Limits = Field(Limits(), description="The most that a whole model may cost.")
    ship: str | None = Field(
        None,
        description="Format that models are shipped in, with its precision, such as litert-int8: "
        "each cut's model is measured as such a file before any training, and of the best trials "
        "the one whose file is best by the task's measure wins; null for none.",
    )
    max_trials: PositiveInt | None = Field(
        None,
        description="Trials in all; each cut gets one first. Null for every combination of the "
        "choices, which needs learning_rates.",
    )
    epochs: PositiveInt = Field(60, description="At most that many passes a trial.")
    patience: NonNegativeInt = Field(
        10, description="Epochs to wait for a better objective; the best epoch is kept."
    )
    pooling: str | None = Field(
        "avg",
        description="Pooling of features for the heads: avg, max or token (the first of a "
        "sequence); null leaves it to the heads.",
    )
    mask: str | None = Field(
        AUTO,
        description="Address of the mask whose positions pooling passes over; auto finds it, null "
        "pools over all.",
    )
    rank: Literal["logme", "ridge", "knn", "tmi", "size"] | None = Field(
        None,
        description="Score every cut before any training, and try the best first: logme, ridge, "
        "knn and tmi by the features, size by the parameters before the cut.",
    )
    best_cuts: PositiveInt | None = Field(
        None, description="Search that many of the best-ranked cuts only; null for all."
    )
    start_from: str | None = Field(
        None,
        description="Folder of an earlier search, such as one on fewer examples: each cut is tried "
        "first with what was best there, the best cut first. Needs max_trials; null: none.",
    )
    keep: NonNegativeInt = Field(1, description="The weights of how many trials are kept.")
    ask: PositiveInt | None = Field(
        None,
        description="Trials to ask the oracle for at a time: oracles that learn from results "
        "choose better with fewer. Null for what suits the oracle.",
    )
    augmented_views: NonNegativeInt = Field(
        0,
        description="Where random augmentation lies before a cut, how many augmented views to "
        "store; 0 runs the backbone for every batch instead.",
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="Type that features are stored as; null for the model's own."
    )
    compute_dtype: Literal["bfloat16"] | None = Field(
        None, description="What the frozen backbone computes in; null for its own precision."
    )
    disk: NonNegativeInt | None = Field(
        None,
        description="Bytes that the store may hold, whose oldest features make room for new ones; "
        "null for what the disk has.",
    )
    memory: NonNegativeInt | None = Field(
        None, description="Bytes that training may take; null for half of what is available."
    )

    @field_validator("ship")
    @classmethod
    def _written(cls, ship: str | None) -> str | None:
        if ship is not None and ship not in WRITTEN:
            raise ConfigError(
                f"Expected ship to be one of {', '.join(WRITTEN)}. Received: {ship!r}. "
                f"{nearest(ship, WRITTEN)}"
            )
        return ship

    @model_validator(mode="after")
    def _ranked(self) -> Self:
        if self.best_cuts is not None and self.rank is None:
            raise ConfigError(
                "Expected rank='logme' or another with best_cuts, which needs a ranking. "
                "Received: rank=None."
            )
        if self.start_from is not None and self.max_trials is None:
            raise ConfigError(
                "Expected max_trials with start_from, since a search of every combination finds "
                "the same in any order. Received: max_trials=None."
            )
        return self


class SearchConfig(SearchOptions):
    """All settings of a search beside its space.

    They are the options, the settings that a job has once for all of its stages, and those that
    only Python can say.

    Example:
        >>> config = SearchConfig(max_trials=16, epochs=40, rank="logme")
        >>> config.changed(epochs=5).epochs, config.patience
        (5, 10)
        >>> SearchConfig(best_cuts=2)
        Traceback (most recent call last):
        reusekit.errors.ConfigError: Expected rank='logme' or another with best_cuts, which needs a
        ranking. Received: rank=None.
    """

    seed: Seed = Field(
        0, description="Decides the trials, their initial weights and the order of batches."
    )
    plain: bool = Field(
        False,
        description="Run the ordinary way, for comparison: each trial alone, the frozen bottom run "
        "for every batch of every epoch. Needs no store.",
    )
    padding: Padding | None = Field(
        None, description="How examples of different lengths are brought to one."
    )
    preprocessing: Any = Field(
        None,
        description="Work on the examples that neither the model nor the data sets' fingerprints "
        "say, as `reusekit.features.Extraction` has it.",
    )

    @property
    def kept(self) -> int:
        """The number of trials whose weights are kept: those that are shipped are among them."""
        return max(self.keep, 1 if self.ship is None else SHIPPED)

    @model_validator(mode="after")
    def _not_plain(self) -> Self:
        if self.plain and self.rank is not None:
            raise ConfigError(
                "Expected no ranking with plain=True, which has no features to rank cuts by. "
                f"Received: rank={self.rank!r}."
            )
        if self.ship is not None and self.padding is not None:
            raise ConfigError(
                f"Expected padding=None with ship={self.ship!r}, since files are compared on "
                f"examples as they are. Received: {self.padding}."
            )
        return self


class Elsewhere(TypedDict, total=False):
    """Keywords of a search that does not work in this process alone.

    Attributes:
        cluster: A `reusekit.cluster.Cluster` whose workers compute features and train groups of
            trials; None does it in this process. The numbers are the same where workers have as
            many threads, and the same kind of processor.
    """

    cluster: Workers | None
