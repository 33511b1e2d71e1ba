"""The settings of pipelines: what a configuration file may hold, checked before anything runs."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reusekit.arguments import Alias, Choices, Rate, Seed, Settings, Share
from reusekit.cluster import ClusterSettings as ClusterSettings
from reusekit.data.augmentation import Recipe, layers_of
from reusekit.data.shares import Shares
from reusekit.data.task import Kind
from reusekit.data.treatment import Resize, Treatment
from reusekit.errors import ConfigError
from reusekit.search.config import SearchConfig, SearchOptions
from reusekit.search.space import SearchSpace, TrialChoices

CHAMPION = "champion"
"""The alias of the version that is the one to use."""


class BackboneSettings(Settings):
    """The pretrained model to start from."""

    source: str = Field(
        "reusekit/glyphnet",
        description="keras.applications/NAME; reusekit/glyphnet, which the package carries; a "
        ".keras or .h5 file; keras_hub/PRESET or a preset's folder; models:/NAME@ALIAS from the "
        "registry.",
    )
    weights: str | None = Field(
        "default",
        description="'default' for the source's pretrained weights, a weights file, or null for "
        "random weights.",
    )
    input_shape: tuple[int, int, int] | None = Field(
        None, description="Height, width and channels; null for the source's own."
    )
    scale: tuple[float, float] | str | None = Field(
        None,
        description="Range that pixels are brought to in front of a saved model that was trained "
        "so: 0..1, -1..1, caffe, torch, or a factor and what is added then; 0..255 and null leave "
        "them.",
    )
    options: dict[str, Any] = Field({}, description="What else the builder takes.")


class CandidateSettings(BackboneSettings):
    """One of several pretrained models that a search chooses from."""

    source: str = Field(description=BackboneSettings.model_fields["source"].description)
    name: str | None = Field(
        None, min_length=1, description="Its name in tables; null for that of the source."
    )
    cuts: Choices[str] | None = Field(
        None, description="Addresses to cut at, as [a,b]; null for its clean cuts."
    )
    sequence_length: PositiveInt | None = Field(
        None, description="Tokens of a text; null for data.sequence_length."
    )
    skip_unavailable: bool = Field(
        False,
        description="Leave it out, and say so, where it cannot be had or does not take the data; "
        "else that is an error.",
    )


_ONLY = {
    "name": {"input", "label", "data_dir", "download"},
    "folder": {"shares", "skip_unreadable"},
    "table": {"input", "label", "weight", "part", "shares", "skip_unreadable"},
}
"""Settings that are for some sources of data only, by the source."""


class DataSettings(Settings):
    """The data to train on: a TFDS data set by its name, a folder, or a table."""

    name: str | None = Field(
        None,
        description="TFDS name, such as oxford_iiit_pet:4.0.0, or sklearn_digits, which the "
        "package carries.",
    )
    folder: str | None = Field(
        None,
        description="Folder of pictures, sounds (WAV) or texts, with a folder for each class, or "
        "for each part with class folders in it.",
    )
    table: str | None = Field(
        None,
        description="Table of CSV, TSV, Parquet or JSON lines, whose columns input and label name.",
    )
    shares: Shares | None = Field(
        None,
        description="Shares of the parts that are drawn of a table, or of a folder of class "
        "folders; null for 70, 15 and 15 %.",
    )
    part: str | None = Field(
        None,
        description="Column of a table that says the part of each row, in the place of shares.",
    )
    weight: str | None = Field(
        None, description="Column of a table with the weight of each example; null for no weights."
    )
    input: Mapping[str, Sequence[str] | str] | Sequence[str] | str | None = Field(
        None,
        description="Feature or column that a model is fed, such as image, or several as [a,b]; of "
        "a table also the columns of each of a model's inputs; null for the data set's own.",
    )
    label: Mapping[str, Sequence[str] | str] | Sequence[str] | str | None = Field(
        None,
        description="Feature or column to tell, such as attributes/Smiling, or several as [a,b]; "
        "of several tasks at once those of each, as {breed: label, age: age}; null for the data "
        "set's own.",
    )
    task: Kind | Mapping[str, Kind] | None = Field(
        None, description=Treatment.model_fields["task"].description
    )
    train: str = Field("train", description="Split to train on, such as train[:80%].")
    validation: str = Field("validation", description="Split by which everything is chosen.")
    test: str = Field("test", description="Split that is looked at once, at the end.")
    examples_per_class: PositiveInt | None = Field(
        None, description="Train on that many examples of each class, drawn by the seed; null: all."
    )
    data_dir: str | None = Field(
        None, description="TFDS's folder, where its data sets lie; null for its default."
    )
    download: bool = Field(False, description="Whether absent data may be downloaded.")
    skip_unreadable: bool = Field(
        False, description=Treatment.model_fields["skip_unreadable"].description
    )
    resize: Resize = Field("stretch", description=Treatment.model_fields["resize"].description)
    augment: Recipe | None = Field(
        None,
        description="Keras layers that vary the training examples, each by its name or with its "
        "options, as [RandomFlip, {RandomRotation: {factor: 0.1}}, MixUp]; null for none.",
    )
    class_weights: Literal["balanced"] | None = Field(
        None,
        description="balanced: in training, and there alone, every class counts alike, however "
        "many examples it has; null: every example does.",
    )
    sequence_length: PositiveInt = Field(
        64, description="Tokens of a text, or of a pair; what is longer loses its end."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = [source for source in _ONLY if getattr(self, source) is not None]
        if len(named) != 1:
            raise ConfigError(
                f"Expected one of {', '.join(f'data.{source}' for source in _ONLY)}. Received: "
                f"{' and '.join(named) or 'none of them'}."
            )
        for setting in sorted(set().union(*_ONLY.values()) - _ONLY[named[0]]):
            if getattr(self, setting):
                raise ConfigError(
                    f"Expected no {setting} for data.{named[0]}. Received: "
                    f"{getattr(self, setting)!r}."
                )
        for name in ("input", "label"):
            value = getattr(self, name)
            parts = list(value.values()) if isinstance(value, Mapping) else [value]
            if value is not None and not (parts and all(parts)):
                raise ConfigError(
                    f"Expected {name} to name a feature or a column. Received: {value!r}."
                )
        if self.name is not None and isinstance(self.input, Mapping):
            raise ConfigError(
                "Expected input as a feature or a list of them for data.name. Received: "
                f"{self.input!r}."
            )
        if self.table is not None and (self.input is None or self.label is None):
            raise ConfigError(
                "Expected input and label to name columns for data.table. Received: "
                f"input={self.input!r}, label={self.label!r}."
            )
        if self.augment is not None:
            layers_of(self.augment)
        if self.part is not None and self.shares is not None:
            raise ConfigError(
                "Expected part, a column, or shares, which are drawn. Received: both."
            )
        return self

    @property
    def source(self) -> str:
        """The data set's name or place, as it was given."""
        return self.name or self.folder or self.table or ""

    def treatment(self, **values: Any) -> Treatment:
        """Return the treatment of examples, with values for what a backbone decides."""
        shared = Treatment.model_fields.keys() & type(self).model_fields.keys()
        return Treatment(**{name: getattr(self, name) for name in shared} | values)


