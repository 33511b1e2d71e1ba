"""Freezing a model up to a cut: what lies before it runs in inference mode and does not change."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import keras

from reusekit.arguments import checked
from reusekit.graph import Graph, ancestors, keras_internals, read, resolve
from reusekit.graph.addresses import At
from reusekit.training import silencing
from reusekit.training.errors import TrainingError

BatchNorm = Literal["frozen", "statistics", "train"]
_STATES = ("trainable", "frozen", "statistics", "state")


@dataclass(frozen=True)
class VariableState:
    """What training does to one variable.

    Attributes:
        address: The address of the layer that owns it (of the layer's first call).
        path: Keras's own path of the variable.
        shape: Its shape.
        parameters: How many scalars it holds.
        state: "trainable"; "frozen", if an optimizer could train it and does not; "statistics", if
            no optimizer trains it but the layer updates it in training, as the moving averages of a
            BatchNormalization that is not frozen; "state", if it is neither trained nor such.
    """

    address: str
    path: str
    shape: tuple[int, ...]
    parameters: int
    state: str


@dataclass(frozen=True)
class Freezing:
    """What is frozen in a model; prints as a table.

    Attributes:
        variables: Each variable of the model once, in the order of the graph.
        shared: The addresses of layers before the cut with a weight that is used after it as well,
            by the same layer or one that is tied to it. One weight cannot be both: it is frozen.
        silenced: The addresses of layers before the cut that would drop values or add noise in
            training, and now do not.
        random: The addresses of layers before the cut that are still random in training: data
            augmentation, which is not part of what is frozen.
    """

    variables: tuple[VariableState, ...]
    shared: tuple[str, ...]
    silenced: tuple[str, ...]
    random: tuple[str, ...]

    def to_frame(self) -> Any:
        """The variables as a pandas DataFrame, one row each."""
        import pandas

        return pandas.DataFrame([asdict(variable) for variable in self.variables])

    def parameters(self) -> dict[str, int]:
        """How many parameters are in each state."""
        counts = Counter(dict.fromkeys(_STATES, 0))
        for variable in self.variables:
            counts[variable.state] += variable.parameters
        return dict(counts)

    def __str__(self) -> str:
        lines = [self.to_frame().to_string(index=False)] if self.variables else []
        lines.append(", ".join(f"{n:,} {state}" for state, n in self.parameters().items()))
        for what, addresses in (
            ("Frozen though used after the cut as well", self.shared),
            ("Silenced", self.silenced),
            ("Still random in training", self.random),
        ):
            if addresses:
                lines.append(f"{what}: {', '.join(addresses)}")
        return "\n".join(lines)


@checked(TrainingError)
def freeze(model: keras.Model | Graph, up_to: At, batch_norm: BatchNorm = "frozen") -> Freezing:
    """Freezes everything that the tensors at a cut are computed from; the rest becomes trainable.

    What is frozen is found in the graph: each layer, inside nested models as well, that one of the
    tensors at `up_to` depends on. So those tensors stay what they are, whatever training does to
    the model. At a clean cut that is exactly the bottom which `split` would give. At a wider one
    other branches cross as well: they stay trainable unless their addresses are given too
    (`CutPoint.tensors` and `Split.frontier` list them all). A layer or weight that is used on both
    sides is frozen, and the result names it.

    Flags are changed in place, those of layers, not of whole nested models, and one call says all:
    what an earlier call or the caller froze elsewhere is trainable afterwards. A compiled model
    trains accordingly from its next `fit` on. Compile it again where its optimizer was built for
    less than is trainable now, which Keras refuses to train (on JAX, for more as well), and compile
    any other compiled model that has the layers, as after every change of `trainable`.

    Frozen means inference, whatever `fit` does: Keras runs a frozen BatchNormalization in inference
    mode by itself, but would go on dropping. So the rates of dropout, noise and stochastic depth
    before the cut, also inside recurrent and attention layers, are made so small (by a factor of
    2**-900) that nothing is dropped. They come back exactly where a later call thaws the layer. As
    with `trainable`, that goes for every model that shares the layer. A layer of the caller's own
    that acts differently in training must heed `trainable`, or be told how much by an attribute
    named in the usual ways (`rate`, `stddev`, `dropout`, `drop_path_rate` ...).

    `clone` keeps flags and rates. A `.keras` file keeps the rates and the flags of layers, but not
    those of single variables ("statistics") nor of layers inside another layer (as in
    MultiHeadAttention); nor anything where a class is rebuilt from a configuration of its own, as
    KerasHub's backbones are. A `.weights.h5` file has no flags. After loading, the same call sets
    everything as it was; but where flags were lost, Keras has passed over the optimizer's state,
    with a warning. `BackupAndRestore`, with the call before `fit`, goes on exactly.

    Args:
        model: A model with a functional graph.
        up_to: An address, a `CutPoint`, a Keras tensor, or a list of these; None freezes nothing,
            that is, thaws the model.
        batch_norm: What becomes of BatchNormalization before the cut. "frozen": inference mode,
            nothing changes. "statistics": it normalises by the batch and updates its moving
            averages, as in training, with gamma and beta frozen. "train": it is trained.

    Returns:
        What is frozen now, variable by variable.

    Raises:
        AddressError: `up_to` names no tensor of the model, or several.
        NoGraphError: The model has no functional graph.
        TrainingError: An unknown policy, or a layer before the cut that changes its weights in
            training even when it is frozen (SpectralNormalization).

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
        >>> freeze(model, up_to=None).parameters()["trainable"]
        19
    """
    graph = read(model)
    plan = Plan(graph, up_to, batch_norm)
    plan.carry_out()
    # Keras would go on with the one that it made for what was trainable before.
    graph.model.train_function = None
    return plan.report()


def could_be_trained(graph: Graph) -> list[keras.Variable]:
    """Every variable that an optimizer would train were nothing frozen, in the model's order."""
    parts = _parts(_layers(graph.calls))
    found = {id(v) for part in parts for v in keras_internals.to_be_trained(part)}
    return [v for v in graph.model.weights if id(v) in found]


class Plan:
    """What is to be frozen. Made without changing anything, so that it can be refused.

    Args:
        graph: The model that was read.
        up_to: As for `freeze`.
        batch_norm: As for `freeze`.

    Attributes:
        frozen: From the id of each layer that the cut depends on to the layer.
    """

    def __init__(self, graph: Graph, up_to: Any, batch_norm: str):
        self._graph = graph
        self._batch_norm = batch_norm
        before = [] if up_to is None else ancestors(graph, resolve(graph, up_to))
        self.frozen = {id(layer): layer for layer in _layers(before)}
        after = set(graph.calls) - set(before)
        self._used_after = {id(variable) for call in after for variable in call.variables}
        self._check()

    def _check(self) -> None:
        for part in _parts(self.frozen.values()):
            if isinstance(part, keras.layers.SpectralNormalization):
                raise TrainingError(
                    f"Expected layers that stay as they are when frozen, received {part.name!r}: "
                    "SpectralNormalization changes its layer's kernel whenever it runs in training."
                    " Replace it by the layer inside it."
                )

    def to_train(self) -> list[keras.Variable]:
        """The variables that an optimizer is to train."""
        before = _parts(self.frozen.values())
        if self._batch_norm == "train":
            before = [part for part in before if not _is_batch_norm(part)]
        fixed = {id(v) for part in before for v in keras_internals.to_be_trained(part)}
        return [v for v in could_be_trained(self._graph) if id(v) not in fixed]

    def carry_out(self) -> None:
        """Sets the flags and rates."""
        before = _parts(self.frozen.values())
        inside = {id(part) for part in before}
        after = [part for part in self._all_parts() if id(part) not in inside]
        # What comes after the cut may hold what stands before it, so freezing has the last word.
        _set_flags([*_containers(self._graph), *after], True)
        _set_flags(before, False)
        if self._batch_norm != "frozen":
            for part in filter(_is_batch_norm, before):
                part.trainable = True
                keras_internals.flag_variables(part, self._batch_norm == "train")
        for part in after:
            silencing.unsilence(part)
        for part in before:
            silencing.silence(part)

    def report(self) -> Freezing:
        """The state of each variable now."""
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
            shared=self._addresses(self._is_shared),
            silenced=self._addresses(
                lambda layer: any(map(silencing.is_silenced, _parts([layer])))
            ),
            random=self._addresses(lambda layer: any(map(silencing.is_random, _parts([layer])))),
        )

    def _is_shared(self, layer: keras.Layer) -> bool:
        return any(id(variable) in self._used_after for variable in layer.weights)

    def _all_parts(self) -> list[keras.Layer]:
        return _parts(_layers(self._graph.calls))

    def _owners(self) -> dict[int, str]:
        """From the id of each variable to the address of the first layer that has it."""
        owners: dict[int, str] = {}
        for call in self._graph.calls:
            for variable in call.variables:
                owners.setdefault(id(variable), call.address)
        return owners

    def _addresses(self, wanted: Callable[[keras.Layer], bool]) -> tuple[str, ...]:
        """The addresses of those frozen layers of which something holds."""
        first = {id(call.operation): call for call in reversed(self._graph.calls)}
        calls = sorted((first[key] for key in self.frozen), key=lambda call: call.index)
        return tuple(call.address for call in calls if wanted(call.operation))


def _layers(calls: Iterable[Any]) -> list[keras.Layer]:
    """The layers that are called, each once; model inputs are none."""
    found = {id(call.operation): call.operation for call in calls if not call.is_input}
    return [operation for operation in found.values() if isinstance(operation, keras.Layer)]


def _parts(layers: Iterable[keras.Layer]) -> list[keras.Layer]:
    """The layers and all those inside them, each once, outer before inner."""
    found = {id(part): part for layer in layers for part in keras_internals.all_layers(layer)}
    return list(found.values())


def _containers(graph: Graph) -> list[keras.Model]:
    """The model and those nested models that were read into, outer ones first."""
    scopes = {id(scope.operation): scope.operation for call in graph.calls for scope in call.scopes}
    return [graph.model, *scopes.values()]


def _set_flags(parts: list[keras.Layer], trainable: bool) -> None:
    """Sets the flags of layers and of their own variables."""
    for part in parts:
        part.trainable = trainable
    # A layer hands its flag down to the layers in it, but not always (the TensorFlow backend passes
    # over an assignment that changes nothing), and to variables that low-rank ones stand for.
    for part in parts:
        keras_internals.flag_variables(part, trainable)


def _is_batch_norm(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)
