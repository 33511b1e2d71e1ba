"""One door to every source of pretrained models."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from reusekit.arguments import AnyPath, checked, expanded
from reusekit.backbones import applications, files, glyphnet, hub, prosenet
from reusekit.backbones.backbone import Backbone
from reusekit.backbones.preprocessing import channels_last, scaling
from reusekit.errors import BackboneError, nearest
from reusekit.surgery.prefix import take_over

PLUGINS = "reusekit.backbones"
"""Group of entry points: a scheme, and what loads `SCHEME:...`, called as `files.load_file` is."""

_CARRIED: Mapping[str, Callable[..., Backbone]] = {
    glyphnet.SOURCE: glyphnet.load_glyphnet,
    prosenet.SOURCE: prosenet.load_prosenet,
}
_LONGEST = 1000  # characters of a source


def sources() -> list[str]:
    """Return every source that `load_backbone` knows by name.

    Example:
        >>> sources()[:2]
        ['reusekit/glyphnet', 'reusekit/prosenet']
    """
    return [*_CARRIED, *(applications.PREFIX + name for name in applications.builders())]


@checked(BackboneError)
@channels_last()
def load_backbone(
    source: AnyPath,
    /,
    weights: AnyPath | None = "default",
    input_shape: Sequence[PositiveInt | None] | None = None,
    scale: str | Sequence[float] | None = None,
    **options: Any,
) -> Backbone:
    """Load a pretrained model with its own preprocessing bound in front.

    Args:
        source: `keras.applications/NAME` for any builder there; `reusekit/glyphnet`, the small
            network of pictures that this package carries, and `reusekit/prosenet`, the one of
            texts; the path of a `.keras`, `.h5` or `.hdf5` file;
            `keras_hub/PRESET` or the path of a folder with a KerasHub preset; `models:/NAME@ALIAS`,
            `models:/NAME/VERSION`, `models:/MODEL_ID` or `runs:/RUN_ID/NAME` for what MLflow holds.
            Packages may add schemes of their own by an entry point in the group
            `reusekit.backbones`.
        weights: The source's pretrained weights where `default` (`imagenet` for
            `keras.applications`, `letters` for glyphnet, `documentation` for prosenet), the path of
            a weights file, or None for random weights. Sources that hold their own weights take
            `default` and None.
        input_shape: Shape of one example, (height, width, channels). None for the source's own.
        scale: For a saved model that was trained on scaled pixels and does not scale them itself:
            the range that pixels are brought to in front of it, `0..1`, `-1..1` or `0..255`; the
            way of ImageNet, `caffe` or `torch`; or a factor and what is added then. None where
            the model takes pixels, or is fed something else.
        **options: What else the builder takes; see its Keras documentation.

    Returns:
        The `Backbone`. Its model takes raw input: pixels in [0, 255], float32, shape
        (batch, height, width, channels). What a file says is frozen is, with all that it holds;
        Keras itself would train what such layers make when they are built.

    Raises:
        BackboneError: An unknown source or option, or weights that cannot be had; the message says
            what to do. A failed download never turns into random weights.

    Example:
        >>> import reusekit as rk
        >>> backbone = rk.load_backbone("reusekit/glyphnet")
        >>> backbone.model.input_shape
        (None, 32, 32, 1)
        >>> rk.load_backbone("keras.applications/ResNet5")
        Traceback (most recent call last):
        ...
        reusekit.errors.BackboneError: Expected the name of a backbone. Received: ...
    """
    source = _home(os.fspath(source))
    weights = weights if weights is None else _home(os.fspath(weights))
    if len(source) > _LONGEST:
        raise BackboneError(
            f"Expected the name of a backbone or a path, of at most {_LONGEST:,} characters. "
            f"Received: {len(source):,} characters, {source[:50]!r}..."
        )
    found = _load(source, weights, input_shape, options)
    return found if scale is None else _scaled(found, scale)


def _home(path: str) -> str:
    """Return a path in the home folder in full, and any other source as it is."""
    return str(expanded(path, BackboneError)) if path.startswith("~") else path


def _load(
    source: str,
    weights: str | os.PathLike | None,
    input_shape: Sequence[int | None] | None,
    options: dict[str, Any],
) -> Backbone:
    if source in _CARRIED:
        _refuse_options(source, options)
        return _CARRIED[source](weights, input_shape)
    if source.startswith(applications.PREFIX):
        name = source.removeprefix(applications.PREFIX)
        weights = "imagenet" if weights == "default" else weights
        return applications.load_application(name, weights, input_shape, **options)
    if source.startswith(hub.SCHEMES):
        source = hub.PREFIX + source
    if source.startswith(hub.PREFIX) or hub.is_preset(Path(source)):
        return hub.load_preset(source, weights, input_shape, **options)
    scheme, colon, _ = source.partition(":")
    scheme = {"runs": "models"}.get(scheme, scheme)  # MLflow's, too
    found = entry_points(group=PLUGINS, name=scheme) if colon else ()
    if found:
        loader = next(iter(found)).load()
    elif os.path.exists(source) or source.endswith(files.SUFFIXES):
        loader = files.load_file
    else:
        raise BackboneError(
            f"Expected the name of a backbone, or the path of a model. Received: {source!r}. "
            f"{nearest(source, sources())}"
        )
    _refuse_options(source, options)
    return loader(source, weights, input_shape)


def _refuse_options(source: str, options: dict[str, Any]) -> None:
    if options:
        raise BackboneError(
            f"Expected no options for {source}, which takes none. Received: {', '.join(options)}."
        )


def _scaled(backbone: Backbone, scale: str | Sequence[float]) -> Backbone:
    """Return the backbone with pixels brought to a range in front of it."""
    shapes = [tuple(tensor.shape) for tensor in backbone.model.inputs]
    if backbone.preprocessing is not None or len(shapes) != 1 or len(shapes[0]) != 4:
        raise BackboneError(
            f"Expected a scale for a saved model of one image input alone. Received: "
            f"{backbone.source}, which "
            + (
                "brings the preprocessing that it was trained with."
                if backbone.preprocessing is not None
                else f"takes {', '.join(map(str, shapes))}."
            )
        )
    preprocessing = scaling(scale, shapes[0][1:])
    if preprocessing is None:
        return backbone
    front: Any = scaling(scale, shapes[0][1:])
    model = take_over(backbone.model, front)
    return replace(backbone, model=model, preprocessing=preprocessing)