class HeadSettings(Settings):
    """The head, and its training on the frozen bottom."""

    units: NonNegativeInt = Field(0, description="Width of the hidden layer; 0 for none.")
    dropout: Rate = Field(0.0, description="Dropout rate before the last layer.")
    loss_weights: Mapping[str, NonNegativeFloat] | None = Field(
        None, description=TrialChoices.model_fields["loss_weights"].description
    )
    learning_rate: PositiveFloat = Field(1e-2, description="Adam's rate.")
    objective: str = Field(
        "val_loss",
        description="Metric that decides which epoch is the best: val_ and what the head reports, "
        "or any metric of Keras.",
    )
    epochs: PositiveInt = Field(60, description="At most that many passes.")
    patience: PositiveInt = Field(10, description="Epochs to wait for a better objective.")
    batch_size: PositiveInt = Field(32, description="Examples a step.")


class SearchSettings(TrialChoices, SearchOptions):
    """The choices of the cut search, and its resources."""

    cuts: Choices[str] | None = Field(
        None, description="Addresses to cut at, as [a,b]; null for the clean cuts of the backbone."
    )
    max_cuts: PositiveInt = Field(16, description="Try that many cuts at most, spread evenly.")
    max_trials: PositiveInt | None = Field(
        24, description=SearchOptions.model_fields["max_trials"].description
    )
    store: str | None = Field(
        None,
        description="Folder of the feature store, or its address such as s3://BUCKET/PREFIX, with "
        "~/.cache/reusekit/features as its cache; null for that folder alone.",
    )
    disk: PositiveInt | None = Field(
        None, description=SearchOptions.model_fields["disk"].description
    )
    folder: str | None = Field(
        None,
        description="Where the search is kept and gone on with, a folder or an address such as "
        "s3://BUCKET/PREFIX; null for a folder in the output folder that is named by what is "
        "searched.",
    )
    trial_runs: NonNegativeInt = Field(
        200,
        description="How many trials, the first ones and the best, are runs of their own in "
        "MLflow; all are rows of the table trials.json.",
    )

    @model_validator(mode="after")
    def _countable(self) -> Self:
        low, high = self.learning_rate
        if self.max_trials is None and self.learning_rates is None and low < high:
            raise ConfigError(
                "Expected learning_rates with max_trials of null, every combination. Received: the "
                f"range {(low, high)}."
            )
        return self

    def space(self, cuts: Sequence[str]) -> SearchSpace:
        """Return the space of these choices on cuts."""
        choices = {name: getattr(self, name) for name in TrialChoices.model_fields}
        return SearchSpace(cuts=cuts, **choices)

    def config(self, seed: int, plain: bool) -> SearchConfig:
        """Return the configuration of these options; the store itself holds to `disk`."""
        options = {name: getattr(self, name) for name in SearchOptions.model_fields}
        return SearchConfig(**options | {"disk": None}, seed=seed, plain=plain)


