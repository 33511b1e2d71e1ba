"""Layer-wise learning rates: the nearer to the input, the smaller the rate."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras

from reusekit.graph import Call, Graph, Tensor, cut_points, keras_internals, read, resolve
from reusekit.training.errors import TrainingError
from reusekit.training.freezing import could_be_trained


@dataclass(frozen=True)
class VariableRate:
    """The learning rate of one variable.

    Attributes:
        address: The address of the layer that owns it.
        path: Keras's own path of the variable, which need not be unique.
        depth: How many blocks lie between it and the end of the model.
        multiplier: What the optimizer's learning rate is multiplied by.
        rate: The product, at the present step.
    """

    address: str
    path: str
    depth: int
    multiplier: float
    rate: float


@dataclass(frozen=True)
class Rates(Sequence):
    """The learning rate of each variable; prints as a table."""

    variables: tuple[VariableRate, ...]

    def __getitem__(self, index: int) -> VariableRate:
        return self.variables[index]

    def __len__(self) -> int:
        return len(self.variables)

    def to_frame(self) -> Any:
        """The rates as a pandas DataFrame, one row for each variable."""
        import pandas

        return pandas.DataFrame([asdict(variable) for variable in self.variables])

    def __str__(self) -> str:
        return self.to_frame().to_string(index=False)


@dataclass(frozen=True)
class _Share:
    """What an optimizer keeps of one variable, and a saved one brings back."""

    address: str
    depth: int
    multiplier: float


def layerwise_optimizer(
    model: keras.Model | Graph,
    optimizer: keras.optimizers.Optimizer | str,
    decay: float = 0.8,
    blocks: Any = None,
) -> "LayerwiseOptimizer":
    """An optimizer whose learning rate is smaller by `decay` for each block nearer to the input.

    The last block is trained at the optimizer's own rate, the one before at `decay` times that, and
    so on. Blocks are parted by the clean cuts of the model (`cut_points`), so that a residual or
    transformer block is one, and a layer of a plain chain is one; a stretch with nothing but scales
    and biases (a normalisation) belongs to the block before it. A weight that is used in several
    blocks has the rate of the first. Every weight that can be trained gets one rate, by its
    identity, whether it is frozen now or not.

    Each step is that of the optimizer itself with another learning rate for each variable: weight
    decay is scaled along, as with parameter groups elsewhere, and gradients are clipped before, all
    together. Schedules, callbacks that set the rate, mixed precision and compiled steps work as
    without. A saved model brings back the rates of what is trainable when it is saved, where
    reusekit is imported.

    The idea is that of ULMFiT (Howard and Ruder, 2018, https://arxiv.org/abs/1801.06146) and BEiT.

    Args:
        model: A model with a functional graph.
        optimizer: A Keras optimizer, not used before, or the name of one. It becomes part of the
            result.
        decay: The factor from block to block, above 0 and up to 1.
        blocks: Where a block ends, as addresses, in any order: each layer belongs to the first
            block whose end it leads to. None takes the clean cuts.

    Returns:
        The optimizer. Its `rates` print as a table.

    Raises:
        AddressError: `blocks` names no tensor of the model.
        TrainingError: The decay is out of range, the optimizer is used, wrapped or of a kind that
            has no learning rate of its own, a trainable weight belongs to no layer of the graph, or
            no cut parts the model into blocks.

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> y = keras.layers.Dense(3, name="a")(x)
        >>> y = keras.layers.BatchNormalization(name="norm")(y)
        >>> model = keras.Model(x, keras.layers.Dense(1, name="head")(y), name="m")
        >>> optimizer = layerwise_optimizer(model, keras.optimizers.SGD(0.125), decay=0.5)
        >>> print(optimizer.rates)
        address        path  depth  multiplier   rate
              a    a/kernel      1         0.5 0.0625
              a      a/bias      1         0.5 0.0625
           norm  norm/gamma      1         0.5 0.0625
           norm   norm/beta      1         0.5 0.0625
           head head/kernel      0         1.0 0.1250
           head   head/bias      0         1.0 0.1250
        >>> model.compile(optimizer, "mse")
    """
    graph = read(model)
    if not 0 < decay <= 1:
        raise TrainingError(f"Expected a decay above 0 and up to 1, received {decay!r}.")
    depths = _depths(graph, blocks)
    loose = [v.path for v in graph.model.trainable_variables if id(v) not in depths]
    if loose:
        raise TrainingError(
            f"Expected every trainable weight of {graph.model.name!r} to belong to a layer of its "
            f"graph, received {loose[0]!r}, which does not."
        )
    variables = could_be_trained(graph)
    owned = [depths[id(variable)] for variable in variables]
    shares = [_Share(address, depth, float(decay**depth)) for address, depth in owned]
    made = LayerwiseOptimizer(keras.optimizers.get(optimizer), [asdict(share) for share in shares])
    made.assign(variables)
    return made


@keras.saving.register_keras_serializable(package="reusekit")
class LayerwiseOptimizer(keras.optimizers.Optimizer):
    """An optimizer that changes each variable at its own multiple of the learning rate.

    Made by `layerwise_optimizer`. It has the variables, the learning rate and the iterations of the
    optimizer inside it, which does the work.

    Args:
        inner_optimizer: A Keras optimizer that is not built yet.
        shares: For each variable a dict of `address`, `depth` and `multiplier`, in the order of the
            variables that `assign` or, in a loaded model, `build` is given.
        name: The optimizer's name.

    Attributes:
        inner_optimizer: The optimizer inside.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        shares: Sequence[dict],
        name: str | None = None,
    ):
        _check_optimizer(inner_optimizer)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self._ledger = _Ledger([_Share(**share) for share in shares])
        keras_internals.scale_learning_rate(inner_optimizer, self._ledger.multiplier)

    def assign(self, variables: Sequence[keras.Variable]) -> None:
        """Says which variables the shares are for."""
        self._ledger.assign(variables)

    @property
    def rates(self) -> Rates:
        """The learning rate of each variable now."""
        base = float(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(self.learning_rate)))
        return Rates(
            tuple(
                VariableRate(
                    share.address,
                    variable.path,
                    share.depth,
                    share.multiplier,
                    base * share.multiplier,
                )
                for variable, share in self._ledger.assigned()
            )
        )

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Makes the optimizer's own variables; each of the model's must have a rate."""
        if self.built:
            return
        self._ledger.build(variables)
        self.inner_optimizer.build(variables)
        super().build(variables)

    def apply(self, grads: Sequence, trainable_variables: Sequence | None = None) -> None:
        """Changes the variables, as the optimizer inside does, each at its own rate."""
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(list(trainable_variables))
        self.inner_optimizer.apply(grads, trainable_variables)

    # --- what it shares with the optimizer inside ------------------------------------------------

    @property
    def variables(self) -> list[keras.Variable]:
        """Its own and those of the optimizer inside."""
        return [*super().variables, *self.inner_optimizer.variables]

    @property
    def learning_rate(self) -> Any:
        """The rate where the multiplier is 1."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """How many steps were made."""
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self) -> float | None:
        """What the loss is multiplied by, and gradients divided by."""
        return self.inner_optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        # Keras sets it first when there is no optimizer inside yet.
        if hasattr(self, "inner_optimizer"):
            self.inner_optimizer.loss_scale_factor = factor

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Ends a training, as the optimizer inside does."""
        self.inner_optimizer.finalize_variable_values(var_list)

    # --- saving ----------------------------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing: Keras saves the optimizer inside by itself."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing, likewise."""

    def get_config(self) -> dict:
        """The optimizer inside, and the rates of what is trainable now."""
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "shares": [asdict(share) for share in self._ledger.to_save()],
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> "LayerwiseOptimizer":
        """Makes it again; `build` then says which variables the rates are for."""
        inner = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        return cls(inner, config["shares"], config["name"])


