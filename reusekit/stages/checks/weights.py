"""Checks of ties, optimizers, rates and classes."""

import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from reusekit.backbones.files import read_file
from reusekit.graph import keras_internals
from reusekit.graph.addresses import without_call_number
from reusekit.sharing import tie, tied_weights
from reusekit.stages.checks.finding import Finding, Mend
from reusekit.stages.checks.patient import Patient, once
from reusekit.training import LayerwiseOptimizer

_FEW_NUMBERS = 16
"""The numbers of a weight below which two that are equal may be so by chance."""
_UNBUILT = "saved optimizer has 2 variables"  # a rate and a number of steps: it never trained
UNREADABLE = "The compilation cannot be read: "
"""The beginning of the complaint about a file whose model is read and whose compilation is not."""


def ties(patient: Patient) -> Iterator[Finding]:
    """Look for weights that were one, or will be two once saved."""
    if patient.complaints is None:
        yield from _lost_when_saved(patient)
    embeddings = [
        (call, call.operation.embeddings)
        for call in once(patient.calls)
        if isinstance(call.operation, keras.layers.Embedding)
    ]
    others = [
        (call, variable)
        for call in once(patient.calls)
        if isinstance(call.operation, keras.Layer)
        for variable in call.operation.weights
        if math.prod(variable.shape) >= _FEW_NUMBERS and len(variable.shape) == 2
    ]
    trained = {id(variable) for variable in patient.model.trainable_variables}
    for (one, mine), (other, theirs) in _pairs(embeddings, others):
        turned = None if trained.isdisjoint((id(mine), id(theirs))) else _equal(mine, theirs)
        if turned is None:
            continue
        a = f"{without_call_number(one.address)}/{mine.name}"
        b = f"{without_call_number(other.address)}/{theirs.name}"
        how: Any = "transpose" if turned else None
        yield Finding(
            b,
            f"It is equal to {a}{' transposed' if turned else ''} and a weight of its own: a "
            "tie was lost when the model was saved or copied, and training parts them.",
            f"rk.tie(model, {a!r}, {b!r}, transform={how!r}).",
            "keras #10485, #20172",
            _tied(a, b, how),
        )  # fmt: skip

    for call in patient.calls:
        given = keras.tree.flatten((call.args, call.kwargs))
        for constant in (one for one in given if keras.ops.is_tensor(one)):
            for one, mine in embeddings:
                if _equal(mine, constant) is not None:
                    yield Finding(
                        call.address,
                        f"It takes the numbers that {one.address!r} had as a constant, and "
                        "not the weight: they are never trained, and no tie.",
                        f"rk.layers.TiedDense on the layer {one.address!r}.",
                        "keras #10485",
                    )  # fmt: skip


def _lost_when_saved(patient: Patient) -> Iterator[Finding]:
    model = patient.model
    known = tied_weights(model) if model.built else []
    if not known:
        return
    kept: set[Any] = set()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        try:
            # A model whose layers cannot be read back by themselves says nothing of its ties.
            keras.saving.deserialize_keras_object(
                keras.saving.serialize_keras_object(model), safe_mode=True
            )
        except Exception:  # whatever a user's configuration raises
            return
        try:
            model.save(path)
            kept = {(one.owners, one.name) for one in tied_weights(read_file(path, patient.name))}
        except (ValueError, TypeError, NotImplementedError, RuntimeError):
            pass  # it cannot be loaded: none is kept
    for one in known:
        if (one.owners, one.name) in kept:
            continue
        yield Finding(
            one.owners[0],
            f"{' and '.join(one.owners)} share {one.name!r}, and a saved file does not keep "
            "that: loaded, they are two weights, or it does not load.",
            "rk.layers.TiedDense(source), or rk.tie on a model without the tie.",
            "keras #20172; PEFT #2777",
        )  # fmt: skip


