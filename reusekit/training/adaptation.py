"""Adaptation of a model by few weights: low-rank ones (LoRA), normalisation, or biases."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import keras
import numpy as np

from reusekit.arguments import checked
from reusekit.errors import TrainingError, nearest
from reusekit.graph import Graph, ancestors, keras_internals, read, resolve
from reusekit.graph.addresses import At
from reusekit.surgery.certificate import prove_equal
from reusekit.training.freezing import FrozenPart, layers_of, parts_of, set_flags
from reusekit.training.frozen_state import Flags, Freezing, other_model
from reusekit.training.roles import NORMS, normalises, roles_of

Targets = Literal["all", "attention", "mlp", "convolution", "embedding"]

_NAMED = ("lora:8", "norms", "biases")


@dataclass(frozen=True)
class AddedLora:
    """LoRA of a layer.

    Attributes:
        address: The address of the call whose layer has it, or holds the layer that has it.
        part: The number of that layer among the layers in it; 0 is the layer itself.
        rank: The rank.
    """

    address: str
    part: int
    rank: int


@dataclass(frozen=True, repr=False)
class Adaptation(Freezing):
    """The few trained parts of a model that is frozen otherwise; prints as a table.

    It has all that a `Freezing` has, and what was added.

    Attributes:
        lora: The layers with LoRA that is trained, in the order of the graph.
    """

    lora: tuple[AddedLora, ...] = ()

    @checked(TrainingError)
    def undo(self, model: keras.Model) -> None:
        """Give a model back the flags and rates from before, and take LoRA away, unmerged.

        Args:
            model: The model that was adapted, a copy of it, or one loaded from its file, whose
                kernels Keras has merged.

        Raises:
            TrainingError: The model is another one.

        Example:
            >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d")])
            >>> adapted = adapt(model, "lora:2")
            >>> len(model.weights)
            4
            >>> adapted.undo(model)
            >>> len(model.weights)
            2
        """
        self._take_away(read(model))

    @checked(TrainingError)
    def merge(self, model: keras.Model, x: Any = None) -> None:
        """Add LoRA's part to the weights that it stands for, take it away, and undo the rest.

        The model gives what it gave, which is proved on one batch before anything is changed. The
        sums are made in double precision; in half precision a merged kernel is rounded once.

        Args:
            model: The model that was adapted, or a copy of it.
            x: The batch; None makes a random one.

        Raises:
            TrainingError: The model is another one.
            CopyError: The merged model would give something else.

        Example:
            >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d")])
            >>> adapted = adapt(model, "lora:2")
            >>> _ = model.get_layer("d").lora_kernel_b.assign(keras.ops.ones((2, 3)))
            >>> before = model.predict(keras.ops.ones((1, 4)), verbose=0)
            >>> adapted.merge(model)
            >>> model.get_layer("d").lora_enabled
            False
            >>> bool(np.allclose(model.predict(keras.ops.ones((1, 4)), verbose=0), before))
            True
        """
        graph = read(model)
        parts = self._parts(graph)
        _merge(model, parts, x)
        self._take_away(graph)

    def _take_away(self, graph: Graph) -> None:
        parts = self._parts(graph)
        added = {id(v) for part in parts for v in keras_internals.lora_weights(part)}
        self._undo(graph, added)
        for part in parts:
            keras_internals.remove_lora(part)
        _forget_steps(graph)

    def _parts(self, graph: Graph) -> list[Any]:
        """Return the layers of a model that LoRA was added to.

        Raises:
            TrainingError: They are not there, or have none.
        """
        calls, found = {call.address: call for call in graph.calls}, []
        for one in self.lora:
            parts = (
                keras_internals.all_layers(calls[one.address].operation)
                if one.address in calls
                else []
            )
            if one.part >= len(parts) or getattr(parts[one.part], "lora_rank", None) != one.rank:
                raise other_model(graph.model)
            found.append(parts[one.part])
        return found

    def _summary(self) -> list[str]:
        added = Counter(one.rank for one in self.lora)
        told = [f"LoRA of rank {rank} on {count} layers" for rank, count in added.items()]
        return [*super()._summary(), *told]


@checked(TrainingError)
def adapt(
    model: keras.Model | Graph,
    adaptation: str,
    *,
    from_: At = None,
    up_to: At = None,
    targets: Targets | Sequence[Targets] = "all",
    layers: Any = None,
) -> Adaptation:
    """Freeze a model but for few weights, by which it adapts to a task.

    Everything else is frozen and in inference mode, as by `freeze`, BatchNormalization's moving
    statistics among it. One of:

    - `"lora:RANK"` adds to the kernel of each layer of the targets the product of two small
      matrices, which are trained (Hu and others, 2021, https://arxiv.org/abs/2106.09685), by
      `enable_lora` of Keras: to Dense, EinsumDense and convolutions. At first it changes nothing. A
      layer that has LoRA of that rank already, as one of a loaded model, goes on with it.
    - `"norms"` trains the scales and offsets of normalisation layers: Keras's, and any other with
      scales of channels whose output stays the same where its input doubles, as KerasHub's.
    - `"biases"` trains the biases of Keras's layers, offsets of normalisation among them (Ben Zaken
      and others, 2021, https://arxiv.org/abs/2106.10199).

    Attention is a layer inside MultiHeadAttention, GroupQueryAttention or another layer that takes
    a softmax of what several projections make, as KerasHub's do, or a layer whose output a model
    attends with; any other Dense or EinsumDense is an "mlp". A layer that is called before
    `from_` as well, or whose weight is used there, stays as it is.

    Flags and layers are changed in place, for every model that shares them. Compile such a model
    afterwards. `clone` keeps the adaptation. A `.keras` file holds merged kernels, equal in what
    they give, and forgets flags and the LoRA of layers inside others: the same call after loading
    goes on with LoRA that begins anew. `freeze` thaws what is behind its cut, but for what was
    frozen beside LoRA.

    Args:
        model: A model with a functional graph.
        adaptation: What is trained.
        from_: The cut from which on the model is adapted; None adapts all of it.
        up_to: The cut behind which everything is trained whole, as a new head is; None for nothing.
        targets: The layers that LoRA is added to, by role, or several; "all" are those but
            "embedding".
        layers: Layers that stay as they are, as for `freeze`.

    Returns:
        The state of each variable now, with `undo(model)` and `merge(model)`.

    Raises:
        AddressError: A cut or `layers` names nothing of the model, or several things.
        NoGraphError: The model has no functional graph.
        TrainingError: An unknown adaptation, nothing to adapt, a rank above what a layer's kernel
            can have, LoRA on a quantised or constrained layer or on a weight of several owners.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dense(6, name="a")(x)
        >>> y = keras.layers.Dense(6, name="b")(y)
        >>> model = keras.Model(x, keras.layers.Dense(1, name="head")(y), name="m")
        >>> adapt(model, "lora:7", from_="a", up_to="b")
        Traceback (most recent call last):
        reusekit.errors.TrainingError: Expected a rank of at most 6, as of the kernel of 'b'.
        Received: 7.
        >>> adapt(model, "lora:2", from_="a", up_to="b")
        <Adaptation: 31 trainable, 72 frozen, 0 statistics, 0 state; LoRA of rank 2 on 1 layers>
    """
    graph = read(model)
    part = AdaptedPart(graph, adaptation, from_, up_to, targets, layers)
    return part.apply()


class AdaptedPart:
    """The few weights of a model to be trained, found before any change.

    Args:
        graph: The model that was read.
        adaptation: As for `adapt`.
        from_: As for `adapt`.
        up_to: As for `adapt`.
        targets: As for `adapt`.
        layers: As for `adapt`.
    """

    def __init__(
        self,
        graph: Graph,
        adaptation: str,
        from_: Any = None,
        up_to: Any = None,
        targets: Any = "all",
        layers: Any = None,
    ):
        self._graph, self.adaptation = graph, adaptation
        self.rank = rank_of(adaptation)
        end = [tensor.address for tensor in graph.outputs] if up_to is None else up_to
        end = list(dict.fromkeys(end)) if up_to is None else end
        self._frozen = FrozenPart(graph, end, "frozen", layers)
        before = set() if from_ is None else set(ancestors(graph, resolve(graph, from_)))
        inside = set(ancestors(graph, resolve(graph, end)))
        fixed = {*before, *self._frozen.named}
        self._calls = [call for call in graph.calls if call in inside and call not in fixed]
        taken = {id(part) for part in parts_of(layers_of(fixed))}
        self._used = {id(variable) for call in fixed for variable in call.variables}
        self._parts = [p for p in parts_of(layers_of(self._calls)) if id(p) not in taken]
        wanted = {targets} if isinstance(targets, str) else set(targets)
        if self.rank is None and wanted != {"all"}:
            raise TrainingError(
                f"Expected targets with LoRA alone. Received: {targets!r} with {adaptation!r}."
            )
        self._lora = [] if self.rank is None else self._targeted(wanted)
        self._trained = [v for part in self._parts for v in self._own(part)]
        if not self._lora and not self._trained:
            raise self._nothing(targets)
        self._check()

    def _targeted(self, wanted: set[str]) -> list[Any]:
        wanted = wanted | {"attention", "mlp", "convolution"} if "all" in wanted else wanted
        told_apart = not wanted >= {"attention", "mlp"}
        roles = roles_of(self._graph, self._calls, told_apart)
        return [
            part
            for part in self._parts
            if roles.get(id(part)) in wanted
            and id(keras_internals.lora_base(part)) not in self._used
        ]

    def _own(self, part: keras.Layer) -> Iterator[keras.Variable]:
        """Yield the layer's own variables that an adaptation without LoRA trains."""
        own = keras_internals.trainable_kind(part)
        wanted: list[Any] = []
        if self.adaptation == "norms" and normalises(part):
            wanted = own
        elif self.adaptation == "biases" and isinstance(part, NORMS):
            wanted = [getattr(part, "beta", None)]
        elif self.adaptation == "biases" and isinstance(part, keras_internals.BIASED_LAYERS):
            wanted = [getattr(part, "bias", None)]
        for variable in own:
            if any(variable is one for one in wanted) and id(variable) not in self._used:
                yield variable

    def _nothing(self, targets: Any) -> TrainingError:
        what = "normalisation" if self.adaptation == "norms" else "biases"
        if self.rank is not None:
            named = [targets] if isinstance(targets, str) else targets
            what = f"layers that LoRA can be added to ({', '.join(sorted(named))})"
        told_apart = self.rank is not None
        roles = roles_of(self._graph, self._calls, told_apart)
        roles = {id(p): roles[id(p)] for p in self._parts if id(p) in roles}
        kinds = Counter(roles.values()) | Counter(
            "normalisation" for part in self._parts if normalises(part)
        )
        there = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return TrainingError(
            f"Expected {what} in the part of {self._graph.model.name!r} to adapt. Received: "
            f"{there or 'no layer of that kind'}."
        )

    def _check(self) -> None:
        """Raise `TrainingError` where LoRA would do something else than to add to a kernel."""
        owners = Counter(
            id(variable)
            for part in parts_of(layers_of(self._graph.calls))
            for variable in keras_internals.own_variables(part)
        )
        owners.update(id(variable) for call in self._graph.calls for variable in call.given)
        for part in self._lora:
            base = keras_internals.lora_base(part)
            if getattr(part, "quantization_mode", None) is not None:
                raise _refusal(part, "in floating point", f"one in {part.quantization_mode}")
            if keras_internals.lora_constraint(part) is not None:
                raise _refusal(part, "without a constraint", "one that has one")
            if owners[id(base)] > 1:
                raise _refusal(part, "with weights of their own", "whose weight is used elsewhere")
            if part.lora_enabled and part.lora_rank != self.rank:
                raise _refusal(
                    part, f"without LoRA, or of rank {self.rank}", f"LoRA of rank {part.lora_rank}"
                )
        widths = [(_most(part), part) for part in self._lora if self.rank is not None]
        most, part = min(widths, key=lambda one: one[0], default=(0, None))
        if part is not None and most < (self.rank or 0):
            raise TrainingError(
                f"Expected a rank of at most {most}, as of the kernel of {part.name!r}. Received: "
                f"{self.rank}."
            )

    def apply(self) -> Adaptation:
        """Set the flags and rates, and add LoRA."""
        had = [part for part in self._lora if part.lora_enabled]
        passed_over = {id(v) for part in had for v in keras_internals.lora_weights(part)}
        before = Flags.of(self._graph.model, passed_over)
        self._frozen.apply()
        for part in self._lora:
            if not part.lora_enabled:
                part.enable_lora(self.rank)
        # A normalisation that is trained runs in inference mode all the same, as its flag says.
        set_flags(self._lora, lambda part: True)
        trained = [v for part in self._lora for v in keras_internals.lora_weights(part)]
        chosen = {id(v) for v in (*trained, *self._trained)}
        for part in self._parts:
            for variable in keras_internals.trainable_kind(part):
                if id(variable) in chosen or part in self._lora:
                    variable.trainable = id(variable) in chosen
        if self._lora:
            self._frozen.forget()
        _forget_steps(self._graph)
        report = self._frozen.report()
        values = {one.name: getattr(report, one.name) for one in fields(report)}
        return Adaptation(**{**values, "_before": before}, lora=self._found())

    def _found(self) -> tuple[AddedLora, ...]:
        wanted = set(map(id, self._lora))
        found: dict[int, AddedLora] = {}
        for call in self._calls:
            if isinstance(call.operation, keras.Layer):
                for number, part in enumerate(keras_internals.all_layers(call.operation)):
                    if id(part) in wanted and id(part) not in found:
                        found[id(part)] = AddedLora(call.address, number, self.rank or 0)
        return tuple(found.values())


def rank_of(adaptation: str) -> int | None:
    """Return the rank of LoRA; None for another adaptation.

    Raises:
        TrainingError: There is no such adaptation.

    Example:
        >>> rank_of("lora:8"), rank_of("norms")
        (8, None)
        >>> rank_of("lora")
        Traceback (most recent call last):
        reusekit.errors.TrainingError: Expected lora:RANK, such as lora:8, norms or biases.
        Received: 'lora'. Did you mean 'lora:8'?
    """
    kind, _, rank = adaptation.partition(":")
    if kind == "lora" and rank.isascii() and rank.isdecimal() and 0 < len(rank) < 7 and int(rank):
        return int(rank)
    if adaptation in ("norms", "biases"):
        return None
    raise TrainingError(
        f"Expected lora:RANK, such as lora:8, norms or biases. Received: {adaptation!r}. "
        f"{nearest(adaptation, _NAMED)}"
    )


def _most(layer: Any) -> int:
    """Return the largest rank that a layer's kernel can have."""
    *others, last = keras_internals.lora_base(layer).shape
    return min(math.prod(others), last)


def merge_lora(model: keras.Model, x: Any = None) -> None:
    """Merge all LoRA of a model, whose layers then stay frozen; see `Adaptation.merge`."""
    parts = keras_internals.lora_layers(model)
    _merge(model, parts, x)
    for part in parts:
        keras_internals.remove_lora(part)
        part.trainable = False
    _forget_steps(read(model))


def _merge(model: keras.Model, parts: Sequence[Any], x: Any) -> None:
    """Add LoRA's part to the weights of layers, and set it to 0, once that is proved equal."""
    state = [(keras_internals.lora_base(part), _merged(part)) for part in parts]
    state += [
        (variable, np.zeros(variable.shape, "float32"))
        for part in parts
        for variable in keras_internals.lora_weights(part)[1:]
    ]
    half = any(part.compute_dtype in ("float16", "bfloat16") for part in parts)
    prove_equal(model, state, x, 0.1 if half else 1e-4)
    for variable, value in state:
        variable.assign(value)


def _merged(layer: Any) -> np.ndarray:
    """Return a layer's weight with LoRA's part, summed in double precision."""
    base, a, b = (
        keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")).astype("float64")
        for variable in (keras_internals.lora_base(layer), *keras_internals.lora_weights(layer))
    )
    return (base + layer.lora_alpha / layer.lora_rank * (a @ b)).astype("float32")


def _refusal(part: keras.Layer, wanted: str, received: str) -> TrainingError:
    return TrainingError(
        f"Expected layers {wanted} for LoRA. Received: {part.name!r}, {received}. Leave it out "
        "with layers=, or choose other targets."
    )


def _forget_steps(graph: Graph) -> None:
    """Have the compiled steps of a model made anew: layers have other weights than before."""
    scopes = {id(scope.operation): scope.operation for call in graph.calls for scope in call.scopes}
    for model in (graph.model, *scopes.values()):
        model.train_function = model.test_function = model.predict_function = None
