"""Checks of what training does to the frozen part of a model."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import keras
import numpy as np

from reusekit.graph import Call, Graph, keras_internals, read
from reusekit.graph.addresses import without_call_number
from reusekit.stages.checks.finding import Finding, Mend
from reusekit.stages.checks.patient import Patient, calls_of, once
from reusekit.surgery import rates


def batch_norm(patient: Patient) -> Iterator[Finding]:
    """Look for BatchNormalization that trains among frozen layers, or always."""
    for prefix, graph in patient.graphs.items():
        for call in once([*_inside(graph), *_ends_of_frozen_models(graph)]):
            if _is_batch_norm(call.operation) and call.operation.trainable:
                address = without_call_number(call.address)
                layers = "".join(f".get_layer({n!r})" for n in (prefix + address).split("/"))
                yield Finding(
                    prefix + address,
                    "BatchNormalization is trained though what surrounds it is frozen: its moving "
                    "statistics leave those that the frozen weights were trained with.",
                    f"rk.freeze(model, up_to=...), or model{layers}.trainable = False.",
                    "keras #4762, #9965",
                    None if prefix else _frozen_at(address),
                )  # fmt: skip
        for call in calls_of(graph):
            obeys = _is_batch_norm(call.operation) and call.operation.trainable
            if obeys and call.kwargs.get("training") is True:
                yield Finding(
                    prefix + call.address,
                    "BatchNormalization is called with training=True: where that is obeyed, as in "
                    "model(x), predictions depend on what else is in the batch.",
                    "Build the model again without training=True.",
                    "keras #9214",
                )  # fmt: skip


def training_mode(patient: Patient) -> Iterator[Finding]:
    """Look for dropout and noise inside the frozen part that training switches on."""
    for prefix, graph in patient.graphs.items():
        for call in once(_inside(graph)):
            silenced = any(scope.kwargs.get("training") is False for scope in call.scopes)
            if not isinstance(call.operation, keras.Layer) or (silenced and _fit_obeys_training()):
                continue
            if any(map(rates.drops, keras_internals.all_layers(call.operation))):
                address = without_call_number(call.address)
                yield Finding(
                    prefix + address,
                    "A frozen layer drops values or adds noise whenever the model is trained"
                    + ("." if _fit_obeys_training() else ", also where the base was called with "
                       "training=False, which `fit` of this Keras overrides."),
                    "rk.freeze(model, up_to=...), which sets its rate to 0.",
                    "keras #20285",
                    None if prefix else _silent_at(address),
                )  # fmt: skip


def frozen_and_trained(patient: Patient) -> Iterator[Finding]:
    """Look for frozen layers of which every weight is trained all the same."""
    trained = {id(variable) for variable in patient.model.trainable_variables}
    for prefix, graph in patient.graphs.items():
        for call in once(calls_of(graph)):
            if not isinstance(call.operation, keras.Layer) or call.operation.trainable:
                continue
            parts = keras_internals.all_layers(call.operation)
            kept = {id(one) for part in parts for one in keras_internals.trainable_kind(part)}
            if kept and kept <= trained:
                yield Finding(
                    prefix + without_call_number(call.address),
                    "The layer is frozen, and all of its weights are trained: it was frozen before "
                    "it made its parts, as Keras does with each layer that it reads from a file.",
                    "Load the file with rk.load_backbone, call rk.freeze(model, up_to=...), or set "
                    "trainable of the layer to True and to False again; then compile.",
                )  # fmt: skip


def _inside(graph: Graph) -> list[Call]:
    """Return the calls inside the frozen part.

    All weights that they depend on are frozen, and there are some; and either they have frozen
    weights themselves, or what has some depends on them, without trained ones between.
    BatchNormalization has no say.
    """
    calls = calls_of(graph)
    frozen = {
        call: _is_frozen(call.operation, graph)
        for call in calls
        if not _is_batch_norm(call.operation)
    }
    before: dict[Any, bool | None] = {}
    fed_by_frozen = []
    for call in calls:
        said = [before[tensor] for tensor in call.reads if before.get(tensor) is not None]
        if said and all(said):
            fed_by_frozen.append(call)
        own = frozen.get(call)
        known = said if own is None else [*said, own]
        for tensor in call.outputs:
            before[tensor] = all(known) if known else None
    leads: set[Any] = set()
    for call in reversed(calls):
        passes = frozen.get(call) is not False
        if passes and (frozen.get(call) or any(tensor in leads for tensor in call.outputs)):
            leads.update(call.reads)
    return [
        call
        for call in calls
        if (
            frozen.get(call) is not False
            and call in fed_by_frozen
            and any(one in leads for one in call.outputs)
        )
        or (frozen.get(call) and all(before.get(one) is not False for one in call.reads))
    ]


def _ends_of_frozen_models(graph: Graph) -> Iterator[Call]:
    """Yield the normalisations right behind frozen layers of nested models that are frozen else."""
    within: dict[int, list[Call]] = {}
    for call in calls_of(graph):
        if call.scopes:
            within.setdefault(id(call.scopes[-1].operation), []).append(call)
    for calls in within.values():
        frozen = {
            call: _is_frozen(call.operation, graph)
            for call in calls
            if not _is_batch_norm(call.operation)
        }
        for call in calls:
            ends = _is_batch_norm(call.operation) and frozen.get(graph.maker[call.inputs[0]])
            if ends and False not in frozen.values():
                yield call


def _is_batch_norm(operation: Any) -> bool:
    return isinstance(operation, keras.layers.BatchNormalization)


def _is_frozen(operation: Any, graph: Graph) -> bool | None:
    """Return whether all that could be trained of an operation is frozen; None without weights.

    The variables tell, since layers that hold trained ones may be frozen themselves (LoRA).
    """
    if not isinstance(operation, keras.Layer):
        return None
    if not any(map(keras_internals.trainable_kind, keras_internals.all_layers(operation))):
        return None
    trained = {id(variable) for variable in graph.model.trainable_variables}
    return trained.isdisjoint(map(id, operation.variables))


@cache
def _fit_obeys_training() -> bool:
    """Return whether a recorded training=False holds in `fit`; up to Keras 3.15 it does not."""
    x = keras.Input((64,))
    inner = keras.Model(x, keras.layers.Dropout(0.5)(x))
    outer = keras.Model(x, inner(x, training=False))
    return bool(np.all(np.asarray(outer(np.ones((1, 64), "float32"), training=True)) == 1))


def _layer_at(model: keras.Model, address: str) -> keras.Layer:
    calls = (call for call in read(model).calls if without_call_number(call.address) == address)
    return next(calls).operation


def _frozen_at(address: str) -> Mend:
    def mend(model: keras.Model) -> keras.Model:
        _layer_at(model, address).trainable = False
        return model

    return mend


def _silent_at(address: str) -> Mend:
    def mend(model: keras.Model) -> keras.Model:
        for part in keras_internals.all_layers(_layer_at(model, address)):
            rates.silence(part)
        return model

    return mend
