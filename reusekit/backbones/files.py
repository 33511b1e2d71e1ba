"""Backbones from saved models: `.keras` files, and `.h5` and `.hdf5` files of any Keras."""

import os
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras

from reusekit.backbones.backbone import Backbone
from reusekit.errors import BackboneError, nearest
from reusekit.graph import keras_internals
from reusekit.surgery import clone
from reusekit.surgery.prefix import take_over

SUFFIXES = (".keras", ".h5", ".hdf5")
_SAVE = "Load it where it was made, and save the model with model.save('NAME.keras')"


def load_file(
    source: str, weights: str | None = "default", input_shape: Sequence[int | None] | None = None
) -> Backbone:
    """Load a saved model as a backbone; it brings its own preprocessing, or has none.

    Args:
        source: Path of a `.keras`, `.h5` or `.hdf5` file.
        weights: `default` for those in the file, None for random ones.
        input_shape: Shape of one example, where the model leaves it open; None for its own.

    Raises:
        BackboneError: There is no such file, it asks for code to be run, or it takes another shape.
    """
    check_file(Path(source), source)
    return as_backbone(read_file(Path(source), source), source, weights, input_shape)


def check_file(path: Path, named: str) -> None:
    """Refuse what holds no graph of layers, with what to do instead.

    Args:
        path: A file or a folder.
        named: What it is called in an error.

    Raises:
        BackboneError: There is nothing, or neither a `.keras` nor a `.h5` file with a model.
    """
    if not os.path.exists(path):  # unlike Path, it takes any text
        raise BackboneError(
            f"Expected a file or folder that is there. Received: {named!r}. Check its path."
        )
    if (path / "saved_model.pb").is_file():
        raise BackboneError(
            f"Expected a .keras file. Received: {named}, a SavedModel, which holds programs and no "
            f"graph of layers to cut, also behind a TFSMLayer. {_SAVE}."
        )
    if path.is_dir():
        raise BackboneError(
            "Expected a .keras or .h5 file, or the folder of a KerasHub preset. Received: "
            f"{named}, a folder without the config.json of one."
        )
    if path.name.endswith(".weights.h5"):
        raise BackboneError(
            f"Expected a .keras file. Received: {named}, which holds weights and no model. Build "
            "its model, call model.load_weights with this file, and save it with "
            "model.save('NAME.keras'); weights of keras.applications and of glyphnet can be given "
            "as weights."
        )
    if path.suffix not in SUFFIXES:
        raise BackboneError(
            f"Expected a .keras, .h5 or .hdf5 file. Received: {named}, which is no saved Keras "
            f"model. {_SAVE}."
        )


def as_backbone(
    model: keras.Model,
    source: str,
    weights: str | None,
    input_shape: Sequence[int | None] | None,
    parent: str | None = None,
    head: str | None = None,
) -> Backbone:
    """Return a saved model as a backbone.

    Args:
        model: The loaded model.
        source: Where from.
        weights: `default` for its own, None for random ones.
        input_shape: Shape of one example, where the model leaves it open; None for its own.
        parent: The logged model that it is, where it is one.
        head: The address behind which it is the head of an earlier task, where that is known.

    Raises:
        BackboneError: It takes another shape, or other weights are asked for.
    """
    check_weights(source, weights)
    _freeze_parts(model)
    if input_shape is not None:
        model = _of_shape(model, source, tuple(input_shape))
    if weights is None:
        model = clone(model, weights="fresh")
    return Backbone(model, None, source, weights and source, parent, head)


def _freeze_parts(model: keras.Model) -> None:
    """Freeze the parts of frozen layers that make their parts after Keras has read their flag.

    Keras would train those of `MultiHeadAttention` and of KerasHub's blocks. A layer of which some
    part is frozen itself tells of each, as a nested model does, and is left as it is.
    """
    for layer in keras_internals.all_layers(model):
        parts = keras_internals.direct_layers(layer)
        told = isinstance(layer, keras.Model) or layer.trainable
        if parts and not told and all(part.trainable for part in parts):
            layer.trainable = True  # or Keras would take the next line for no change
            layer.trainable = False


def check_weights(source: str, weights: str | os.PathLike | None) -> None:
    """Refuse other weights where a source holds its own.

    Raises:
        BackboneError: They are neither `default` nor None.
    """
    if weights not in ("default", None):
        raise BackboneError(
            f"Expected weights 'default' or None (random weights) for {source}, which holds its "
            f"own weights. Received: {str(weights)!r}."
        )


def own_weights(weights: str | os.PathLike, shipped: Mapping[str, Path]) -> Path:
    """Return the file of the weights of a network that this package carries.

    Args:
        weights: A name of shipped weights, or a path.
        shipped: The files that ship with the package, by name.

    Raises:
        BackboneError: They are neither.
    """
    path = shipped.get(str(weights), Path(weights))
    if path.is_file():
        return path
    known = " or ".join(map(repr, shipped))
    raise BackboneError(
        f"Expected weights to be {known}, None, or the path of a file that is there. Received: "
        f"{str(weights)!r}. {nearest(str(weights), list(shipped))}"
    )