class FineTuneSettings(Settings):
    """The second phase: the top of the bottom is unfrozen and trained on, at a lower rate."""

    frozen_up_to: str | None = Field(
        None,
        description="Cut before which nothing is trained, if the chosen one is deeper; null to "
        "choose by share.",
    )
    share: Share = Field(
        0.34,
        description="Share of the backbone's cuts before the chosen one to unfreeze.",
    )
    learning_rate: PositiveFloat = Field(1e-4, description="Adam's rate in the second phase.")
    warmup: NonNegativeInt = Field(
        0, description="Epochs in which the rate rises from 0 to what it is, step by step."
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="The rate after that: constant, or falling along a cosine to 0 at the last "
        "epoch.",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Weight decay as of AdamW, of all that is trained but biases and "
        "normalisations.",
    )
    clip_norm: PositiveFloat | None = Field(
        None, description="Norm to which all gradients together are clipped; null: none."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Smoothing of the labels of classes, or of several labels."
    )
    precision: Literal["mixed_bfloat16", "mixed_float16"] | None = Field(
        None,
        description="What the unfrozen part computes in, its weights in float32; null for its own "
        "precision.",
    )
    objective: str = Field(
        "val_loss",
        description="Metric that decides which epoch is the best and whether the phase is kept: "
        "val_ and what the head reports, or any metric of Keras.",
    )
    decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor of the rate from block to block towards the input; 1 for one rate.",
    )
    unfreeze_every: NonNegativeInt = Field(
        0,
        description="Unfreeze in even shares from the head down, one after that many epochs, all "
        "of it before the last; 0 unfreezes all at once.",
    )
    batch_norm: Literal["frozen", "train"] = Field(
        "frozen",
        description="BatchNormalization in the unfrozen part: frozen keeps its statistics and "
        "weights, train trains it.",
    )
    epochs: PositiveInt = Field(30, description="At most that many passes.")
    patience: PositiveInt = Field(5, description="Epochs to wait for a better objective.")
    batch_size: PositiveInt = Field(32, description="Examples a step.")

    @model_validator(mode="after")
    def _in_time(self) -> Self:
        for name in ("unfreeze_every", "warmup"):
            if getattr(self, name) >= self.epochs:
                raise ConfigError(
                    f"Expected {name} to be below epochs, {self.epochs}. Received: "
                    f"{getattr(self, name)}."
                )
        return self


