"""Checks of a model under examination, each of which yields findings."""

import math
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from reusekit.backbones.files import read_file
from reusekit.backbones.preprocessing import RANGES, range_ratio
from reusekit.data import DataSplit
from reusekit.errors import NoGraphError
from reusekit.graph import Call, Graph, keras_internals, may_agree, read
from reusekit.graph.addresses import without_call_number
from reusekit.sharing import count_params, tied_weights
from reusekit.stages.findings import Finding, frozen_at, scaled, silent_at, tied, without
from reusekit.surgery import rates
from reusekit.training import LayerwiseOptimizer
from reusekit.training.training_mode import in_training

_UNLIKELY = 8.0
"""How many times as much inputs may vary as in training before it is called another range."""
_BATCH = 64
_FEW_NUMBERS = 16
"""The numbers of a weight below which two that are equal may be so by chance."""
_CROSSENTROPIES = (
    keras.losses.binary_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
)
_UNBUILT = "saved optimizer has 2 variables"  # a rate and a number of steps: it never trained


class Patient:
    """A model under examination; each check is a method that yields findings."""

    def __init__(
        self,
        model: keras.Model,
        name: str,
        data: DataSplit | None,
        complaints: list[str] | None = None,
    ):
        self.model, self.name, self.data = model, name, data
        self._complaints = complaints  # None for a model that is no file
        try:
            self._graph: Graph | None = read(model)
        except NoGraphError:
            self._graph = None

    @property
    def graph(self) -> Graph:
        """The graph that most checks look at, made only where there is one."""
        assert self._graph is not None
        return self._graph

    def checks(self) -> dict[str, Callable[[], Iterator[Finding]]]:
        """Return every check that can be made, by its name."""
        checks: dict[str, Callable[[], Iterator[Finding]]] = {
            "ties": self.ties,
            "optimizer": self.optimizer,
            "rates": self.rates,
        }
        if self._graph is not None:
            checks |= {
                "batch-norm": self.batch_norm,
                "training-mode": self.training_mode,
                "augmentation": self.augmentation,
                "scaling": self.scaling,
                "outputs": self.outputs,
            }
            if self.data is not None:
                checks |= {"input-range": self.input_range, "labels": self.labels}
        return checks

    # --- freezing -----------------------------------------------------------------------------

    @cached_property
    def _inside(self) -> list[Call]:
        """The calls inside the frozen part.

        All weights that they depend on are frozen, and there are some; and either they have frozen
        weights themselves, or what has some depends on them. BatchNormalization has no say.
        """
        calls = self._calls
        frozen = {
            call: _is_frozen(call.operation) for call in calls if not _is_batch_norm(call.operation)
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
            if frozen.get(call) or any(tensor in leads for tensor in call.outputs):
                leads.update(call.reads)
        return [
            call
            for call in calls
            if (call in fed_by_frozen and any(one in leads for one in call.outputs))
            or (frozen.get(call) and all(before.get(one) is not False for one in call.reads))
        ]

    @property
    def _calls(self) -> list[Call]:
        return [] if self._graph is None else [c for c in self.graph.calls if not c.is_input]

    def batch_norm(self) -> Iterator[Finding]:
        """Look for BatchNormalization that trains among frozen layers, or always."""
        for call in _once(self._inside):
            if _is_batch_norm(call.operation) and call.operation.trainable:
                address = without_call_number(call.address)
                yield Finding(
                    address,
                    "BatchNormalization is trained though what surrounds it is frozen: its moving "
                    "statistics leave those that the frozen weights were trained with.",
                    f"rk.freeze(model, up_to=...), or get_layer({address!r}).trainable = False.",
                    "keras #4762, #9965",
                    frozen_at(address),
                )  # fmt: skip
        for call in self._calls:
            obeys = _is_batch_norm(call.operation) and call.operation.trainable
            if obeys and call.kwargs.get("training") is True:
                yield Finding(
                    call.address,
                    "BatchNormalization is called with training=True: where that is obeyed, as in "
                    "model(x), predictions depend on what else is in the batch.",
                    "Build the model again without training=True.",
                    "keras #9214",
                )  # fmt: skip

    def training_mode(self) -> Iterator[Finding]:
        """Look for dropout and noise inside the frozen part that training switches on."""
        for call in _once(self._inside):
            if _fit_obeys_training() and any(
                s.kwargs.get("training") is False for s in call.scopes
            ):
                continue
            if any(map(rates.drops, keras_internals.all_layers(call.operation))):
                address = without_call_number(call.address)
                yield Finding(
                    address,
                    "A frozen layer drops values or adds noise whenever the model is trained"
                    + ("." if _fit_obeys_training() else ", also where the base was called with "
                       "training=False, which `fit` of this Keras overrides."),
                    "rk.freeze(model, up_to=...), which sets its rate to 0.",
                    "keras #20285",
                    silent_at(address),
                )  # fmt: skip

    # --- what the model does to inputs ---------------------------------------------------------

    def augmentation(self) -> Iterator[Finding]:
        """Look for layers that vary inputs, which an exported model would carry along."""
        for call in _once(self._calls):
            layer = call.operation
            first = len(call.inputs) == 1 and self.graph.free.issuperset(call.outputs)
            if not first or not isinstance(layer, keras.Layer) or in_training(call) != "random":
                continue  # behind weights, randomness regularises or is what the model does
            address = without_call_number(call.address)
            always = call.kwargs.get("training") is True
            yield Finding(
                address,
                "Data augmentation is a layer of the model"
                + (", and varies inputs where training=True is obeyed" if always else "")
                + ": it goes along into every export and server.",
                f"rk.remove(model, {address!r}); rk.data and configurations augment by `augment`.",
                "keras #19108",
                without(address),
            )  # fmt: skip

    def scaling(self) -> Iterator[Finding]:
        """Look for inputs that are scaled twice."""
        for call in _once(self._calls):
            second = call.operation
            if not isinstance(second, keras.layers.Rescaling) or len(call.inputs) != 1:
                continue
            first = self.graph.maker[call.inputs[0]]
            while isinstance(first.operation, keras.layers.Identity):
                first = self.graph.maker[first.inputs[0]]
            if isinstance(first.operation, keras.layers.Rescaling) and _shrinks(first, call):
                address = without_call_number(first.address)
                yield Finding(
                    without_call_number(call.address),
                    f"Inputs are scaled twice: by {first.address!r}, and again by "
                    f"{call.address!r}.",
                    f"rk.remove(model, {first.address!r}) where the model behind scales by itself.",
                    "tensorflow #48412",
                    without(address),
                )  # fmt: skip

    def input_range(self) -> Iterator[Finding]:
        """Look at how the data vary in front of the first normalisation, beside its memory."""
        images = self._images()
        ratio = None if images is None else range_ratio(self.model, images)
        if images is None or ratio is None or 1 / _UNLIKELY < ratio < _UNLIKELY:
            return
        name = self._fitting_scale(images)
        yield Finding(
            self.graph.inputs[0].address,
            f"Inputs vary {ratio:.3g} times as much in front of the first normalisation as they "
            "did in training: preprocessing is "
            + ("missing." if ratio > 1 else "applied twice, here and where the data come from."),
            f"rk.load_backbone(..., scale={name!r})." if name else
            "Feed what the model was trained on.",
            "deep-learning-models #21",
            None if name is None else lambda model: scaled(model, str(name)),
        )  # fmt: skip

    def _images(self) -> np.ndarray | None:
        shapes = [tensor.shape for tensor in self.graph.inputs]
        assert self.data is not None
        fed = next(iter(self.data.batches(_BATCH)))[0]
        if len(shapes) != 1 or isinstance(fed, dict) or not may_agree(shapes[0], fed.shape):
            return None
        return np.asarray(fed)

    def _fitting_scale(self, images: np.ndarray) -> str | None:
        """Return the range that inputs were brought to in training, where one fits."""
        for name in RANGES:
            ratio = range_ratio(scaled(self.model, name), images)
            if ratio is not None and 0.5 < ratio < 2:
                return name
        return None

    # --- outputs, loss and labels --------------------------------------------------------------

    def outputs(self) -> Iterator[Finding]:
        """Look for a loss that takes scores where the model gives probabilities, or the reverse."""
        loss: Any = getattr(self.model, "loss", None)
        loss = keras.losses.get(loss) if isinstance(loss, str) else loss
        from_logits = False if loss in _CROSSENTROPIES else None
        if isinstance(loss, keras.losses.Loss):
            from_logits = loss.get_config().get("from_logits")
        if from_logits is None or len(self.graph.outputs) != 1:
            return
        maker = self.graph.maker[self.graph.outputs[0]]
        told = _gives_probabilities(maker.operation)
        if told is None or told != from_logits:
            return
        gives, takes = ("probabilities", "scores") if told else ("scores", "probabilities")
        yield Finding(
            maker.address,
            f"The model gives {gives}, and its loss takes {takes} (from_logits={from_logits}): it "
            "trains badly, if Keras does not look behind the activation.",
            f"Compile with from_logits={not from_logits}.",
            "keras-hub #1008",
        )  # fmt: skip

    def labels(self) -> Iterator[Finding]:
        """Look for labels that the outputs cannot tell."""
        assert self.data is not None
        task, shapes = self.data.task, [one.shape for one in self.graph.outputs]
        if task.parts or len(shapes) != 1 or len(shapes[0]) != 2:
            return
        width, wanted = shapes[0][-1], task.size
        binary = task.kind == "classification" and wanted == 2 and width == 1
        if width in (None, wanted) or binary:
            return
        yield Finding(
            self.graph.outputs[0].address,
            f"The model has {width} outputs, and the data {wanted} "
            + ("classes: " if task.kind == "classification" else "labels: ")
            + ", ".join(task.names[:5]) + (", ..." if wanted > 5 else "") + ".",
            f"rk.attach(bottom, head) with a head of {wanted}.",
            "tensorflow #60431",
        )  # fmt: skip

    # --- ties, optimizer, counts ---------------------------------------------------------------

    def ties(self) -> Iterator[Finding]:
        """Look for weights that were one, or will be two once saved."""
        if self._complaints is None:
            yield from self._lost_when_saved()
        if self._graph is None:
            return
        embeddings = [
            (call, call.operation.embeddings)
            for call in _once(self._calls)
            if isinstance(call.operation, keras.layers.Embedding)
        ]
        others = [
            (call, variable)
            for call in _once(self._calls)
            if isinstance(call.operation, keras.Layer)
            for variable in call.operation.weights
            if math.prod(variable.shape) >= _FEW_NUMBERS and len(variable.shape) == 2
        ]
        trained = {id(variable) for variable in self.model.trainable_variables}
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
                tied(a, b, how),
            )  # fmt: skip

        for call in self._calls:
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

    def _lost_when_saved(self) -> Iterator[Finding]:
        known = tied_weights(self.model) if self.model.built else []
        if not known:
            return
        kept: set[Any] = set()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.keras")
            try:
                # A model whose layers cannot be read back by themselves says nothing of its ties.
                keras.saving.deserialize_keras_object(
                    keras.saving.serialize_keras_object(self.model), safe_mode=True
                )
            except Exception:  # whatever a user's configuration raises
                return
            try:
                self.model.save(path)
                kept = {(one.owners, one.name) for one in tied_weights(read_file(path, self.name))}
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

    def optimizer(self) -> Iterator[Finding]:
        """Look for an optimizer that was made for other variables than are trainable now."""
        skipped = [
            one
            for one in self._complaints or ()
            if "variable loading for opt" in one and _UNBUILT not in one
        ]
        optimizer = self._optimizer()
        held = keras_internals.variables_of(optimizer) if optimizer and optimizer.built else None
        trained = {id(variable) for variable in self.model.trainable_variables}
        strange = held is not None and {id(variable) for variable in held} != trained
        if not (skipped or strange) or isinstance(optimizer, LayerwiseOptimizer):
            return  # `rates` looks at that one
        yield Finding(
            "",
            "The optimizer was made for other variables than are trainable now: frozen ones are "
            "among its state, or thawed ones are not trained.",
            "Compile the model again after every change of trainable.",
            "keras #9965",
            lambda model: model,  # what is mended is not compiled
        )  # fmt: skip

    def rates(self) -> Iterator[Finding]:
        """Look for learning rates by layer that are of no trainable variable, or are missing."""
        optimizer = self._optimizer()
        if not isinstance(optimizer, LayerwiseOptimizer):
            return
        known = {one.path for one in optimizer.rates}
        wanted = [variable.path for variable in self.model.trainable_variables]
        without = [path for path in wanted if path not in known]
        if without:
            yield Finding(
                ", ".join(without[:3]),
                f"{len(without)} of {len(wanted)} trainable variables have no learning rate.",
                "rk.layerwise_optimizer(model, ...) after the last change of trainable.",
                "timm #2691, #2712",
            )  # fmt: skip

    def _optimizer(self) -> Any:
        optimizer = getattr(self.model, "optimizer", None)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            return optimizer.inner_optimizer
        return optimizer

    def notes(self) -> Iterator[str]:
        """Yield what is not wrong, and surprises people."""
        if self._graph is None:
            yield (
                "The model has no functional graph, so that only ties, optimizer and rates were "
                "looked at."
            )
        if not self.model.built:
            return
        rows = sum(layer.count_params() for layer in self.model.layers if layer.built)
        total = count_params(self.model).total
        if rows > total:
            yield (
                f"The rows of model.summary() add up to {rows:,} parameters, of which "
                f"{rows - total:,} are counted twice; there are {total:,} (keras #3661)."
            )
        for one in self._complaints or ():
            if one.startswith("The compilation"):
                yield one