class _Ledger:
    """Which variable has which share, by identity."""

    def __init__(self, shares: list[_Share]):
        self._shares = shares
        self._variables: list[keras.Variable] | None = None
        self._built: list[_Share | None] = []

    def assign(self, variables: Sequence[keras.Variable]) -> None:
        self._variables = list(variables)

    def assigned(self) -> list[tuple[keras.Variable, _Share]]:
        return list(zip(self._variables or [], self._shares, strict=False))

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self._variables is None and len(variables) == len(self._shares):
            # A loaded optimizer: its shares are in the order of what was trainable.
            self.assign(variables)
        by_variable = {id(variable): share for variable, share in self.assigned()}
        self._built = [by_variable.get(id(variable)) for variable in variables]
        missing = [v.path for v, share in zip(variables, self._built, strict=True) if not share]
        # A file that cannot say which rates are whose can be loaded all the same, only not trained.
        if missing and self._variables is not None:
            raise TrainingError(_without_a_rate(missing))

    def multiplier(self, place: int) -> float:
        """By the variable's place among those the optimizer was built for."""
        share = self._built[place]
        if share is None:
            raise TrainingError(_without_a_rate(["..."]))
        return share.multiplier

    def to_save(self) -> list[_Share]:
        if self._variables is None:
            return self._shares
        return [share for variable, share in self.assigned() if variable.trainable]


