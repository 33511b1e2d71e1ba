"""The settings of pipelines: what a configuration file may hold, checked before anything runs."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

CHAMPION = "champion"
"""The alias of the version that is the one to use."""

Share = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """A group of settings: immutable, and unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        """Refuse a list with something twice, and text that was meant as a list or holds NUL."""
        for name, value in self:
            if isinstance(value, list) and any(x in value[:n] for n, x in enumerate(value)):
                raise ValueError(f"expected {name} with nothing twice, received {value}")
            if isinstance(value, str) and (value[:1] in ("{", "[") or "\0" in value):
                raise ValueError(f"expected {name} as plain text, received {value!r}")
        return self


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


class DataSettings(Settings):
    """The TFDS data set to train on."""

    name: str = Field(
        description="TFDS name, such as oxford_iiit_pet:4.0.0, or sklearn_digits, which the "
        "package carries."
    )
    input: str | None = Field(
        None, description="Feature that a model is fed, such as image; null for the data set's own."
    )
    label: str | None = Field(
        None,
        description="Feature to classify by, such as attributes/Smiling; null for the data set's "
        "own.",
    )
    train: str = Field("train", description="TFDS split to train on, such as train[:80%].")
    validation: str = Field("validation", description="Split by which everything is chosen.")
    test: str = Field("test", description="Split that is looked at once, at the end.")
    examples_per_class: PositiveInt | None = Field(
        None, description="Train on that many examples of each class, drawn by the seed; null: all."
    )
    data_dir: str | None = Field(
        None, description="TFDS's folder, where its data sets lie; null for its default."
    )
    download: bool = Field(False, description="Whether absent data may be downloaded.")
    resize: Literal["stretch", "crop", "pad"] = Field(
        "stretch", description="What to do with images of another aspect ratio."
    )


class HeadSettings(Settings):
    """The head, and its training on the frozen bottom."""

    units: NonNegativeInt = Field(0, description="Width of the hidden layer; 0 for none.")
    dropout: Share = Field(0.0, description="Dropout rate before the last layer.")
    learning_rate: PositiveFloat = Field(1e-2, description="Adam's rate.")
    epochs: PositiveInt = Field(60, description="At most that many passes.")
    patience: PositiveInt = Field(10, description="Epochs to wait for a lower validation loss.")
    batch_size: PositiveInt = Field(32, description="Examples a step.")


class LimitSettings(Settings):
    """Limits on the whole model; cuts and trials beyond them are left out."""

    parameters: PositiveInt | None = Field(None, description="At most that many; null: any.")
    flops: PositiveFloat | None = Field(None, description="For one example, at most; null: any.")
    latency: PositiveFloat | None = Field(
        None, description="Seconds for one example up to the cut, as measured here; null: any."
    )


