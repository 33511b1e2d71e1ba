"""One door to every source of pretrained models."""

import os
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from reusekit.arguments import AnyPath, checked
from reusekit.backbones import applications, files, glyphnet, hub
from reusekit.backbones.backbone import Backbone
from reusekit.errors import BackboneError, nearest

PLUGINS = "reusekit.backbones"
"""Group of entry points: a scheme, and what loads `SCHEME:...`, called as `files.load_file` is."""

_LONGEST = 1000  # characters of a source


def sources() -> list[str]:
    """Every source that `load_backbone` knows by name.

    Example:
        >>> sources()[:2]
        ['reusekit/glyphnet', 'keras.applications/ConvNeXtBase']
    """
    return [glyphnet.SOURCE, *(applications.PREFIX + name for name in applications.builders())]


@checked(BackboneError)
def load_backbone(
    source: AnyPath,
    /,
    weights: AnyPath | None = "default",
    input_shape: Sequence[PositiveInt | None] | None = None,
    **options: Any,
) -> Backbone:
    """Load a pretrained model with its own preprocessing bound in front.

    Args:
        source: `keras.applications/NAME` for any builder there; `reusekit/glyphnet`, the small
            network that this package carries; the path of a `.keras` file; `keras_hub/PRESET` or
            the path of a folder with a KerasHub preset; `models:/NAME@ALIAS`,
            `models:/NAME/VERSION`, `models:/MODEL_ID` or `runs:/RUN_ID/NAME` for what MLflow holds.
            Packages may add schemes of their own by an entry point in the group
            `reusekit.backbones`.
        weights: The source's pretrained weights where `default` (`imagenet` for
            `keras.applications`, `letters` for glyphnet), the path of a weights file, or None for
            random weights. Sources that hold their own weights take `default` and None.
        input_shape: Shape of one example, (height, width, channels). None for the source's own.
        **options: What else the builder takes; see its Keras documentation.

    Returns:
        The `Backbone`. Its model takes raw input: pixels in [0, 255], float32, shape
        (batch, height, width, channels).

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
        reusekit.errors.BackboneError: Unknown backbone 'keras.applications/ResNet5'. Did you ...
    """
    source = os.fspath(source)
    if len(source) > _LONGEST:
        raise BackboneError(
            f"Expected the name of a backbone or a path, of at most {_LONGEST:,} characters. "
            f"Received: {len(source):,} characters, {source[:50]!r}..."
        )
    if source == glyphnet.SOURCE:
        if options:
            raise BackboneError(f"{source} takes no options. Received: {', '.join(options)}.")
        return glyphnet.load_glyphnet(weights, input_shape)
    if source.startswith(applications.PREFIX):
        name = source.removeprefix(applications.PREFIX)
        weights = "imagenet" if weights == "default" else weights
        return applications.load_application(name, weights, input_shape, **options)
    if source.startswith(hub.PREFIX) or hub.is_preset(Path(source)):
        return hub.load_preset(source, weights, input_shape, **options)
    scheme, colon, _ = source.partition(":")
    scheme = {"runs": "models"}.get(scheme, scheme)  # MLflow's, too
    found = entry_points(group=PLUGINS, name=scheme) if colon else ()
    if not found and not source.endswith(files.SUFFIX):
        raise BackboneError(f"Unknown backbone {source!r}. {nearest(source, sources())}")
    if options:
        raise BackboneError(f"{source} takes no options. Received: {', '.join(options)}.")
    loader = next(iter(found)).load() if found else files.load_file
    return loader(source, weights, input_shape)
