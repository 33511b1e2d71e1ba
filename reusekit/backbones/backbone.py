"""A pretrained model together with everything that makes its numbers what they are."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import keras

from reusekit.arguments import checked
from reusekit.backbones.digest import model_digest
from reusekit.errors import BackboneError

Tokenizer = Callable[[int, Sequence[str]], keras.Model]
"""Makes the model from texts to tokens, given how many of these and the names of the texts."""


@checked(BackboneError)
@dataclass(frozen=True)
class Backbone:
    """A pretrained model with its own preprocessing bound in front.

    Attributes:
        model: From raw input (images: float32 in [0, 255], shape (batch, height, width, channels))
            to the backbone's last feature map. Its layers keep their own names as addresses.
        preprocessing: From raw input to what the weights were trained on; a model of stock layers
            that is already part of `model`. None where the backbone takes raw input as it is.
        source: Where it came from, such as `keras.applications/ResNet50`.
        weights: The weights that it holds: a name such as `imagenet`, a path, or None for random.
        parent: Id of the logged model that it is, where it comes from a registry; else None.
        head: The address behind which it is the head of an earlier task; None where none is known.
        tokenizer: Makes the model from texts to what `model` takes; None where that takes no
            tokens, or nobody knows which.

    Example:
        >>> import reusekit as rk
        >>> backbone = rk.load_backbone("keras.applications/MobileNetV2", weights=None,
        ...                             input_shape=(32, 32, 3))
        >>> backbone.preprocessing.layers[-1].offset
        -1.0
        >>> backbone.model.output_shape
        (None, 1, 1, 1280)
    """

    model: keras.Model
    preprocessing: keras.Model | None = field(repr=False)
    source: str
    weights: str | None
    parent: str | None = None
    head: str | None = None
    tokenizer: Tokenizer | None = field(default=None, repr=False)

    @cached_property
    def digest(self) -> str:
        """Names this configuration with these weights: equal in every process and on every day.

        Layer names do not enter it. Computed once, so take it before training changes the weights.
        """
        return model_digest(self.model)

    @property
    def name(self) -> str:
        """A short name of letters, digits, _ and - alone.

        Example:
            >>> sources = ["keras.applications/ResNet50", "models:/digits/3", "runs/best.keras"]
            >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            >>> [Backbone(model, None, source, None).name for source in sources]
            ['ResNet50', 'digits', 'best']
            >>> Backbone(model, None, "bob's 50% net, 2024-05-01T10:30.keras", None).name
            'bob-s-50-net-2024-05-01T10-30'
        """
        if self.source.startswith("models:/"):
            found = self.source.removeprefix("models:/").rsplit("/", 1)[0]
        else:
            found = Path(self.source).stem
        # Names of models are derived from it, and MLflow takes no quotes, colons or dots in them.
        return re.sub(r"[^\w-]+", "-", found).strip("-") or "backbone"
