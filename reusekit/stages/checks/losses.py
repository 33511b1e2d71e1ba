"""Checks of outputs against the loss and the labels."""

from collections.abc import Iterator
from typing import Any

import keras

from reusekit.graph import Call, Graph, Tensor, keras_internals
from reusekit.stages.checks.finding import Finding
from reusekit.stages.checks.patient import Patient

_CROSSENTROPIES = (
    keras.losses.binary_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
)
_OF_CLASSES = ("categorical_crossentropy", "sparse_categorical_crossentropy")
_SQUASHING = (keras.activations.softmax, keras.activations.sigmoid)


def outputs(patient: Patient) -> Iterator[Finding]:
    """Look for a loss that does not fit an output, and for an output that is constant."""
    graph = patient.whole
    losses = _losses(patient.model, len(graph.outputs))
    for number, output in enumerate(graph.outputs):
        maker, activation = _last(graph, output)
        if activation is keras.activations.softmax and output.shape[-1] == 1:
            yield Finding(
                maker.address,
                "The model gives a softmax over one number, which is 1 whatever it is fed.",
                "A sigmoid for two classes, or as many outputs as there are classes.",
                "keras #500",
            )  # fmt: skip
            continue
        loss = losses[number] if number < len(losses) else None
        if output.shape[-1] == 1 and _name(loss) in _OF_CLASSES:
            yield Finding(
                maker.address,
                f"The model gives one number, and its loss is {_name(loss)}, which takes one for "
                "each class: it is 0 whatever the label, or not a number.",
                "Compile with binary_crossentropy, or as many outputs as there are classes.",
                "keras #500",
            )  # fmt: skip
            continue
        from_logits, told = _from_logits(loss), _gives_probabilities(activation)
        if from_logits is None or told is None or told != from_logits:
            continue
        gives, takes = ("probabilities", "scores") if told else ("scores", "probabilities")
        yield Finding(
            maker.address,
            f"The model gives {gives}, and its loss takes {takes} (from_logits={from_logits}): it "
            "trains badly, if Keras does not look behind the activation.",
            f"Compile with from_logits={not from_logits}.",
            "keras-hub #1008",
        )  # fmt: skip


def labels(patient: Patient) -> Iterator[Finding]:
    """Look for labels that the outputs cannot tell."""
    graph, data = patient.whole, patient.data
    assert data is not None
    task, shapes = data.task, [one.shape for one in graph.outputs]
    if task.parts or len(shapes) != 1 or len(shapes[0]) != 2:
        return
    width, wanted = shapes[0][-1], task.size
    binary = task.kind == "classification" and wanted == 2 and width == 1
    if width in (None, wanted) or binary:
        return
    yield Finding(
        graph.outputs[0].address,
        f"The model has {width} outputs, and the data {wanted} "
        + ("classes: " if task.kind == "classification" else "labels: ")
        + ", ".join(task.names[:5]) + (", ..." if wanted > 5 else "") + ".",
        f"rk.attach(bottom, head) with a head of {wanted}.",
        "tensorflow #60431",
    )  # fmt: skip


def _losses(model: keras.Model, count: int) -> list[Any]:
    """Return the loss of each output, in their order; None where there is none."""
    given: Any = getattr(model, "loss", None)
    names = list(getattr(model, "output_names", ()))
    if isinstance(given, dict):
        found = [given.get(name) for name in names]
        if isinstance(getattr(model, "output", None), dict):  # then keys may name outputs, too
            keys = sorted(model.output)
            found = [one or given.get(key) for one, key in zip(found, keys, strict=False)]
    elif isinstance(given, (list, tuple)):
        found = list(given)
    else:
        found = [given] if count == 1 else []
    return [keras.losses.get(one) if isinstance(one, str) else one for one in found]


def _name(loss: Any) -> str:
    return str(getattr(loss, "name", getattr(loss, "__name__", "")))


def _from_logits(loss: Any) -> bool | None:
    """Return whether a loss takes scores; None for one that knows no difference."""
    if isinstance(loss, keras.losses.Loss):
        return loss.get_config().get("from_logits")
    return False if loss in _CROSSENTROPIES else None


def _last(graph: Graph, output: Tensor) -> tuple[Call, Any]:
    """Return the call that makes an output, and its activation; None where it does not say."""
    maker = call = graph.maker[output]
    while isinstance(call.operation, (keras.layers.Identity, keras.layers.Reshape)) or (
        isinstance(call.operation, keras.layers.Activation)
        and call.operation.activation is keras.activations.linear
    ):
        call = graph.maker[call.inputs[0]]
    operation = call.operation
    if isinstance(operation, (keras.layers.Softmax, *keras_internals.ENDING_OPERATIONS[:2])):
        return maker, keras.activations.softmax
    if isinstance(operation, keras_internals.ENDING_OPERATIONS):
        return maker, keras.activations.sigmoid
    kinds = (keras.layers.Activation, keras.layers.Dense, *keras_internals.CONVOLUTIONS)
    return maker, operation.activation if isinstance(operation, kinds) else None


def _gives_probabilities(activation: Any) -> bool | None:
    """Return whether an activation gives probabilities or scores; None for neither."""
    if activation in _SQUASHING:
        return True
    return False if activation is keras.activations.linear else None
