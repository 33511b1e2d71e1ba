"""Backbones from KerasHub presets: a folder, or a name that KerasHub downloads."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from reusekit.backbones.backbone import Backbone, Tokenizer
from reusekit.backbones.files import check_weights
from reusekit.backbones.preprocessing import as_layers
from reusekit.errors import BackboneError
from reusekit.surgery.prefix import take_over

PREFIX = "keras_hub/"
SCHEMES = ("hf://", "kaggle://")
"""Handles of KerasHub that are understood without the prefix, too."""


def is_preset(folder: Path) -> bool:
    """Return whether a folder holds a preset of KerasHub or a model of Hugging Face."""
    return os.path.isfile(folder / "config.json")  # no error, however odd the name


def load_preset(
    source: str,
    weights: str | os.PathLike | None = "default",
    input_shape: Sequence[int | None] | None = None,
    **options: Any,
) -> Backbone:
    """Load a KerasHub backbone; an image backbone gets its preset's scaling in front.

    Args:
        source: `keras_hub/PRESET`, where PRESET is what KerasHub takes: a name such as
            `resnet_50_imagenet` or a handle such as `hf://user/model`. Or the path of a folder.
        weights: `default` for the preset's own, None for random ones.
        input_shape: Shape of one image, where the backbone leaves it open.
        **options: Further arguments of the backbone, such as `dtype`.

    Raises:
        BackboneError: KerasHub is not installed, the preset cannot be had, or a weights file is
            asked for. A failed download never turns into random weights.
    """
    check_weights(source, weights)
    try:
        import keras_hub
    except ImportError as error:
        raise BackboneError(
            f"Expected KerasHub, which {source} needs. Received: no module keras_hub is installed "
            "here. Install it with: pip install 'reusekit[hub]'"
        ) from error
    preset = source.removeprefix(PREFIX)
    if input_shape is not None:
        options["image_shape"] = tuple(input_shape)
    try:
        model = keras_hub.models.Backbone.from_preset(
            preset, load_weights=weights is not None, **options
        )
    except Exception as error:
        if isinstance(error, ImportError) and error.name == "safetensors":
            raise BackboneError(
                f"Expected safetensors, which {source} needs. Received: no module safetensors is "
                "installed here. Install it with: pip install 'reusekit[hub]'"
            ) from error
        cause = " ".join(str(error).split())
        raise BackboneError(
            f"Expected a preset of KerasHub that can be loaded. Received: {source}: "
            f"{cause.rstrip('.')}. Check its name, and the network."
        ) from error
    preprocessing = _scaling(keras_hub, preset, model)
    if preprocessing is not None:
        model = take_over(model, _scaling(keras_hub, preset, model))
    return Backbone(
        model,
        preprocessing,
        source,
        None if weights is None else str(weights),
        tokenizer=_tokenizer(keras_hub, preset, model),
    )


@keras.saving.register_keras_serializable("reusekit")
class PresetTokens(keras.layers.Layer):
    """Texts as the tokens of a preset of KerasHub.

    Args:
        preprocessor: KerasHub's own, from texts to inputs of a backbone.
        kinds: The inputs, and the dtype of each.
        **settings: As of any layer.
    """

    def __init__(self, preprocessor: Any, kinds: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self.preprocessor, self.kinds = preprocessor, dict(kinds)

    def build(self, input_shape: Any) -> None:
        """Leave it to the preprocessor, which waits until its vocabulary is there."""

    def call(self, texts: Any) -> dict[str, Any]:
        """Return tokens of texts, or of texts that belong together in a list."""
        given = tuple(texts) if isinstance(texts, list | tuple) else texts
        made = self.preprocessor(given, y=None)  # else it takes the second text for labels
        return {name: keras.ops.cast(made[name], kind) for name, kind in self.kinds.items()}

    def compute_output_spec(self, texts: Any) -> dict[str, keras.KerasTensor]:
        """Return what comes out, without any text."""
        shape = (keras.tree.flatten(texts)[0].shape[0], self.preprocessor.sequence_length)
        return {name: keras.KerasTensor(shape, kind) for name, kind in self.kinds.items()}

    def get_config(self) -> dict[str, Any]:
        """Return what makes the layer again; the vocabulary is an asset of the saved model."""
        preprocessor = keras.saving.serialize_keras_object(self.preprocessor)
        return super().get_config() | {"preprocessor": preprocessor, "kinds": self.kinds}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PresetTokens":
        """Make the layer again."""
        preprocessor = keras.saving.deserialize_keras_object(config.pop("preprocessor"))
        return cls(preprocessor, **config)


def _tokenizer(keras_hub: Any, preset: str, model: keras.Model) -> Tokenizer | None:
    """Return what makes a preset's tokenizer; None for pictures, and where it has none."""
    kinds = {tensor.name: tensor.dtype for tensor in model.inputs}
    if "token_ids" not in kinds:
        return None
    kind = keras_hub.models.TextClassifierPreprocessor
    try:
        kind.from_preset(preset)
    except (ValueError, OSError, ImportError):  # it has no tokenizer, or one of another kind
        return None

    def make(length: int, names: Sequence[str] = ("text",)) -> keras.Model:
        texts = {name: keras.Input((), dtype="string", name=name) for name in names}
        given = list(texts.values()) if len(texts) > 1 else texts[names[0]]
        preprocessor = kind.from_preset(preset, sequence_length=length)
        tokens = PresetTokens(preprocessor, kinds, name="tokens")(given)
        return keras.Model(texts if len(texts) > 1 else given, tokens, name="tokenizer")

    return make


def _scaling(keras_hub: Any, preset: str, model: keras.Model) -> keras.Model | None:
    """Return a preset's scaling of pixels as a model; resizing is left to the data."""
    if isinstance(model.input, dict) or len(model.input.shape) != 4:
        return None
    try:
        converter = keras_hub.layers.ImageConverter.from_preset(preset, image_size=None)
    except ValueError:  # the preset has none
        return None
    return as_layers(lambda x: np.asarray(converter(x)), model.input_shape[1:])