class SearchSettings(Settings):
    """The choices of the cut search, and its resources."""

    cuts: list[str] | None = Field(
        None, description="Addresses to cut at, as [a,b]; null for the clean cuts of the backbone."
    )
    max_cuts: PositiveInt = Field(16, description="Try that many cuts at most, spread evenly.")
    freeze: list[str] = Field(
        [],
        description="Clean cuts, as [a,b], up to which the backbone may be frozen: where one lies "
        "before a trial's cut, what is between the two is trained with the head. Empty: heads "
        "alone.",
    )
    max_trials: PositiveInt | None = Field(
        24,
        description="Trials in all; each cut gets one first. Null for every combination of the "
        "choices, which needs learning_rates.",
    )
    units: list[NonNegativeInt] = Field(
        [0, 64], min_length=1, description="Hidden widths to try, as [a,b]; 0 for none."
    )
    dropout: list[Share] = Field(
        [0.0, 0.25, 0.5], min_length=1, description="Rates to try, as [a,b]."
    )
    optimizers: list[str] = Field(
        ["adam"], min_length=1, description="Names of Keras optimizers to try, as [a,b]."
    )
    learning_rate: tuple[PositiveFloat, PositiveFloat] = Field(
        (1e-3, 1e-1), description="Lowest and highest learning rate to try, as [a,b]."
    )
    learning_rates: list[PositiveFloat] | None = Field(
        None,
        min_length=1,
        description="Learning rates to choose from instead of that range, as [a,b].",
    )
    batch_sizes: list[PositiveInt] = Field(
        [32], min_length=1, description="Examples a step, to try, as [a,b]."
    )
    epochs: PositiveInt = Field(60, description="At most that many passes a trial.")
    patience: PositiveInt = Field(10, description="Epochs to wait for a better objective.")
    objective: Literal["val_accuracy", "val_loss"] = Field(
        "val_accuracy", description="By which trials are compared."
    )
    limits: LimitSettings = LimitSettings()
    rank: Literal["logme", "ridge"] | None = Field(
        None, description="Score every cut before any training, and try the best first."
    )
    best_cuts: PositiveInt | None = Field(
        None, description="Search that many of the best-ranked cuts only; null for all."
    )
    keep: PositiveInt = Field(1, description="The weights of how many trials are kept.")
    augmented_views: NonNegativeInt = Field(
        0,
        description="Where random augmentation lies before a cut, how many augmented views to "
        "store; 0 runs the backbone for every batch instead.",
    )
    compute_dtype: Literal["bfloat16"] | None = Field(
        None, description="What the frozen backbone computes in; null for its own precision."
    )
    store: str | None = Field(
        None, description="Folder of the feature store; null for ~/.cache/reusekit/features."
    )
    disk: PositiveInt | None = Field(
        None,
        description="Bytes that the store may hold, whose oldest features make room for new ones; "
        "null for what the disk has.",
    )
    memory: PositiveInt | None = Field(
        None, description="Bytes that training may take; null for half of what is available."
    )
    folder: str | None = Field(
        None,
        description="Where the search is kept and gone on with; null for a folder in the output "
        "folder that is named by what is searched.",
    )

    @field_validator("learning_rate")
    @classmethod
    def _ascending(cls, rates: tuple[float, float]) -> tuple[float, float]:
        if rates[0] > rates[1]:
            raise ValueError("expected the lowest rate first")
        return rates

    @model_validator(mode="after")
    def _countable(self) -> "SearchSettings":
        low, high = self.learning_rate
        if self.max_trials is None and self.learning_rates is None and low < high:
            raise ValueError("max_trials of null, every combination, needs learning_rates")
        return self


class FineTuneSettings(Settings):
    """The second phase: the top of the bottom is unfrozen and trained on, at a lower rate."""

    unfreeze_from: str | None = Field(
        None,
        description="Cut from which on the bottom is trained, if the chosen one is deeper; null to "
        "choose by share.",
    )
    share: float = Field(
        0.34,
        ge=0,
        le=1,
        description="Share of the backbone's cuts before the chosen one to unfreeze.",
    )
    learning_rate: PositiveFloat = Field(1e-4, description="Adam's rate in the second phase.")
    epochs: PositiveInt = Field(30, description="At most that many passes.")
    patience: PositiveInt = Field(5, description="Epochs to wait for a lower validation loss.")
    batch_size: PositiveInt = Field(32, description="Examples a step.")


class BaselineSettings(Settings):
    """The rivals of the result, each tuned on the same validation split."""

    from_scratch: bool = Field(False, description="The same network, from random weights.")
    learning_rates: list[PositiveFloat] = Field(
        [3e-4, 1e-3, 3e-3], min_length=1, description="Rates tried from scratch."
    )
    epochs: PositiveInt = Field(30, description="At most that many epochs from scratch.")
    passes: PositiveInt = Field(
        1,
        description="Passes over the training examples an epoch; several where they are few, so "
        "that validating does not cost more than training.",
    )
    patience: PositiveInt = Field(10, description="Epochs to wait for a lower validation loss.")
    batch_size: PositiveInt = Field(32, description="Examples a step.")
    pixels: bool = Field(False, description="Logistic regression on the raw pixels.")


class TrackingSettings(Settings):
    """The place of the runs in MLflow, and the name of the registered model."""

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
    alias: str | None = Field(
        None,
        max_length=250,
        description="Alias that is moved to the new version; null for 'champion', which the first "
        "version gets and only promote.py moves on.",
    )

    @field_validator("alias")
    @classmethod
    def _free(cls, alias: str | None) -> str | None:
        if alias is not None and not re.fullmatch(r"(?!(?i:latest|v\d+)$)[\w-]+", alias):
            raise ValueError(
                "expected letters, digits, _ and -, and not 'latest' or 'v1', which MLflow keeps"
            )
        return alias

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
        gt=-1,
        lt=1,
        description="By how much its accuracy has to be higher; below 0, how much lower it may be.",
    )
    confidence: float = Field(
        0.95, gt=0, lt=1, description="How sure that has to be: of the interval of the difference."
    )
    resamples: PositiveInt = Field(
        10_000, description="How often the examples are resampled for the interval."
    )
