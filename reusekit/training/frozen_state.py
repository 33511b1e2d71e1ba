"""The record of what a call of `freeze` froze, by which it is shown and undone."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import keras

from reusekit.arguments import checked
from reusekit.errors import TrainingError
from reusekit.graph import Graph, keras_internals, read
from reusekit.surgery import rates

_STATES = ("trainable", "frozen", "statistics", "state")
_SHOWN = 80  # characters of a line, where a notebook shows the value of a cell


@dataclass(frozen=True)
class VariableState:
    """The effect of training on one variable.

    Attributes:
        address: The address of the layer that owns it (of the layer's first call).
        path: Keras's own path of the variable.
        shape: Its shape.
        parameters: The number of its scalars.
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
class SilencedRate:
    """A rate that was set to 0.

    Attributes:
        address: The address of the call whose layer has it, or holds the layer that has it.
        part: The number of that layer among the layers in it; 0 is the layer itself.
        attribute: The attribute, such as "rate".
        rate: The rate before.
    """

    address: str
    part: int
    attribute: str
    rate: float


@dataclass(frozen=True)
class Freezing:
    """The frozen parts of a model; prints as a table.

    Attributes:
        variables: Each variable of the model once, in the order of the graph.
        shared: The addresses of frozen layers and operations with a weight that is used elsewhere
            as well, by the same layer or one that is tied to it. One weight cannot be both: it is
            frozen.
        silenced: The addresses of frozen layers that would drop values or add noise in training,
            and now do not.
        random: The addresses of frozen layers that are still random in training: data augmentation,
            and whatever a user's layer or function draws.
        otherwise: The addresses of frozen layers of the user's own that are not random, and give
            something else in training than in inference all the same.
        rates: The rates that the silenced layers had.
    """

    variables: tuple[VariableState, ...]
    shared: tuple[str, ...]
    silenced: tuple[str, ...]
    random: tuple[str, ...]
    otherwise: tuple[str, ...] = ()
    rates: tuple[SilencedRate, ...] = ()
    _before: "Flags | None" = field(default=None, repr=False, compare=False)

    @checked(TrainingError)
    def undo(self, model: keras.Model) -> None:
        """Give a model back the flags and rates from before the call that this is the result of.

        Args:
            model: The model that was frozen, a copy of it, or what was loaded from its file.

        Raises:
            TrainingError: The model is another one.

        Example:
            >>> from reusekit.training import freeze
            >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, name="d")])
            >>> frozen = freeze(model, up_to="d")
            >>> model.get_layer("d").rate
            0.0
            >>> frozen.undo(model)
            >>> model.get_layer("d").rate
            0.5
        """
        self._undo(read(model), set())

    def _undo(self, graph: Graph, added: set[int]) -> None:
        """Give back flags and rates, passing over variables that were added since."""
        model, calls = graph.model, {call.address: call for call in graph.calls}
        known = all(one.address in calls for one in self.rates)
        if self._before is None or not self._before.fit(model, added) or not known:
            raise other_model(model)
        for one in self.rates:
            part = keras_internals.all_layers(calls[one.address].operation)[one.part]
            rates.restore(part)
            rates.set_rate(part, one.attribute, one.rate)
        self._before.restore(model, added)
        model.train_function = None

    def to_frame(self) -> Any:
        """Return the variables as a pandas DataFrame, one row each."""
        import pandas

        return pandas.DataFrame([asdict(variable) for variable in self.variables])

    def parameters(self) -> dict[str, int]:
        """Return the number of parameters in each state."""
        counts = Counter(dict.fromkeys(_STATES, 0))
        for variable in self.variables:
            counts[variable.state] += variable.parameters
        return dict(counts)

    def _summary(self) -> list[str]:
        lines = [", ".join(f"{n:,} {state}" for state, n in self.parameters().items())]
        for what, addresses in (
            ("Frozen though used after the cut as well", self.shared),
            ("Silenced", self.silenced),
            ("Still random in training", self.random),
            ("Otherwise in training than in inference", self.otherwise),
        ):
            if addresses:
                lines.append(f"{what}: {', '.join(addresses)}")
        return lines

    def __str__(self) -> str:
        lines = [self.to_frame().to_string(index=False)] if self.variables else []
        return "\n".join([*lines, *self._summary()])

    def __repr__(self) -> str:
        shown = [
            line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..." for line in self._summary()
        ]
        return f"<{type(self).__name__}: {'; '.join(shown)}>"


@dataclass(frozen=True, eq=False)
class Flags:
    """The flags of a model's layers, and of their variables, in the order of the layers."""

    layers: tuple[bool, ...]
    variables: tuple[tuple[bool, ...], ...]

    @classmethod
    def of(cls, model: keras.Model, added: set[int] | None = None) -> "Flags":
        """Return the flags of a model now, but those of added variables."""
        return cls(
            tuple(layer.trainable for layer in keras_internals.all_layers(model)),
            tuple(
                tuple(v.trainable for v in variables)
                for variables in _variables(model, added or set())
            ),
        )

    def fit(self, model: keras.Model, added: set[int]) -> bool:
        """Return whether a model has such layers, passing over variables that were added."""
        counts = [len(each) for each in _variables(model, added)]
        return counts == [len(flags) for flags in self.variables]

    def restore(self, model: keras.Model, added: set[int]) -> None:
        """Give a model these flags, but for variables that were added."""
        # A layer's flag is handed down to the layers in it, which stand later in this order.
        for layer, flag in zip(keras_internals.all_layers(model), self.layers, strict=True):
            layer.trainable = flag
        for variables, flags in zip(_variables(model, added), self.variables, strict=True):
            for variable, flag in zip(variables, flags, strict=True):
                variable.trainable = flag


def _variables(model: keras.Model, added: set[int]) -> list[list[keras.Variable]]:
    """Return the variables of each layer that could be trained, but for some."""
    return [
        [v for v in keras_internals.trainable_kind(layer) if id(v) not in added]
        for layer in keras_internals.all_layers(model)
    ]


def other_model(model: keras.Model) -> TrainingError:
    """Return the error about a model that is not the one that a record is of."""
    return TrainingError(
        "Expected the model that was frozen, or a copy of it. Received: "
        f"{model.name!r}, which has other layers."
    )
