"""A Keras model as a folder that MLflow can load, written without running the model."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import keras
import mlflow.keras
import numpy as np
import pandas as pd
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

from reusekit.errors import DataError
from reusekit.graph import read
from reusekit.graph.keras_internals import all_layers
from reusekit.tracking.usage import USAGE, Usage

WEIGHTS = Path("data", "model.keras")
"""Where MLflow's Keras flavour keeps the model, inside a model's folder."""

LOADER = "reusekit.tracking.saved"
"""What MLflow imports to serve a model with layers of reusekit's own, or to answer with names."""

COMBINED_LOADER = "reusekit.tracking.combined"
"""The same for a combined model."""

_SERVED = "__pyfunc_model_path__"
"""The environment variable by which MLflow tells a scoring server what it serves."""


class _Elsewhere:
    """An empty stand-in for a model whose weights are stored with its parts."""

    def save(self, path: str) -> None:
        """Leave the file out; a reference takes its place."""


def save_model(
    model: keras.Model, folder: Path, by_reference: bool = False, usage: Usage | None = None
) -> None:
    """Write a model as MLflow does, with its signature and what it needs where it is loaded.

    Args:
        model: The model.
        folder: Where to; must not exist.
        by_reference: Leave out the file with its weights, which are stored with its parts.
        usage: How its inputs are treated, and the names of its outputs, which are stored with it.
            `mlflow.pyfunc` answers with them. Of a model that loads where reusekit is not, the
            stored description names no reusekit; `name_answers` then does it where it is fetched.
    """
    tied = needs_reusekit(model)
    mlflow.keras.save_model(
        _Elsewhere() if by_reference else model,
        str(folder),
        signature=signature(model),
        # Named here, since MLflow takes 6 to 14 seconds to infer them.
        pip_requirements=requirements(model, by_reference),
    )
    if usage is not None:
        (folder / USAGE).parent.mkdir(exist_ok=True)
        (folder / USAGE).write_text(usage.model_dump_json(indent=1, exclude_defaults=True))
    if tied or (by_reference and usage is not None):
        _load_with_reusekit(folder, usage)


def name_answers(folder: Path, usage: Usage) -> None:
    """Have `mlflow.pyfunc` answer with names from a fetched model, which then needs reusekit.

    Args:
        folder: A saved model that was stored so as to load where reusekit is not, or one that
            answers with names already.
        usage: The names.
    """
    if read_description(folder).flavors["python_function"]["loader_module"] == LOADER:
        return
    _load_with_reusekit(folder, usage)
    needed = f"reusekit=={version('reusekit')}"  # of environments that MLflow makes for the model
    with (folder / "requirements.txt").open("a") as file:
        file.write(f"\n{needed}\n")
    conda = yaml.safe_load((folder / "conda.yaml").read_text("utf-8"))
    next(one for one in conda["dependencies"] if isinstance(one, dict))["pip"].append(needed)
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False), "utf-8")


def _load_with_reusekit(folder: Path, usage: Usage | None) -> None:
    """Have `mlflow.pyfunc` import reusekit, for its layers and for the names of answers."""
    written = read_description(folder)
    written.flavors["python_function"]["loader_module"] = LOADER
    if usage is not None:  # MLflow itself saves no model without a signature of its inputs
        written.signature = named_signature(usage)
    written.save(folder / MLMODEL_FILE_NAME)


def read_description(folder: Path) -> Model:
    """Read the description of a saved model; MLflow's reader decodes percent signs in its path."""
    return Model.from_dict(yaml.safe_load((folder / MLMODEL_FILE_NAME).read_text("utf-8")))


def _load_pyfunc(path: str) -> Any:
    """Load for `mlflow.pyfunc`, in a process that may not know reusekit's layers yet.

    Importing this module has imported reusekit, and so registered them with Keras.
    """
    served = mlflow.keras._load_pyfunc(path)
    file = Path(path, USAGE)
    if not file.is_file():  # as of models of before
        return served
    return _Named(served.get_raw_model(), Usage.read(file, "The model"))


