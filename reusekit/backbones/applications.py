"""Backbones from `keras.applications`, every builder of the installed Keras."""

import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import keras

from reusekit.backbones.backbone import Backbone
from reusekit.backbones.preprocessing import as_layers
from reusekit.errors import BackboneError, nearest
from reusekit.surgery.prefix import take_over

PREFIX = "keras.applications/"

# Arguments of the builders that this loader decides itself. `include_preprocessing=False` would
# part the weights from the preprocessing they were trained with; pooling and classes belong to the
# head.
_OURS = {
    "weights", "input_shape", "include_top", "input_tensor", "pooling", "include_preprocessing",
    "classes", "classifier_activation", "name",
}  # fmt: skip


@cache
def builders() -> dict[str, Callable[..., keras.Model]]:
    """Return the builders of `keras.applications` by name, as the installed Keras has them.

    Example:
        >>> len(builders())
        40
        >>> "ResNet50" in builders()
        True
    """
    return {
        name: builder
        for name, builder in sorted(vars(keras.applications).items())
        if inspect.isfunction(builder) and "weights" in inspect.signature(builder).parameters
    }


def load_application(
    name: str,
    /,
    weights: str | os.PathLike | None = "imagenet",
    input_shape: Sequence[int | None] | None = None,
    **options: Any,
) -> Backbone:
    """Build a model of `keras.applications` with its preprocessing in front.

    Args:
        name: A builder's name, such as `ResNet50`.
        weights: `imagenet` (downloaded by Keras once, then read from its cache), the path of a
            weights file, or None for random weights.
        input_shape: (height, width, channels); the builder's own default where None.
        **options: Further arguments of the builder, such as `alpha` of MobileNet.

    Returns:
        The backbone, without the classifier; its model takes raw pixels in [0, 255], float32, shape
        (batch, height, width, 3).

    Raises:
        BackboneError: An unknown name or option, a shape the builder refuses, or weights that
            cannot be had. Random weights are never a substitute.

    Example:
        >>> load_application("MobileNet", weights=None, input_shape=(32, 32, 3), alpha=0.25).name
        'MobileNet'
    """
    builder = builders().get(name)
    if builder is None:
        raise BackboneError(
            f"Expected the name of a backbone. Received: {PREFIX + name!r}. "
            f"{nearest(name, builders())}"
        )
    allowed = set(inspect.signature(builder).parameters) - _OURS - {"kwargs"}
    for option in options:
        if option not in allowed:
            raise BackboneError(
                f"Expected an option of {name}. Received: {option!r}. {nearest(option, allowed)}"
            )
    if input_shape is not None and (len(input_shape) != 3 or input_shape[-1] != 3):
        raise BackboneError(
            f"Expected input_shape=(height, width, 3) for {name}. Received: {tuple(input_shape)}. "
            "Leave grey images as they are: they get three channels where the data is loaded."
        )
    weights = _checked(weights, name)
    from reusekit.progress import kept_to_terminals  # rich's bars, which few who import this need

    try:
        with warnings.catch_warnings(), kept_to_terminals():
            # Keras warns where it leaves a layer at its random weights; here that is an error.
            warnings.filterwarnings("error", message=".*freshly-initialized weights.*")
            model = builder(
                weights=weights,
                input_shape=None if input_shape is None else tuple(input_shape),
                include_top=False,
                **options,
            )
    except Exception as error:
        raise BackboneError(_explained(error, name, weights)) from error
    module: Any = inspect.getmodule(builder)
    preprocess, shape = module.preprocess_input, model.input_shape[1:]
    preprocessing = as_layers(preprocess, shape)
    if preprocessing is not None:
        model = take_over(model, as_layers(preprocess, shape))
    return Backbone(model, preprocessing, PREFIX + name, weights)


def _checked(weights: str | os.PathLike | None, name: str) -> str | None:
    if weights is None or weights == "imagenet":
        return weights
    if not Path(weights).is_file():
        raise BackboneError(
            f"Expected weights of {name} as 'imagenet', None (random weights) or the path of a "
            f".weights.h5 or .h5 file that is there. Received: {str(weights)!r}."
        )
    return str(weights)


def _explained(error: Exception, name: str, weights: str | None) -> str:
    """Return one sentence for what a builder raised, with what to do about it."""
    cause = " ".join(str(error).split())
    if "URL fetch failure" in cause:
        cache_folder = Path(os.environ.get("KERAS_HOME", "~/.keras")) / "models"
        return (
            f"Expected the {weights!r} weights of {name} to be downloaded. Received: {cause}. "
            "Fetch that file elsewhere and pass its path as weights, or copy the folder "
            f"{cache_folder} from a machine where this worked; weights=None is for random weights."
        )
    if weights is None or weights == "imagenet":
        return f"Expected arguments that {name} takes. Received: others, of which it says: {cause}"
    return f"Expected weights that fit {name}. Received: those in {weights!r}: {cause}"