def load_own_weights(model: keras.Model, path: Path) -> None:
    """Read the weights of a network that this package carries.

    Raises:
        BackboneError: The file holds those of another network, or not all of them.
    """
    try:
        with warnings.catch_warnings():
            # Keras only warns where a file lacks some of the weights, and leaves those random.
            warnings.filterwarnings("error", message=".*freshly-initialized.*")
            model.load_weights(path)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        reason = str(error).splitlines()[0]
        raise BackboneError(
            f"Expected the weights of {model.name}. Received: {path}, which does not hold them: "
            f"{reason}"
        ) from error


def _of_shape(model: keras.Model, source: str, input_shape: tuple[int | None, ...]) -> keras.Model:
    """Return the model on examples of one shape; its weights stay what they are."""
    if len(model.inputs) != 1:
        raise BackboneError(
            f"Expected no input_shape, which is for models with one input. Received: {input_shape} "
            f"for {source} with {len(model.inputs)} inputs."
        )
    own = tuple(model.inputs[0].shape[1:])
    if input_shape == own:
        return model
    fits = len(own) == len(input_shape) and all(
        size in (None, asked) for size, asked in zip(own, input_shape, strict=True)
    )
    if not fits:
        raise BackboneError(f"Expected input_shape {own} for {source}. Received: {input_shape}.")
    sized = keras.Input(input_shape, dtype=model.inputs[0].dtype, name=model.inputs[0].name)
    try:
        return take_over(model, keras.Model(sized, sized))
    except ValueError as error:  # too small for its layers, for instance
        cause = " ".join(str(error).split())
        raise BackboneError(
            f"Expected an input_shape that {source} can take. Received: {input_shape}: {cause}"
        ) from error


def read_file(file: Path, named: str, compiled: bool = False) -> keras.Model:
    """Read a Keras file, which may run no code of its own.

    Args:
        file: A `.keras`, `.h5` or `.hdf5` file.
        named: What it is called in an error.
        compiled: Read the optimizer, losses and metrics, too.

    Raises:
        BackboneError: It asks for code to be run, holds no Keras model, lacks a vocabulary, or has
            a layer whose class is not known here.
    """
    try:
        model = keras.saving.load_model(file, compile=compiled, safe_mode=True)
    except Exception as error:  # Keras, h5py and zipfile raise whatever they like for a bad file
        raise BackboneError(_explained(error, file, named)) from error
    if not isinstance(model, keras.Model):
        raise BackboneError(
            f"Expected a model that model.save wrote. Received: {named}, which holds a "
            f"{type(model).__name__}."
        )
    if file.suffix != ".keras":
        _check_vocabularies(model, named)
    return model


_LOOKUPS = (
    keras.layers.StringLookup,
    keras.layers.IntegerLookup,
    keras.layers.TextVectorization,
)


def _check_vocabularies(model: keras.Model, named: str) -> None:
    """Refuse layers without a vocabulary: only a `.keras` file keeps one that was adapted."""
    for layer in keras_internals.all_layers(model):
        if isinstance(layer, _LOOKUPS) and not layer.get_vocabulary(include_special_tokens=False):
            raise BackboneError(
                f"Expected a .keras file, which holds vocabularies. Received: {named}, which lacks "
                f"the vocabulary of {layer.name!r}, which adapt found. Adapt the layer again where "
                "the model was made, and save that with model.save('NAME.keras')."
            )


_UNKNOWN = re.compile(r"(?:Could not locate (?:class|function)|Unknown \w+:?) '(?:.*?>)?(\w+)'")


def _explained(error: Exception, file: Path, named: str) -> str:
    cause = " ".join(str(error).split())
    unknown = _UNKNOWN.search(cause)
    if unknown:
        return (
            f"Expected a model of classes that Keras knows. Received: {named}, which needs "
            f"{unknown[1]}, not registered with Keras here. Import the module that defines it "
            "first: --import MODULE."
        )
    if "No model config found" in cause:
        return (
            f"Expected a file that model.save wrote. Received: {named}, which holds weights and "
            f"no model. {_SAVE}."
        )
    if file.suffix == ".keras" and not zipfile.is_zipfile(file):
        return (
            f"Expected a .keras file, which is a zip archive. Received: {named}, which is damaged, "
            "or was never one. Save the model again with model.save('NAME.keras')."
        )
    return (
        f"Expected a model that can be loaded. Received: {named}: "
        f"{cause[:1000].rstrip('.') or type(error).__name__}. {_SAVE}."
    )