def optimizer(patient: Patient) -> Iterator[Finding]:
    """Look for an optimizer that was made for other variables than are trainable now."""
    skipped = [
        one
        for one in patient.complaints or ()
        if "variable loading for opt" in one and _UNBUILT not in one
    ]
    made = patient.optimizer()
    if isinstance(made, LayerwiseOptimizer):
        if _without_rate(patient, made):
            return  # `rates` tells of these
        made = made.inner_optimizer
    held = keras_internals.variables_of(made) if made and made.built else []
    trained = {id(variable) for variable in patient.model.trainable_variables}
    # Keras builds that of an .h5 file for no variable at all.
    strange = bool(held) and {id(variable) for variable in held} != trained
    if not (skipped or strange):
        return
    yield Finding(
        "",
        "The optimizer was made for other variables than are trainable now: frozen ones are "
        "among its state, or thawed ones are not trained.",
        "Compile the model again after every change of trainable.",
        "keras #9965",
        lambda model: model,  # what is mended is not compiled
    )  # fmt: skip


def rates(patient: Patient) -> Iterator[Finding]:
    """Look for learning rates by layer that are of no variable, and for variables without one."""
    made = patient.optimizer()
    without = _without_rate(patient, made)
    if without:
        yield Finding(
            ", ".join(without[:3]),
            f"{len(without)} of {len(patient.model.trainable_variables)} trainable variables have "
            "no learning rate.",
            "rk.layerwise_optimizer(model, ...) after the last change of trainable.",
            "timm #2691, #2712",
        )  # fmt: skip
    paths = [variable.path for variable in patient.model.variables]
    for pattern in keras_internals.patterns_of(made) if made else ():
        if not any(pattern == path or re.fullmatch(pattern, path) for path in paths):
            yield Finding(
                "",
                f"The optimizer for {pattern!r} is that of no variable: patterns match whole "
                "paths, and those it was meant for train by the default one.",
                f"A pattern such as '{paths[0].split('/')[0]}/.*'; the paths are those of "
                "model.variables.",
                "keras #22873",
            )  # fmt: skip


def _without_rate(patient: Patient, made: Any) -> list[str]:
    if not isinstance(made, LayerwiseOptimizer):
        return []
    known = {one.path for one in made.rates}
    wanted = [variable.path for variable in patient.model.trainable_variables]
    return [path for path in wanted if path not in known]


def classes(patient: Patient) -> Iterator[Finding]:
    """Look for losses, metrics and optimizers of the file that nobody has registered."""
    for complaint in patient.complaints or ():
        if complaint.startswith(UNREADABLE):
            yield Finding(
                "",
                "The file does not load with its compilation: "
                + complaint.removeprefix(UNREADABLE),
                "Register it with keras.saving.register_keras_serializable where it is defined, or "
                "load the file with compile=False.",
                "keras #19373",
                lambda model: model,  # what is mended is not compiled
            )  # fmt: skip


def _pairs(embeddings: list, others: list) -> Iterator[tuple]:
    seen: set[frozenset[int]] = set()
    for mine, theirs in ((a, b) for a in embeddings for b in others):
        key = frozenset((id(mine[1]), id(theirs[1])))
        if len(key) == 2 and key not in seen:
            seen.add(key)
            yield mine, theirs


def _equal(one: Any, other: Any) -> bool | None:
    """Return False for equal weights, True for equal ones of which one is transposed, else None."""
    shapes = tuple(one.shape), tuple(other.shape)
    if shapes[0] != shapes[1] and shapes[0] != shapes[1][::-1]:
        return None
    a, b = (keras.ops.convert_to_numpy(variable) for variable in (one, other))
    if np.ptp(a) == 0:
        return None
    if shapes[0] == shapes[1] and np.array_equal(a, b):
        return False
    return True if shapes[0] == shapes[1][::-1] and np.array_equal(a, b.T) else None


def _tied(a: str, b: str, transform: Any) -> Mend:
    return lambda model: tie(model, a, b, transform)
