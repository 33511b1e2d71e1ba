"""An optimizer with a learning rate of its own for each variable."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakSet

import keras

from reusekit.errors import TrainingError
from reusekit.graph import keras_internals

# The optimizers that are part of another.
_inner_ones: WeakSet[keras.optimizers.Optimizer] = WeakSet()


@dataclass(frozen=True)
class VariableRate:
    """The learning rate of one variable.

    Attributes:
        address: The address of the layer that owns it.
        path: Keras's own path of the variable, which need not be unique.
        depth: The number of blocks between it and the end of the model.
        multiplier: The factor of the optimizer's learning rate.
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

    def __getitem__(self, index: int) -> VariableRate:  # type: ignore[override]  # no slices
        return self.variables[index]

    def __len__(self) -> int:
        return len(self.variables)

    def to_frame(self) -> Any:
        """Return the rates as a pandas DataFrame, one row for each variable."""
        import pandas

        return pandas.DataFrame([asdict(variable) for variable in self.variables])

    def __str__(self) -> str:
        return self.to_frame().to_string(index=False)


@dataclass(frozen=True)
class _Share:
    """An optimizer's share for one variable, restored when saved."""

    address: str
    depth: int
    multiplier: float


@keras.saving.register_keras_serializable(package="reusekit")
class LayerwiseOptimizer(keras.optimizers.Optimizer):
    """An optimizer that changes each variable at its own multiple of the learning rate.

    Made by `layerwise_optimizer`. It has the variables, the learning rate and the iterations of the
    optimizer inside it, which does the work.

    Args:
        inner_optimizer: A Keras optimizer that is not built yet.
        shares: For each variable a dict of `address`, `depth` and `multiplier`.
        variables: The variables, in the same order; None takes those that `build` is given, as is
            right for a model that is loaded.
        name: The optimizer's name.

    Attributes:
        inner_optimizer: The optimizer inside.
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        shares: Sequence[dict],
        variables: Sequence[keras.Variable] | None = None,
        name: str | None = None,
    ):
        _check_optimizer(inner_optimizer)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self._ledger = _Ledger([_Share(**share) for share in shares], variables)
        _inner_ones.add(inner_optimizer)

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
        """Make the optimizer's own variables; each of the model's must have a rate."""
        if self.built:
            return
        self._ledger.build(variables)
        self.inner_optimizer.build(variables)
        super().build(variables)

    def apply(self, grads: Sequence, trainable_variables: Sequence | None = None) -> None:
        """Change the variables, as the optimizer inside does, each at its own rate."""
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                # Keras passes them as long as the optimizer is not built.
                self.build(list(trainable_variables or ()))
        scaled = keras_internals.with_scaled_rate(self.inner_optimizer, self._ledger.multiplier)
        scaled.apply(grads, trainable_variables)

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
        """Return the number of steps made."""
        return self.inner_optimizer.iterations

    @property
    def loss_scale_factor(self) -> float | None:
        """The factor of the loss, by which gradients are divided."""
        return self.inner_optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        # Keras sets it first when there is no optimizer inside yet.
        if hasattr(self, "inner_optimizer"):
            self.inner_optimizer.loss_scale_factor = factor

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """End a training, as the optimizer inside does."""
        self.inner_optimizer.finalize_variable_values(var_list)

    # --- saving ----------------------------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        """Save nothing: Keras saves the optimizer inside by itself."""

    def load_own_variables(self, store: Any) -> None:
        """Load nothing, likewise."""

    def get_config(self) -> dict:
        """Return the optimizer inside, and the rates of what is trainable now."""
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "shares": [asdict(share) for share in self._ledger.to_save()],
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> "LayerwiseOptimizer":
        """Make it again; `build` then says which variables the rates are for."""
        inner = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        return cls(inner, config["shares"], name=config["name"])


class _Ledger:
    """The shares of variables, by identity."""

    def __init__(self, shares: list[_Share], variables: Sequence[keras.Variable] | None):
        self._shares = shares
        self._variables = variables
        self._built: list[_Share | None] = []

    def assigned(self) -> list[tuple[keras.Variable, _Share]]:
        if self._variables is None:
            return []
        return list(zip(self._variables, self._shares, strict=True))

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self._variables is None and len(variables) == len(self._shares):
            # A loaded optimizer: its shares are in the order of what was trainable.
            self._variables = list(variables)
        by_variable = {id(variable): share for variable, share in self.assigned()}
        self._built = [by_variable.get(id(variable)) for variable in variables]
        # A file that cannot say which rates are whose can be loaded all the same, only not trained.
        if self._variables is not None:
            for variable, share in zip(variables, self._built, strict=True):
                if share is None:
                    raise TrainingError(_without_a_rate(f"none for {variable.path!r}"))

    def multiplier(self, index: int) -> float:
        """Return the multiplier of a variable, by its index in the optimizer."""
        share = self._built[index]
        if share is None:
            saved, loaded = len(self._shares), len(self._built)
            raise TrainingError(
                _without_a_rate(
                    f"those of {saved} variables, of which {loaded} are trained since it was loaded"
                )
            )
        return share.multiplier

    def to_save(self) -> list[_Share]:
        if self._variables is None:
            return self._shares
        return [share for variable, share in self.assigned() if variable.trainable]


def _without_a_rate(found: str) -> str:
    return (
        f"Expected a learning rate for each trainable variable. Received: {found}. Make the "
        "optimizer anew with layerwise_optimizer and compile the model."
    )


def _check_optimizer(optimizer: keras.optimizers.Optimizer) -> None:
    if type(optimizer).update_step is keras.optimizers.Optimizer.update_step:
        raise TrainingError(
            "Expected an optimizer that updates variables itself. Received: "
            f"{type(optimizer).__name__}. Put a LossScaleOptimizer around the result instead."
        )
    if optimizer.built or optimizer in _inner_ones:
        raise TrainingError(
            f"Expected an optimizer that has not been used. Received: {optimizer.name!r}, which is "
            "part of another or was built already."
        )
    if keras.backend.backend() == "torch":
        raise TrainingError(
            "Expected a backend whose optimizers update one variable at a time. Received: torch."
        )
