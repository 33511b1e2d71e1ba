"""reusekit: cut pretrained Keras models anywhere, search how deep, register what is worth keeping.

`import reusekit as rk` costs what `import keras` does. What needs keras-tuner or matplotlib is
looked up where it is first used; MLflow and TensorFlow Datasets are imported by the rooms that need
them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reusekit.startup import is_command

if TYPE_CHECKING or not is_command():
    from reusekit.public import *  # noqa: F403

if TYPE_CHECKING:  # what `_LAZY` names
    from reusekit.features import FeatureStore, Padding, Plan, Trials, plan, stored_features
    from reusekit.search import (
        CutGridOracle,
        CutHyperModel,
        CutSearch,
        CutSweepOracle,
        CutTuner,
        Limits,
        SearchSpace,
        TrialData,
    )
    from reusekit.training.drawing import draw_cut

_LAZY = {
    **dict.fromkeys(
        (
            "CutGridOracle",
            "CutHyperModel",
            "CutSearch",
            "CutSweepOracle",
            "CutTuner",
            "Limits",
            "SearchSpace",
            "TrialData",
        ),
        "reusekit.search",
    ),
    "draw_cut": "reusekit.training.drawing",
    **dict.fromkeys(
        ("FeatureStore", "Padding", "Plan", "Trials", "plan", "stored_features"),
        "reusekit.features",
    ),
}

__all__ = [
    "AddressError",
    "AmbiguousAddressError",
    "Backbone",
    "BackboneError",
    "CacheError",
    "Certificate",
    "CertificateError",
    "ConfigError",
    "CopyError",
    "CutGridOracle",
    "CutHyperModel",
    "CutOrderError",
    "CutPoint",
    "CutPoints",
    "CutSearch",
    "CutSweepOracle",
    "CutTuner",
    "DataError",
    "DisconnectedError",
    "EditError",
    "Edited",
    "FeatureStore",
    "ForeignTensorError",
    "Freezing",
    "GradualUnfreezing",
    "HeadError",
    "Insert",
    "Limits",
    "NoGraphError",
    "Padding",
    "ParameterCounts",
    "Plan",
    "Remove",
    "Replace",
    "ReusekitError",
    "SearchSpace",
    "ShapeError",
    "Split",
    "SurgeryError",
    "Tie",
    "TieError",
    "TrackingError",
    "TrainingError",
    "TrialData",
    "Trials",
    "UnknownAddressError",
    "WideCutError",
    "attach",
    "clone",
    "count_params",
    "cut_points",
    "draw_cut",
    "edit",
    "expand",
    "extract",
    "find_layers",
    "flatten",
    "freeze",
    "heads",
    "insert",
    "join",
    "layers",
    "layerwise_optimizer",
    "load_backbone",
    "plan",
    "prepend",
    "remove",
    "replace",
    "segment",
    "split",
    "stored_features",
    "tie",
    "tied_weights",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY.get(name, "reusekit.public")), name)
    except ModuleNotFoundError as error:
        if name not in _LAZY or (error.name or "").startswith("reusekit"):
            raise
        raise ModuleNotFoundError(
            f"rk.{name} needs {error.name}, which is not installed here. Expected the TensorFlow "
            "backend of Keras and all that reusekit depends on: pip install reusekit.",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