class BaselineSettings(Settings):
    """The rivals of the result, each tuned on the same validation split."""

    from_scratch: bool = Field(False, description="The same network, from random weights.")
    learning_rates: Choices[PositiveFloat] = Field(
        [3e-4, 1e-3, 3e-3], description="Rates tried from scratch."
    )
    epochs: PositiveInt = Field(30, description="At most that many epochs from scratch.")
    passes: PositiveInt = Field(
        1,
        description="Passes over the training examples an epoch; several where they are few, so "
        "that validating does not cost more than training.",
    )
    patience: PositiveInt = Field(10, description="Epochs to wait for a lower validation loss.")
    batch_size: PositiveInt = Field(32, description="Examples a step.")
    linear: bool = Field(
        False,
        description="A linear model on the raw input: logistic regression, or ridge regression for "
        "numbers.",
    )
    constant: bool = Field(
        False, description="What looks at no input: the majority, the rates of labels, the mean."
    )


class TrackingSettings(Settings):
    """The MLflow server and experiment of the runs, and the name of the registered model."""

    uri: str | None = Field(
        None, description="Server or database; null for MLflow's default (sqlite:///mlflow.db)."
    )
    experiment: str | None = Field(
        None,
        min_length=1,
        max_length=250,
        description="Experiment that the run belongs to; null for the one that MLflow was told of "
        "(MLFLOW_EXPERIMENT_NAME, mlflow.set_experiment), else 'reusekit'.",
    )
    model: str = Field(
        "reusekit", min_length=1, max_length=250, description="Name in the model registry."
    )
    alias: Alias | None = Field(
        None,
        description="Alias that is moved to the new version; null for 'champion', which the first "
        "version gets and only promote.py moves on.",
    )

    @property
    def promoted(self) -> str:
        """The alias that a promotion moves."""
        return self.alias or CHAMPION


class PromoteSettings(Settings):
    """The version that stands against the champion, and the rule for its promotion."""

    candidate: PositiveInt | str | None = Field(
        None, description="Number or alias of a version; null for the newest."
    )
    margin: float = Field(
        0.0,
        description="By how much it has to be better in the measure of the task, such as accuracy; "
        "below 0, how much worse it may be.",
    )
    confidence: float = Field(
        0.95, gt=0, lt=1, description="How sure that has to be: of the interval of the difference."
    )
    resamples: PositiveInt = Field(
        10_000, description="How often the examples are resampled for the interval."
    )


class JobSettings(Settings):
    """The settings of a job itself; on the command line they are options without a group."""

    grouped = False

    output: str = Field(
        "runs", description="Folder for tables and figures; each run gets one of its own in it."
    )
    seed: Seed = Field(
        0,
        description="Decides the examples, the initial weights, the order of batches and the "
        "trials.",
    )
    verbose: bool = Field(False, description="Say more, and show the traceback of an error.")
    tracking: TrackingSettings = Field(
        TrackingSettings(),
        description="Where MLflow keeps the run, and the name in the registry.",
    )


class TrainingJobSettings(JobSettings):
    """The settings of a job that trains a model and registers it."""

    standalone: bool = Field(
        False,
        description="Register the whole model with weights of its own, to be loaded where reusekit "
        "is not installed. Otherwise its bottom is stored once for all models that stand on it.",
    )
    cluster: ClusterSettings = Field(
        ClusterSettings(), description="Where features are computed and trials are trained."
    )


class SearchJobSettings(TrainingJobSettings):
    """The settings of a job that searches."""

    plain: bool = Field(
        False,
        description="Run each trial alone, the backbone for every batch of it, for comparison.",
    )
    fresh: bool = Field(
        False, description="Discard the trials that an earlier run of the same search finished."
    )


class FineTuneJobSettings(TrainingJobSettings):
    """The settings of a job that fine-tunes at one cut."""

    cut: str = Field(
        description="Where to cut the backbone; `reusekit cuts SOURCE` lists the choices."
    )
    store: str | None = Field(
        None,
        description="Folder of the feature store, or its address such as s3://BUCKET/PREFIX, with "
        "~/.cache/reusekit/features as its cache; null for that folder alone.",
    )
