"""Backbones from a `.keras` file."""

import os
from collections.abc import Sequence
from pathlib import Path

import keras

from reusekit.backbones.backbone import Backbone
from reusekit.errors import BackboneError
from reusekit.surgery import clone

SUFFIX = ".keras"


def load_file(
    source: str, weights: str | None = "default", input_shape: Sequence[int | None] | None = None
) -> Backbone:
    """Load a saved model as a backbone; it brings its own preprocessing, or has none.

    Args:
        source: Path of a `.keras` file.
        weights: `default` for those in the file, None for random ones.
        input_shape: Shape of one example, to be sure of it; None for whatever the model takes.

    Raises:
        BackboneError: There is no such file, it asks for code to be run, or it takes another shape.
    """
    if not os.path.isfile(source):
        raise BackboneError(f"There is no file {source!r}.")
    return as_backbone(read_file(Path(source), source), source, weights, input_shape)


def as_backbone(
    model: keras.Model,
    source: str,
    weights: str | None,
    input_shape: Sequence[int | None] | None,
    parent: str | None = None,
) -> Backbone:
    """A saved model as a backbone.

    Args:
        model: What was loaded.
        source: Where from.
        weights: `default` for its own, None for random ones.
        input_shape: Shape of one example, to be sure of it; None for whatever the model takes.
        parent: The logged model that it is, where it is one.

    Raises:
        BackboneError: It takes another shape, or other weights are asked for.
    """
    check_weights(source, weights)
    if input_shape is not None and tuple(input_shape) != tuple(model.input_shape[1:]):
        raise BackboneError(
            f"{source} takes input_shape {tuple(model.input_shape[1:])}. Received: "
            f"{tuple(input_shape)}."
        )
    if weights is None:
        model = clone(model, weights="fresh")
    return Backbone(model, None, source, weights and source, parent)


def check_weights(source: str, weights: str | None) -> None:
    """Refuse other weights where a source holds its own.

    Raises:
        BackboneError: They are neither `default` nor None.
    """
    if weights not in ("default", None):
        raise BackboneError(
            f"{source} holds its own weights: expected weights 'default' or None (random weights), "
            f"received {str(weights)!r}."
        )


def read_file(file: Path, named: str) -> keras.Model:
    """Read a Keras file, which may run no code of its own.

    Args:
        file: A `.keras` file.
        named: What it is called in an error.

    Raises:
        BackboneError: It asks for code to be run, or holds no Keras model.
    """
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except Exception as error:  # a damaged file fails in whatever library reads that part of it
        cause = " ".join(str(error).split()) or type(error).__name__
        raise BackboneError(f"{named} cannot be loaded: {cause[:1000]}") from error
    if not isinstance(model, keras.Model):
        raise BackboneError(f"{named} holds no Keras model. Received: {type(model).__name__}.")
    return model
