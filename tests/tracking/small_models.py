"""Small fine-tuned models, written and sent as pipelines do it."""

from functools import lru_cache
from pathlib import Path

import keras
import mlflow
import numpy as np

import reusekit as rk
from reusekit.backbones import Backbone
from reusekit.sharing import count_params
from reusekit.surgery import Split
from reusekit.tracking import ROLES, Ledger, Registration, Usage, prepare, send, take_ledgers

X = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
CUT = "hidden"


def backbone(seed: int = 0) -> Backbone:
    """Two layers that stand for a pretrained network."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), name="features")
    x = keras.layers.Dense(8, activation="relu", name="first")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Dense(4, name=CUT)(x)
    return Backbone(keras.Model(inputs, x, name="body"), None, "tests/body", None)


def with_head(body: Backbone, seed: int, classes: int = 3) -> keras.Model:
    """A head of its own on the same body."""
    keras.utils.set_random_seed(seed)
    x = keras.layers.Dense(classes, activation="softmax", name="predictions")(body.model.output)
    return keras.Model(body.model.input, x, name="classifier")


@lru_cache(maxsize=16)
def _measured(model: keras.Model, cut: str) -> tuple[Split, dict[str, Ledger]]:
    """Both parts, and what they cost; timing them takes longer than all else."""
    parts = rk.split(model, cut)
    return parts, dict(
        zip(ROLES, take_ledgers([parts.bottom, parts.top, parts.source]), strict=True)
    )


def written(
    folder: Path, model: keras.Model, body: Backbone, name: str, frozen_up_to: str = CUT, **options
) -> Path:
    """A folder that holds bottom, top and whole, and has not been sent."""
    parts, ledgers = _measured(model, frozen_up_to)
    folder.mkdir(parents=True)
    said = Registration(
        **{"name": name, "data": "f00d", "alias": "champion", "metrics": {"test_accuracy": 0.5}}
        | options
    )
    prepare(folder, parts, body, ledgers, said)
    return folder


def sent(
    folder: Path, model: keras.Model, body: Backbone, name: str, experiment: str, **options
) -> mlflow.entities.model_registry.ModelVersion:
    """Write and send it in a run of its own."""
    written(folder, model, body, name, **options)
    mlflow.set_experiment(experiment)
    with mlflow.start_run() as run:
        return send(folder, mlflow.MlflowClient(), run.info.run_id)


def register(
    folder: Path,
    name: str,
    model: keras.Model,
    usage: Usage | None,
    source: Backbone | None = None,
    cut: str = CUT,
    **options,
) -> mlflow.entities.model_registry.ModelVersion:
    """Register a model with names, and with costs that nobody measured."""
    costs = Ledger(count_params(backbone().model), 1, 1, 0.001, "not measured here: that is slow")
    source = source or Backbone(model, None, f"tests/{name}", None)
    said = Registration(name, "f00d", usage=usage, **options)
    prepare(folder, rk.split(model, cut), source, dict.fromkeys(ROLES, costs), said)
    with mlflow.start_run() as run:
        return send(folder, mlflow.MlflowClient(), run.info.run_id)
