"""reusekit: cut pretrained Keras models anywhere, search how deep, register what is worth keeping.

`import reusekit as rk` costs what `import keras` does. The public names are in `__init__.pyi`; each
is looked up where it is first used, since some need keras-tuner or MLflow.
"""

import warnings
from importlib import import_module, metadata
from typing import Any

import lazy_loader

from reusekit.startup import is_command, start_keras

_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_MOVED = {
    "reusekit.errors": (
        "AddressError",
        "AmbiguousAddressError",
        "CacheError",
        "CertificateError",
        "CopyError",
        "CutOrderError",
        "DisconnectedError",
        "EditError",
        "ForeignTensorError",
        "HeadError",
        "NoGraphError",
        "ShapeError",
        "TieError",
        "TrainingError",
        "UnknownAddressError",
        "WideCutError",
    ),
    "reusekit.backbones": ("Backbone",),
    "reusekit.features": ("Padding", "stored_features"),
    "reusekit.graph": ("CutPoints", "find_layers"),
    "reusekit.planning": ("Plan", "Trials"),
    "reusekit.search": ("CutGridOracle", "CutSweepOracle", "Limits", "TrialData"),
    "reusekit.sharing": ("ParameterCounts", "Tie"),
    "reusekit.surgery": ("Certificate", "Edited", "Split", "expand", "prepend"),
    "reusekit.training": ("Freezing", "GradualUnfreezing"),
    "reusekit.training.drawing": ("draw_cut",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("reusekit")
    for room, names in _MOVED.items():
        if name in names:
            warnings.warn(f"rk.{name} is {room}.{name} now.", DeprecationWarning, stacklevel=2)
            return getattr(import_module(room), name)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    start_keras()
    try:
        return _find(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("reusekit"):
            raise
        raise ModuleNotFoundError(
            f"rk.{name} needs {error.name}, which is not installed here. Expected the TensorFlow "
            "backend of Keras and all that reusekit depends on: pip install reusekit.",
            name=error.name,
        ) from error


if not is_command():
    start_keras()
    # Keras finds the tied layers of saved models in `sharing`; the others cost little.
    for room in ("sharing", "training", "backbones"):
        import_module(f"reusekit.{room}")