def _without_a_rate(paths: list[str]) -> str:
    return (
        f"Expected a learning rate for each trainable variable, but {len(paths)} have none, such "
        f"as {paths[0]!r}. Make the optimizer anew with layerwise_optimizer and compile the model."
    )


def _check_optimizer(optimizer: keras.optimizers.Optimizer) -> None:
    if type(optimizer).update_step is keras.optimizers.Optimizer.update_step:
        raise TrainingError(
            "Expected an optimizer that updates variables itself, received "
            f"{type(optimizer).__name__}. Put a LossScaleOptimizer around the result instead."
        )
    if optimizer.built or keras_internals.has_scaled_rate(optimizer):
        raise TrainingError(
            f"Expected an optimizer that has not been used, received {optimizer.name!r}, which is "
            "part of another or was built already."
        )
    if keras.backend.backend() == "torch":
        raise TrainingError(
            "Expected a backend whose optimizers update one variable at a time, received torch."
        )


def _depths(graph: Graph, blocks: Any) -> dict[int, tuple[str, int]]:
    """From the id of each weight to the address of its layer and the blocks that follow it."""
    if blocks is None:
        ends = [graph.names[point.at] for point in cut_points(graph)]
    else:
        ends = sorted(resolve(graph, blocks), key=lambda tensor: graph.maker[tensor].index)
    numbers = _numbers(graph, ends)
    owners: dict[int, Call] = {}
    # Going up, so that the first call that uses a weight has the last word.
    for call in sorted(graph.calls, key=lambda call: numbers[call.index], reverse=True):
        owners.update((id(variable), call) for variable in call.variables)
    # Scales and biases alone make no block, unless the caller says where blocks end.
    least = 2 if blocks is None else 0
    weighty = [owners[id(v)] for v in graph.model.weights if id(v) in owners and v.ndim >= least]
    counted = sorted({numbers[call.index] for call in weighty})
    if len(counted) < 2 and len({id(call.operation) for call in weighty}) > 1:
        raise TrainingError(
            f"Expected cuts that part the weights of {graph.model.name!r} into blocks, received "
            f"{'no clean cut that does' if blocks is None else repr(blocks)}. Pass blocks=[...], "
            "the addresses at which blocks end."
        )
    # What comes before the first block that counts belongs to it.
    places = [max(1, bisect_right(counted, number)) for number in numbers]
    last = max(places)
    return {key: (call.address, last - places[call.index]) for key, call in owners.items()}


def _numbers(graph: Graph, ends: Sequence[Tensor]) -> list[int]:
    """For each call the number of its block: the first that ends at what the call leads to."""
    numbers: dict[int, int] = {}
    for number, end in enumerate(ends):
        waiting = [end]
        while waiting:
            call = graph.maker[waiting.pop()]
            if call.index not in numbers:
                numbers[call.index] = number
                waiting.extend(call.reads)
    return [numbers.get(call.index, len(ends)) for call in graph.calls]