def _once(calls: list[Call]) -> list[Call]:
    """Return the first call of each operation."""
    return list({id(call.operation): call for call in reversed(calls)}.values())[::-1]


def _is_batch_norm(operation: Any) -> bool:
    return isinstance(operation, keras.layers.BatchNormalization)


def _is_frozen(operation: Any) -> bool | None:
    """Return whether all that could be trained of an operation is frozen; None without weights."""
    if not isinstance(operation, keras.Layer):
        return None
    if not any(map(keras_internals.trainable_kind, keras_internals.all_layers(operation))):
        return None
    return not operation.trainable_weights


@cache
def _fit_obeys_training() -> bool:
    """Return whether a recorded training=False holds in `fit`; up to Keras 3.15 it does not."""
    x = keras.Input((64,))
    inner = keras.Model(x, keras.layers.Dropout(0.5)(x))
    outer = keras.Model(x, inner(x, training=False))
    return bool(np.all(np.asarray(outer(np.ones((1, 64), "float32"), training=True)) == 1))


def _gives_probabilities(operation: Any) -> bool | None:
    """Return whether a last layer gives probabilities or scores; None where it does not say."""
    if isinstance(operation, (*keras_internals.ENDING_OPERATIONS, keras.layers.Softmax)):
        return True
    if not isinstance(operation, keras.layers.Dense):
        return None
    if operation.activation in (keras.activations.softmax, keras.activations.sigmoid):
        return True
    return False if operation.activation is keras.activations.linear else None


def _shrinks(first: Call, second: Call) -> bool:
    """Return whether two scalings together bring pixels to less than a hundredth of their range."""
    scales = [np.max(np.abs(call.operation.scale)) for call in (first, second)]
    return all(scale < 0.5 for scale in scales) and bool(np.prod(scales) < 1e-3)


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
