"""The freezing of a model up to a cut: the part before runs in inference mode, unchanged."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import keras

from reusekit.arguments import checked
from reusekit.errors import AddressError, TrainingError
from reusekit.graph import Call, Graph, ancestors, keras_internals, read, resolve, resolve_one
from reusekit.graph.addresses import At, without_call_number
from reusekit.surgery import rates
from reusekit.training.frozen_state import Flags, Freezing, SilencedRate, VariableState
from reusekit.training.training_mode import in_training

BatchNorm = Literal["frozen", "statistics", "train"]
_UNSAID: Any = object()

# The layers that a call of ours froze, each with whether a backbone's LoRA had a say by then.
_ours: WeakKeyDictionary[keras.Layer, bool] = WeakKeyDictionary()


@checked(TrainingError)
def freeze(
    model: keras.Model | Graph,
    up_to: At = _UNSAID,
    batch_norm: BatchNorm = "frozen",
    *,
    layers: Any = None,
) -> Freezing:
    """Freeze everything that the tensors at a cut are computed from; the rest becomes trainable.

    The graph says what to freeze: each layer, inside nested models as well, that one of the tensors
    at `up_to` depends on. So those tensors stay what they are, whatever training does to the model.
    At a clean cut that is exactly the bottom which `split` would give. At a wider one
    other branches cross as well: they stay trainable unless their addresses are given too
    (`CutPoint.tensors` and `Split.frontier` list them all). A layer or weight that is used on both
    sides is frozen, and the result names it. `layers` freezes any others: a discriminator, the top.

    Flags are changed in place, those of layers, not of whole nested models, and one call says all:
    weights that an earlier call or the caller froze elsewhere are trainable afterwards, except
    those that `enable_lora` froze. A compiled model trains accordingly from its next `fit` on.
    Compile it again where its optimizer was built for less than is trainable now, which Keras
    refuses to train (on JAX, for more as well), and compile any other compiled model that has the
    layers, as after every change of `trainable`.

    Frozen means inference, whatever `fit` does: Keras runs a frozen BatchNormalization in inference
    mode by itself, but would go on dropping. So the rates of the dropout, noise and stochastic
    depth of Keras and KerasHub before the cut, also inside recurrent and attention layers, are set
    to 0. (An attention layer without dropout takes Keras's quicker way, equal up to rounding.) They
    come back where a later call thaws the layer, or with the result's `undo()`. As with
    `trainable`, that goes for every model that shares the layer. Randomness without such a rate
    goes on, and so does whatever the caller's own layers do in training alone: the result names the
    layers. To find them, they are run on a few random numbers.

    `clone` keeps flags, and rates with what they were. A `.keras` file keeps the rates, as 0, and
    the flags of layers, but not those of single variables ("statistics") nor of layers inside
    another layer (as in MultiHeadAttention); nor anything where a class is rebuilt from a
    configuration of its own, as KerasHub's backbones are. A `.weights.h5` file has no flags. After
    loading, the same call sets everything as it was, and `undo(loaded)` of the earlier result the
    rates, which the file does not know; but where flags were lost, Keras has passed over the
    optimizer's state, with a warning. `BackupAndRestore`, with the call before `fit`, goes on
    exactly.

    Args:
        model: A model with a functional graph.
        up_to: An address, a `CutPoint`, a Keras tensor, or a list of these; None freezes nothing,
            that is, thaws the model.
        batch_norm: The state of frozen BatchNormalization. "frozen": inference mode, nothing
            changes. "statistics": it normalises by the batch and updates its moving averages, as in
            training, with gamma and beta frozen. "train": it is trained.
        layers: Layers to freeze as well, wherever they stand: addresses of layers or of nested
            models, which are frozen whole, or these themselves, or a list of them.

    Returns:
        The state of each variable now.

    Raises:
        AddressError: `up_to` or `layers` names nothing of the model, or several things.
        NoGraphError: The model has no functional graph.
        TrainingError: An unknown policy, neither `up_to` nor `layers`, or a frozen layer that
            changes its weights in training all the same (SpectralNormalization).

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dense(3, name="a")(x)
        >>> y = keras.layers.Dropout(0.5, name="drop")(y)
        >>> model = keras.Model(x, keras.layers.Dense(1, name="head")(y), name="m")
        >>> print(freeze(model, up_to="drop"))
        address        path   shape  parameters      state
              a    a/kernel  (4, 3)          12     frozen
              a      a/bias    (3,)           3     frozen
           head head/kernel  (3, 1)           3  trainable
           head   head/bias    (1,)           1  trainable
        4 trainable, 15 frozen, 0 statistics, 0 state
        Silenced: drop
        >>> freeze(model, layers="head")
        <Freezing: 15 trainable, 4 frozen, 0 statistics, 0 state>
        >>> freeze(model, up_to=None).parameters()["trainable"]
        19
    """
    graph = read(model)
    if up_to is _UNSAID and layers is None:
        raise TrainingError(
            "Expected up_to, a cut up to which the model is frozen, or layers to freeze. "
            "Received: neither. Pass up_to=None to thaw the model."
        )
    part = FrozenPart(graph, None if up_to is _UNSAID else up_to, batch_norm, layers)
    before = Flags.of(graph.model)
    part.apply()
    # Keras would go on with the one that it made for what was trainable before.
    graph.model.train_function = None
    return replace(part.report(), _before=before)


def could_be_trained(graph: Graph) -> list[keras.Variable]:
    """Return every variable that could be trained were nothing frozen, in order."""
    parts = parts_of(layers_of(graph.calls))
    found = {id(v) for part in parts for v in keras_internals.to_be_trained(part)}
    return [v for v in graph.model.weights if id(v) in found]


class FrozenPart:
    """The part of a model to be frozen, found before any change so that it can be refused.

    Args:
        graph: The model that was read.
        up_to: As for `freeze`.
        batch_norm: As for `freeze`.
        layers: As for `freeze`.

    Attributes:
        frozen: From the id of each layer that is to be frozen to the layer.
        named: The calls of `layers`.
    """

    def __init__(self, graph: Graph, up_to: Any, batch_norm: str, layers: Any = None):
        self._graph = graph
        self._batch_norm = batch_norm
        ancestry = [] if up_to is None else ancestors(graph, resolve(graph, up_to))
        self.named = _calls_of(graph, layers)
        before = {*ancestry, *self.named}
        self.frozen = {
            id(layer): layer for layer in layers_of(c for c in graph.calls if c in before)
        }
        self._frozen_calls = [call for call in graph.calls if call in before]
        after = (call for call in graph.calls if call not in before)
        self._used_after = {id(variable) for call in after for variable in call.variables}
        # Arguments of operations, such as the kernel of a layer that comes later.
        self._given = {id(v): v for call in self._frozen_calls for v in call.given}
        self._check()
        every = [*_containers(graph), *self._all_parts()]
        self._lora = any(map(keras_internals.is_governed_by_lora, every))
        self._kept = self._frozen_by_lora()

    def _check(self) -> None:
        for part in parts_of(self.frozen.values()):
            if isinstance(part, keras.layers.SpectralNormalization):
                raise TrainingError(
                    f"Expected layers that stay as they are when frozen. Received: {part.name!r}: "
                    "SpectralNormalization changes its layer's kernel whenever it runs in training."
                    " Replace it by the layer inside it."
                )

    def _frozen_by_lora(self) -> list[keras.Layer]:
        """Return the layers that stay frozen: `enable_lora` froze them, or the caller beside it.

        In a model without LoRA there are none. Layers that an earlier call of ours froze are not
        among them, unless a backbone's `enable_lora` has said since what is trained.
        """
        parts = self._all_parts()
        if not any(getattr(part, "lora_enabled", False) for part in parts):
            return []

        def frozen_by_us(part: keras.Layer) -> bool:
            return part in _ours and (_ours[part] or not self._lora)

        return [part for part in parts if not part.trainable and not frozen_by_us(part)]

    def to_train(self) -> list[keras.Variable]:
        """Return the variables that an optimizer is to train."""
        before = parts_of(self.frozen.values())
        if self._batch_norm == "train":
            before = [part for part in before if not _is_batch_norm(part)]
        still = [*before, *self._kept]
        fixed = {id(v) for part in still for v in keras_internals.to_be_trained(part)}
        fixed |= self._given.keys()
        return [v for v in could_be_trained(self._graph) if id(v) not in fixed]

    def apply(self) -> None:
        """Set the flags and rates."""
        before = parts_of(self.frozen.values())
        inside = {id(part) for part in before}
        after = [part for part in self._all_parts() if id(part) not in inside]
        kept = {id(part) for part in self._kept}
        for part in before:
            if part.trainable:
                _ours[part] = self._lora
            elif self._lora and not _ours.get(part, True):
                del _ours[part]  # LoRA has overruled it since
        for part in after:
            _ours.pop(part, None)
        # A layer after the cut may hold one before it, so freezing has the last word.
        set_flags([*_containers(self._graph), *after], lambda part: id(part) not in kept)
        set_flags(before, lambda part: False)
        if self._batch_norm != "frozen":
            for part in filter(_is_batch_norm, before):
                part.trainable = True
                keras_internals.flag_variables(part, self._batch_norm == "train")
        for variable in self._given.values():
            variable.trainable = False
        for part in after:
            rates.restore(part)
        for part in before:
            rates.silence(part)

    def forget(self) -> None:
        """Have a later call leave frozen what this one froze, as what `enable_lora` froze."""
        for part in parts_of(self.frozen.values()):
            _ours.pop(part, None)

    def report(self) -> Freezing:
        """Return the state of each variable now."""
        owners = self._owners()
        trained = {id(variable) for variable in self._graph.model.trainable_variables}
        moving = {
            id(variable)
            for part in self._all_parts()
            if _is_batch_norm(part) and part.trainable
            for variable in part.non_trainable_weights
        }
        state = {id(variable) for variable in keras_internals.state_variables(self._graph.model)}

        def state_of(variable: keras.Variable) -> str:
            if id(variable) in trained:
                return "trainable"
            if id(variable) not in state:
                return "frozen"
            return "statistics" if id(variable) in moving else "state"

        return Freezing(
            variables=tuple(
                VariableState(
                    owners.get(id(variable), self._graph.model.name),
                    variable.path,
                    tuple(variable.shape),
                    int(keras.ops.size(variable)),
                    state_of(variable),
                )
                for variable in self._graph.model.weights
            ),
            shared=self._shared(),
            silenced=self._addresses(lambda layer: any(map(rates.silenced, parts_of([layer])))),
            random=tuple(a for a, how in self._in_training.items() if how == "random"),
            otherwise=tuple(a for a, how in self._in_training.items() if how == "other"),
            rates=tuple(self._rates()),
        )

    @cached_property
    def _in_training(self) -> dict[str, str]:
        """Return what frozen layers do in training, by the address of their first call.

        Once the flags are set.
        """
        found: dict[str, str] = {}
        told: set[int] = set()
        for call in self._frozen_calls:
            layer = call.operation
            if id(layer) not in self.frozen or id(layer) in told:
                continue
            how = in_training(call)
            if how == "other" and self._batch_norm != "frozen":
                # BatchNormalization in it may be what does so, as was asked for.
                how = None if any(map(_is_batch_norm, parts_of([layer]))) else how
            if how is not None:
                told.add(id(layer))
                found[call.address] = how
        return found

    def _rates(self) -> Iterator[SilencedRate]:
        found: set[int] = set()
        for call in self._frozen_calls:
            if id(call.operation) in self.frozen:
                for number, part in enumerate(keras_internals.all_layers(call.operation)):
                    if id(part) not in found:
                        found.add(id(part))
                        for name, rate in rates.silenced(part).items():
                            yield SilencedRate(call.address, number, name, rate)

    def _shared(self) -> tuple[str, ...]:
        """Return the addresses of what is frozen and has a weight that is used after it, too."""
        of_layers = self._addresses(
            lambda layer: any(id(variable) in self._used_after for variable in layer.weights)
        )
        given = (
            call.address
            for call in self._frozen_calls
            if not self._used_after.isdisjoint(map(id, call.given))
        )
        return (*of_layers, *given)

    def _all_parts(self) -> list[keras.Layer]:
        return parts_of(layers_of(self._graph.calls))

    def _owners(self) -> dict[int, str]:
        """Map the id of each variable to the address of the first layer that has it."""
        owners: dict[int, str] = {}
        for call in self._graph.calls:
            for variable in call.variables:
                owners.setdefault(id(variable), call.address)
        return owners

    def _addresses(self, wanted: Callable[[keras.Layer], bool]) -> tuple[str, ...]:
        """Return the addresses of those frozen layers of which something holds."""
        first = {id(call.operation): call for call in reversed(self._graph.calls)}
        calls = sorted((first[key] for key in self.frozen), key=lambda call: call.index)
        return tuple(call.address for call in calls if wanted(call.operation))


def layers_of(calls: Iterable[Any]) -> list[keras.Layer]:
    """Return the layers that are called, each once; model inputs are none."""
    found = {id(call.operation): call.operation for call in calls if not call.is_input}
    return [operation for operation in found.values() if isinstance(operation, keras.Layer)]


def parts_of(layers: Iterable[keras.Layer]) -> list[keras.Layer]:
    """Return the layers and all those inside them, each once, outer before inner."""
    found = {id(part): part for layer in layers for part in keras_internals.all_layers(layer)}
    return list(found.values())


def _containers(graph: Graph) -> list[keras.Model]:
    """Return the model and those nested models that were read into, outer ones first."""
    scopes = {id(scope.operation): scope.operation for call in graph.calls for scope in call.scopes}
    return [graph.model, *scopes.values()]


def set_flags(parts: list[keras.Layer], trainable: Callable[[keras.Layer], bool]) -> None:
    """Set the flags of layers, outer ones first, and of their own variables."""
    for part in parts:
        part.trainable = trainable(part)
    # A layer hands its flag down to the layers in it, but not always (the TensorFlow backend passes
    # over an assignment that changes nothing), and to variables that low-rank ones stand for.
    for part in parts:
        keras_internals.flag_variables(part, trainable(part))


def _calls_of(graph: Graph, layers: Any) -> list[Call]:
    """Return the calls of named or given layers, inside nested models too."""
    if layers is None:
        return []
    wanted = keras.tree.flatten(layers)
    if not wanted:
        raise AddressError(
            f"Expected layers of {graph.model.name!r} to freeze. Received: {layers!r}."
        )
    found = [call for one in wanted for call in _calls_of_one(graph, one)]
    return list(dict.fromkeys(found))


def _calls_of_one(graph: Graph, wanted: Any) -> list[Call]:
    if isinstance(wanted, str | keras.Layer):
        found = [
            call
            for call in graph.calls
            if any(_is_meant(step, wanted) for step in (call, *call.scopes))
        ]
        if found:
            return found
    if isinstance(wanted, keras.Layer):
        raise AddressError(
            f"Expected layers of {graph.model.name!r}. Received: the layer {wanted.name!r}, which "
            "the model does not call."
        )
    layer = graph.maker[resolve_one(graph, wanted)].operation
    return [call for call in graph.calls if call.operation is layer]


def _is_meant(step: Any, wanted: str | keras.Layer) -> bool:
    if isinstance(wanted, str):
        return wanted in (step.address, without_call_number(step.address))
    return step.operation is wanted


def _is_batch_norm(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)
