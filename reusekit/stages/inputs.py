"""The first stages: a backbone, and data in the shape it takes."""

from dataclasses import dataclass

from reusekit.backbones import Backbone
from reusekit.backbones import load_backbone as load_pretrained
from reusekit.data import DataSplit, load_split
from reusekit.errors import ConfigError
from reusekit.settings import BackboneSettings, DataSettings

INFERENCE_BATCH = 64
"""Examples a batch where nothing is trained: it decides speed and memory, never numbers."""


@dataclass(frozen=True)
class Splits:
    """The three parts of a data set."""

    train: DataSplit
    validation: DataSplit
    test: DataSplit


def load_backbone(settings: BackboneSettings) -> Backbone:
    """Load the pretrained model that the settings name.

    Raises:
        BackboneError: It cannot be had.
        ConfigError: An option is a setting of its own.
    """
    taken = settings.options.keys() & {"weights", "input_shape"}
    if taken:
        raise ConfigError(
            f"backbone.options.{min(taken)} is a setting of its own: backbone.{min(taken)}."
        )
    return load_pretrained(
        settings.source, settings.weights, settings.input_shape, **settings.options
    )


def load_data(settings: DataSettings, backbone: Backbone, seed: int) -> Splits:
    """Load the three splits with images of the size and channels that the backbone takes.

    Raises:
        ConfigError: The backbone takes no images or leaves their size open, or two splits share
            examples.
        DataError: The data cannot be read.
    """
    inputs = backbone.model.inputs
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        shapes = ", ".join(str(tensor.shape) for tensor in inputs)
        raise ConfigError(
            f"{backbone.source} takes no images: expected one input of shape (batch, height, "
            f"width, channels), received {shapes}."
        )
    *size, channels = inputs[0].shape[1:]
    if None in size:
        raise ConfigError(
            f"{backbone.source} takes images of any size. Choose one with --backbone.input_shape."
        )

    def load(split: str, examples_per_class: int | None = None) -> DataSplit:
        return load_split(
            settings.name,
            split,
            data_dir=settings.data_dir,
            download=settings.download,
            image_size=size,
            channels=channels,
            resize=settings.resize,
            examples_per_class=examples_per_class,
            seed=seed,
            input=settings.input,
            label=settings.label,
        )

    splits = Splits(
        train=load(settings.train, settings.examples_per_class),
        validation=load(settings.validation),
        test=load(settings.test),
    )
    pairs = (("train", "validation"), ("train", "test"), ("validation", "test"))
    for one, other in pairs:
        if getattr(splits, one).overlaps(getattr(splits, other)):
            raise ConfigError(
                f"data.{one}={getattr(settings, one)!r} and data.{other}="
                f"{getattr(settings, other)!r} share examples; expected splits that do not."
            )
    return splits
