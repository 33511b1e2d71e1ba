"""The specification of a trial: everything its result depends on, beside the data."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from reusekit.arguments import Rate, checked
from reusekit.errors import ConfigError


@checked(ConfigError)
@dataclass(frozen=True)
class TrialSpec:
    """The choices of one trial, as plain values that can be written down.

    Attributes:
        cut: The address at which the backbone is cut; the head goes on there.
        freeze: The address up to which the backbone is frozen: `cut`, or one before it, from where
            on it is trained together with the head.
        head: The name of the head in the search space; None for a classifier of `units` and
            `dropout`.
        units: Width of the classifier's hidden layer; 0 for none.
        dropout: Its dropout rate.
        optimizer: The name of a Keras optimizer.
        learning_rate: Its rate.
        batch_size: Examples a step.

    Example:
        >>> spec = TrialSpec("block3_out", "block2_out", learning_rate=1e-3)
        >>> spec.trains_backbone
        True
        >>> TrialSpec.from_dict(spec.to_dict()) == spec
        True
    """

    cut: str
    freeze: str
    head: str | None = None
    units: NonNegativeInt = 0
    dropout: Rate = 0.0
    optimizer: str = "adam"
    learning_rate: PositiveFloat = 1e-2
    batch_size: PositiveInt = 32

    @property
    def trains_backbone(self) -> bool:
        """Return whether a part of the backbone is trained with the head."""
        return self.freeze != self.cut

    def to_dict(self) -> dict[str, Any]:
        """Return its values by name."""
        return asdict(self)

    @classmethod
    @checked(ConfigError)
    def from_dict(cls, values: dict[str, Any]) -> "TrialSpec":
        """Return the specification with these values; others are passed over."""
        names = {field.name for field in fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        if not {"cut", "freeze"} <= known.keys():
            raise ConfigError(f"Expected values with a cut and a freeze. Received: {values!r}.")
        return cls(**known)
