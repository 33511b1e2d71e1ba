"""The settings of pipelines: what a configuration file may hold, checked before anything runs."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

Share = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """A group of settings: immutable, and unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneSettings(Settings):
    """Which pretrained model to start from."""

    source: str = Field(
        "reusekit/glyphnet",
        description="keras.applications/NAME, or reusekit/glyphnet, which the package carries.",
    )
    weights: str | None = Field(
        "default",
        description="'default' for the source's pretrained weights, a weights file, or null for "
        "random weights.",
    )
    input_shape: tuple[int, int, int] | None = Field(
        None, description="Height, width and channels; null for the source's own."
    )
    options: dict[str, Any] = Field({}, description="What else the builder takes.")


class DataSettings(Settings):
    """Which TFDS data set to train on."""

    name: str = Field("sklearn_digits", description="TFDS name, such as oxford_iiit_pet:4.0.0.")
    train: str = Field("train", description="TFDS split to train on, such as train[:80%].")
    validation: str = Field("validation", description="Split by which everything is chosen.")
    test: str = Field("test", description="Split that is looked at once, at the end.")
    examples_per_class: PositiveInt | None = Field(
        None, description="Train on that many examples of each class, drawn by the seed; null: all."
    )
    data_dir: str | None = Field(None, description="TFDS's folder; null for its default.")
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


class SearchSettings(Settings):
    """What the cut search tries."""

    cuts: list[str] | None = Field(
        None, description="Addresses to cut at; null for the clean cuts of the backbone."
    )
    max_cuts: PositiveInt = Field(16, description="Try that many cuts at most, spread evenly.")
    max_trials: PositiveInt = Field(24, description="Trials in all; each cut gets one first.")
    units: list[NonNegativeInt] = Field(
        [0, 64], min_length=1, description="Hidden widths to try; 0 for none."
    )
    dropout: list[Share] = Field([0.0, 0.25, 0.5], min_length=1, description="Rates to try.")
    learning_rate: tuple[PositiveFloat, PositiveFloat] = Field(
        (1e-3, 1e-1), description="Lowest and highest learning rate to try."
    )
    epochs: PositiveInt = Field(60, description="At most that many passes a trial.")
    patience: PositiveInt = Field(10, description="Epochs to wait for a lower validation loss.")
    batch_size: PositiveInt = Field(32, description="Examples a step.")

    @field_validator("learning_rate")
    @classmethod
    def _ascending(cls, rates: tuple[float, float]) -> tuple[float, float]:
        if rates[0] > rates[1]:
            raise ValueError("expected the lowest rate first")
        return rates


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
    """What the result is compared with, each tuned on the same validation split."""

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
    """Where MLflow keeps the runs, and under which name the model is registered."""

    uri: str | None = Field(
        None, description="Server or database; null for MLflow's default (sqlite:///mlflow.db)."
    )
    experiment: str = Field("reusekit", description="Experiment that the run belongs to.")
    model: str = Field("reusekit", description="Name in the model registry.")
    alias: str = Field("champion", description="Alias that is moved to the new version.")

    @field_validator("alias")
    @classmethod
    def _free(cls, alias: str) -> str:
        if not re.fullmatch(r"(?!latest$|v\d+$)[\w-]+", alias):
            raise ValueError(
                "expected letters, digits, _ and -, and not 'latest' or 'v1', which MLflow keeps"
            )
        return alias