class Answering(ABC):
    """A model that answers raw inputs with names, as `mlflow.pyfunc` calls it."""

    @abstractmethod
    def answer(self, data: Any, params: Mapping[str, Any], files: bool) -> pd.DataFrame:
        """Answer; `files` is True where text may be the path of a picture."""

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Predict raw inputs; see `Usage.predict`."""
        served = _SERVED in os.environ  # paths would be a stranger's then
        try:
            return self.answer(data, params or {}, files=not served)
        except DataError as error:
            if not served:
                raise
            # The server tells its callers of no other error than MLflow's own.
            raise MlflowException.invalid_parameter_value(str(error)) from error


class _Named(Answering):
    """A single model and its names."""

    def __init__(self, model: keras.Model, usage: Usage) -> None:
        self._model, self._usage = model, usage

    def get_raw_model(self) -> keras.Model:
        """Return the Keras model, as `unwrap_python_model` and the like expect it."""
        return self._model

    def answer(self, data: Any, params: Mapping[str, Any], files: bool) -> pd.DataFrame:
        """Answer by the model's own usage."""
        return self._usage.predict(self._model, data, bool(params.get("probabilities")), files)


def signature(model: keras.Model) -> ModelSignature:
    """Return a model's signature, read off its tensors.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> signature(model).outputs
        [Tensor('float32', (-1, 3))]
    """
    graph = read(model)
    return ModelSignature(_schema(graph.input_structure), _schema(graph.output_structure))


def named_signature(usage: Usage, *more: ParamSpec) -> ModelSignature:
    """Return the signature of a model that answers with names.

    It takes raw inputs of several kinds, which no signature of MLflow's can say, and so none is
    given for them.

    Args:
        usage: The names.
        more: What it can be asked beside `probabilities`.
    """
    asked = ParamSchema([ParamSpec("probabilities", DataType.boolean, False), *more])
    return ModelSignature(outputs=_answers(usage), params=asked)


def _answers(usage: Usage) -> Schema:
    """Return the columns of what a model answers."""
    kinds: dict[str, Any] = {
        "number": DataType.float,
        "word": DataType.string,
        "words": Array(DataType.string),
        "numbers": Array(DataType.double),
    }
    return Schema([ColSpec(kinds[kind], name) for name, kind in usage.answers().items()])


def _schema(structure: Any) -> Schema:
    tensors = keras.tree.flatten(structure)
    if isinstance(structure, dict) and len(structure) == len(tensors):
        # The keys that they are fed by, whatever the tensors are called.
        names = keras.tree.flatten({key: key for key in structure})
    else:  # a single tensor goes without a name
        names = [tensor.address if len(tensors) > 1 else None for tensor in tensors]
    return Schema(
        [
            TensorSpec(
                _numpy_type(tensor.dtype),
                [-1 if size is None else size for size in tensor.shape],
                name,
            )
            for tensor, name in zip(tensors, names, strict=True)
        ]
    )


def _numpy_type(dtype: str) -> np.dtype:
    """Return the NumPy type of what goes in or comes out; NumPy itself has no bfloat16."""
    return np.dtype({"string": "str", "bfloat16": "float32"}.get(dtype, dtype))


def requirements(model: keras.Model, by_reference: bool = False) -> list[str]:
    """Return the packages a saved model needs: Keras, its backend, its classes' own.

    Args:
        model: A model with layers of reusekit's own, such as a `TiedDense`, loads once reusekit
            has been imported; any other needs no reusekit.
        by_reference: Whether its parts are stored elsewhere: then reusekit joins them.
    """
    backend = {"torch": "torch", "jax": "jax"}.get(keras.backend.backend(), "tensorflow")
    packages = ["keras", backend, "numpy"]
    if by_reference or needs_reusekit(model):
        packages.append("reusekit")
    modules = sorted({module.partition(".")[0] for module in _modules(model)})
    if not _providers().keys() >= set(modules):  # installed since, or defined in a script
        _providers.cache_clear()
    for module in modules:
        packages += _providers().get(module, [])
    return [f"{package}=={version(package)}" for package in dict.fromkeys(packages)]


@cache
def _providers() -> Mapping[str, list[str]]:
    """Return the packages that provide each module: to look takes most of a second."""
    return packages_distributions()


def _modules(model: keras.Model) -> Iterator[str]:
    """Yield the modules of a model's classes, initialisers and the like included."""
    yield from (type(layer).__module__ for layer in all_layers(model))
    waiting = [keras.saving.serialize_keras_object(model)]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += part.values()
            if isinstance(part.get("module"), str) and "class_name" in part:
                yield part["module"]
        elif isinstance(part, list | tuple):
            waiting += part


def needs_reusekit(model: keras.Model) -> bool:
    """Return whether a model has layers of reusekit's own."""
    return any(type(layer).__module__.startswith("reusekit.") for layer in all_layers(model))
