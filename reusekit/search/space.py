"""The choices of a search, and the trial that one of each makes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import keras
import keras_tuner
from annotated_types import MinLen
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reusekit.arguments import Choices, Distinct, Rate, Settings, checked
from reusekit.errors import ConfigError, TrainingError, nearest
from reusekit.tasks import TaskRules
from reusekit.training.adaptation import Targets, rank_of
from reusekit.training.heads import Head

BACKBONE, CUT, FROZEN_UP_TO = "backbone", "cut", "frozen_up_to"
BEFORE = {FROZEN_UP_TO: "freeze"}  # as what is kept on disk may call it
NONE = "none"
_ADAPTATIONS = (NONE, "from:ADDRESS", "lora:8", "norms", "biases")
NamedCut = str | tuple[str, str]
"""A cut: its address, and before it the name of its backbone where there are several."""
Shape = tuple[NamedCut, str | None, int]
"""The shape of a trial's whole model: its cut, and the name or the width of its head."""
_OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop", "nadam", "lion", "adagrad", "lamb")


@checked(ConfigError)
@dataclass(frozen=True)
class TrialSpec:
    """The choices of one trial, as plain values that can be written down.

    With the data they are everything that its result depends on.

    Attributes:
        cut: The address at which the backbone is cut; the head goes on there.
        frozen_up_to: The cut before which nothing is trained: `cut`, or one before it, from where
            on the backbone is trained together with the head.
        head: The name of the head in the search space; None for that of the task, of `units` and
            `dropout`.
        units: Width of the task's head's hidden layer; 0 for none.
        dropout: Its dropout rate.
        optimizer: The name of a Keras optimizer.
        learning_rate: Its rate.
        batch_size: Examples a step.
        adaptation: The few weights of the part after `frozen_up_to` that are trained, as for
            `rk.adapt`: "lora:8", "norms" or "biases"; None for all of them.
        backbone: The name of the backbone that is cut, where a search has several.

    Example:
        >>> spec = TrialSpec("block3_out", "block2_out", learning_rate=1e-3)
        >>> spec.trains_backbone
        True
        >>> TrialSpec.from_dict(spec.to_dict()) == spec
        True
    """

    cut: str
    frozen_up_to: str
    head: str | None = None
    units: NonNegativeInt = 0
    dropout: Rate = 0.0
    optimizer: str = "adam"
    learning_rate: PositiveFloat = 1e-2
    batch_size: PositiveInt = 32
    adaptation: str | None = None
    backbone: str | None = None

    @property
    def named_cut(self) -> NamedCut:
        """Return the cut, and before it the backbone where there are several."""
        return named_cut(self.cut, self.backbone)

    @property
    def shape(self) -> "Shape":
        """Return the choices that decide the shape of the whole model."""
        return self.named_cut, self.head, self.units

    @property
    def trains_backbone(self) -> bool:
        """Return whether a part of the backbone is trained with the head."""
        return self.frozen_up_to != self.cut

    def to_dict(self) -> dict[str, Any]:
        """Return its values by name, that of the backbone where there are several."""
        values = asdict(self)
        if self.backbone is None:
            del values[BACKBONE]
        return values

    @classmethod
    @checked(ConfigError)
    def from_dict(cls, values: dict[str, Any]) -> "TrialSpec":
        """Return the specification with these values; others are passed over."""
        names = {field.name for field in fields(cls)}
        known = {name: value for name, value in renamed(values).items() if name in names}
        if not {CUT, FROZEN_UP_TO} <= known.keys():
            raise ConfigError(
                f"Expected values with a cut and a frozen_up_to. Received: {values!r}."
            )
        return cls(**known)


def begin_of(adaptation: str) -> str:
    """Return the address of `from:ADDRESS`; "" for another adaptation."""
    kind, _, at = adaptation.partition(":")
    return at if kind == "from" else ""


def adapted(cut: str, up_to: str, chosen: str) -> tuple[str, str | None]:
    """Return the cut before which a trial trains nothing, and the few weights that it trains.

    Example:
        >>> adapted("c", "a", "none"), adapted("c", "a", "from:b"), adapted("c", "a", "lora:4")
        (('c', None), ('b', None), ('a', 'lora:4'))
    """
    if chosen == NONE:
        return cut, None
    begin = begin_of(chosen)
    return (begin, None) if begin else (up_to, chosen)


def named_cut(cut: str, backbone: str | None = None) -> NamedCut:
    """Return a cut, and before it the name of its backbone where there are several.

    Example:
        >>> named_cut("block3_out"), named_cut("block3_out", "glyphnet")
        ('block3_out', ('glyphnet', 'block3_out'))
    """
    return cut if backbone is None else (backbone, cut)


def choice_of(name: str, backbone: str | None) -> str:
    """Return the name of a hyperparameter that each of several backbones has one of.

    Under one name, keras-tuner would drop the value of the one that counts.

    Example:
        >>> choice_of("cut", None), choice_of("cut", "glyphnet")
        ('cut', 'cut/glyphnet')
    """
    return name if backbone is None else f"{name}/{backbone}"


def label(one: NamedCut) -> str:
    """Return a cut as tables and figures show it.

    Example:
        >>> label("block3_out"), label(("glyphnet", "block3_out"))
        ('block3_out', 'glyphnet: block3_out')
    """
    return one if isinstance(one, str) else ": ".join(one)


def renamed(kept: Any) -> Any:
    """Return what was kept of a search with every name that it had before as it is now.

    Example:
        >>> renamed({"values": {"freeze": "a"}, "space": [{"config": {"name": "freeze"}}]})
        {'values': {'frozen_up_to': 'a'}, 'space': [{'config': {'name': 'frozen_up_to'}}]}
    """
    now = {before: name for name, before in BEFORE.items()}
    if isinstance(kept, list):
        return [renamed(one) for one in kept]
    if not isinstance(kept, dict):
        return kept
    found = {now.get(key, key): renamed(one) for key, one in kept.items()}
    if found.get("name") in BEFORE.values():  # of a hyperparameter of keras-tuner's
        found["name"] = now[found["name"]]
    return found


class TrialChoices(Settings):
    """The choices of a trial beside its cut. Of each list the first is the default of trials."""

    frozen_up_to: Distinct[str] = Field(
        [],
        description="Addresses, as [a,b], up to which the backbone may be frozen: where one lies "
        "before a trial's cut, what is between the two is trained with the head. Empty: heads "
        "alone.",
    )
    adaptation: Choices[str] | None = Field(
        None,
        description="Ways to adapt the backbone, as [a,b]: none trains a head alone, from:ADDRESS "
        "all behind that address; lora:RANK, norms and biases few weights behind frozen_up_to. "
        "Null trains all behind frozen_up_to.",
    )
    lora_targets: Literal["all", "attention", "mlp", "convolution"] | None = Field(
        None, description="The layers that lora:RANK adds to, by role; null for all."
    )
    units: Choices[NonNegativeInt] = Field(
        [0, 64], description="Widths of a head's hidden layer, as [a,b]; 0 for none."
    )
    dropout: Choices[Rate] = Field(
        [0.0, 0.25, 0.5], description="Dropout rates of a head, as [a,b]."
    )
    optimizers: Choices[str] = Field(
        ["adam"], description="Names of Keras optimizers to try, as [a,b]."
    )
    learning_rate: tuple[PositiveFloat, PositiveFloat] = Field(
        (1e-3, 1e-1),
        description="Lowest and highest learning rate to try, on a logarithmic scale, as [a,b].",
    )
    learning_rates: Choices[PositiveFloat] | None = Field(
        None, description="Learning rates to choose from instead of that range, as [a,b]."
    )
    batch_sizes: Choices[PositiveInt] = Field(
        [32], description="Examples a step, to try, as [a,b]."
    )
    standardize: bool = Field(
        True,
        description="Heads remove the features' mean and variance first, so that one learning rate "
        "suits cuts of any scale; not where a part of the backbone is trained.",
    )
    loss_weights: Mapping[str, NonNegativeFloat] | None = Field(
        None,
        description="What the loss of each of several tasks counts, by name, once all losses are "
        "brought to one scale; null, and where a task has none: 1.",
    )
    batch_norm: Literal["frozen", "train"] = Field(
        "frozen",
        description="BatchNormalization in a part of the backbone that is trained: frozen keeps "
        "its statistics and weights, train trains it.",
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        """Check what keras-tuner would pass over."""
        low, high = self.learning_rate
        if low > high:
            raise ConfigError(
                "Expected learning_rate=(lowest, highest), the lowest rate first. Received: "
                f"{(low, high)}."
            )
        for one in self.adaptation or ():
            if one == NONE or begin_of(one):
                continue
            try:
                rank_of(one)
            except TrainingError as error:
                raise ConfigError(
                    f"Expected none, from:ADDRESS, lora:RANK, norms or biases. Received: {one!r}. "
                    f"{nearest(one, _ADAPTATIONS)}"
                ) from error
            if not self.frozen_up_to:
                raise ConfigError(
                    f"Expected frozen_up_to, behind which the backbone is adapted, with {one!r}. "
                    "Received: none."
                )
        for name in self.optimizers:
            try:
                keras.optimizers.get(name)
            except ValueError as error:
                raise ConfigError(
                    f"Expected the name of a Keras optimizer. Received: {name!r}. "
                    f"{nearest(name, _OPTIMIZERS)}"
                ) from error
        return self

    @property
    def begins(self) -> list[str]:
        """The addresses behind which a part of the backbone may be trained."""
        begins = map(begin_of, self.adaptation or ())
        return list(dict.fromkeys([*self.frozen_up_to, *filter(None, begins)]))


class SearchSpace(TrialChoices):
    """The choices of a cut search: where to cut, what to put on, what to train and how.

    Example:
        >>> space = SearchSpace(cuts=["block3_out", "block5_out"], units=[0, 64])
        >>> hp = keras_tuner.HyperParameters()
        >>> space.sample(hp).cut, [choice.name for choice in hp.space]
        ('block3_out', ['cut', 'units', 'dropout', 'optimizer', 'learning_rate', 'batch_size'])
    """

    cuts: Choices[str] | Annotated[Mapping[str, Choices[str]], MinLen(1)] = Field(
        description="Addresses to cut at, shallow to deep; of several backbones those of each by "
        "its name."
    )
    frozen_up_to: Distinct[str] | Mapping[str, Distinct[str]] = Field(  # type: ignore[assignment]  # wider
        [],
        description="Addresses up to which the backbone may be frozen; of several backbones those "
        "of each by its name. Empty: heads alone.",
    )
    heads: Annotated[Mapping[str, Head], MinLen(1)] | None = Field(
        None,
        description="Heads to try, by name; None for those of the task, of `units` and `dropout`.",
    )

    if not TYPE_CHECKING:  # which knows the names from the fields

        def __init__(self, cuts: Sequence[str] | None = None, **choices: Any) -> None:
            super().__init__(**choices if cuts is None else {"cuts": cuts, **choices})

    @checked(ConfigError)
    def sample(self, hp: keras_tuner.HyperParameters) -> TrialSpec:
        """Declare the choices to keras-tuner and return the specification of this trial.

        Every trial that keras-tuner does not choose itself uses the first of each list and the
        geometric mean of the learning rates.
        """
        backbone = None
        if isinstance(self.cuts, Mapping):
            backbone = hp.Choice(BACKBONE, list(self.cuts))
        cut = up_to = _chosen(hp, CUT, self.cuts, backbone)
        if self.frozen_up_to:
            if BEFORE[FROZEN_UP_TO] in hp.values and FROZEN_UP_TO not in hp.values:
                raise ConfigError(
                    "Expected hyperparameters of this version. Received: 'freeze', which is called "
                    "'frozen_up_to' now. Search anew, with overwrite=True or in another folder."
                )
            up_to = _chosen(hp, FROZEN_UP_TO, self.frozen_up_to, backbone) or cut
        values: dict[str, Any] = {}
        if self.adaptation is not None:
            chosen = hp.Choice("adaptation", list(self.adaptation), default=self.adaptation[0])
            up_to, values["adaptation"] = adapted(cut, up_to, chosen)
        if self.heads is not None:
            values["head"] = hp.Choice("head", list(self.heads))
        else:
            values["units"] = hp.Choice("units", list(self.units), default=self.units[0])
            values["dropout"] = hp.Choice("dropout", list(self.dropout), default=self.dropout[0])
        values["optimizer"] = hp.Choice("optimizer", list(self.optimizers))
        values["learning_rate"] = self._rate(hp)
        values["batch_size"] = hp.Choice(
            "batch_size", list(self.batch_sizes), default=self.batch_sizes[0]
        )
        return TrialSpec(cut, up_to, **values, backbone=backbone)

    @checked(ConfigError)
    def of(self, backbone: str | None) -> "SearchSpace":
        """Return the choices of one backbone; None for the only one.

        Raises:
            ConfigError: There are several, and none of that name.
        """
        if not isinstance(self.cuts, Mapping):
            return self
        if backbone is None or backbone not in self.cuts:
            raise ConfigError(
                f"Expected the name of a backbone, one of {', '.join(self.cuts)}. Received: "
                f"{backbone!r}."
            )
        frozen_up_to = self.frozen_up_to
        if isinstance(frozen_up_to, Mapping):
            frozen_up_to = frozen_up_to.get(backbone, [])
        return self.changed(cuts=self.cuts[backbone], frozen_up_to=frozen_up_to)

    @property
    def backbones(self) -> list[str | None]:
        """The names of the backbones; None is that of an only one."""
        return list(self.cuts) if isinstance(self.cuts, Mapping) else [None]

    @property
    def named_cuts(self) -> list[NamedCut]:
        """The cuts of all backbones."""
        return [named_cut(at, name) for name in self.backbones for at in self.of(name).cuts]

    @checked(ConfigError)
    def narrowed(self, cuts: Sequence[NamedCut]) -> "SearchSpace":
        """Return the space with some of its cuts alone; a backbone without any is left out."""
        kept = {
            name: [at for at in self.of(name).cuts if named_cut(at, name) in cuts]
            for name in self.backbones
        }
        kept = {name: those for name, those in kept.items() if those}
        frozen = self.frozen_up_to
        if isinstance(frozen, Mapping):
            frozen = {name: those for name, those in frozen.items() if name in kept}
        return self.changed(cuts=kept.get(None, kept), frozen_up_to=frozen)

    @checked(ConfigError)
    def targets_of(self, adaptation: str) -> Targets:
        """Return the layers that an adaptation adds to, by role."""
        return self.lora_targets or "all" if rank_of(adaptation) else "all"

    @checked(ConfigError)
    def parts(self, cut: str) -> list[tuple[str, str | None]]:
        """Return the parts of the backbone before a cut that trials may train: begin, adaptation.

        Args:
            cut: The cut; a part that begins there is a head alone.
        """
        up_to = list(self.frozen_up_to) or [cut]
        if self.adaptation is None:
            return [(at, None) for at in up_to]
        return [adapted(cut, at, chosen) for at in up_to for chosen in self.adaptation]

    @checked(ConfigError)
    def shapes(self, backbone: str | None = None) -> list[TrialSpec]:
        """Return a trial for each shape that whole models of one backbone may have."""
        heads: list[dict[str, Any]] = [{"units": units} for units in self.units]
        if self.heads is not None:
            heads = [{"head": name} for name in self.heads]
        cuts = self.of(backbone).cuts
        return [TrialSpec(at, at, **head, backbone=backbone) for at in cuts for head in heads]

    def _rate(self, hp: keras_tuner.HyperParameters) -> float:
        low, high = self.learning_rate
        if self.learning_rates is not None:
            rates = list(self.learning_rates)
            return hp.Choice("learning_rate", rates, default=rates[0])
        if low == high:
            return hp.Fixed("learning_rate", low)
        return hp.Float("learning_rate", low, high, sampling="log", default=(low * high) ** 0.5)

    @checked(ConfigError)
    def head(self, spec: TrialSpec, rules: TaskRules, standardize: Any = None) -> Head:
        """Return the head of a trial, not built yet.

        Args:
            spec: The trial.
            rules: Those of the task, which make its head where the space has none.
            standardize: Features whose mean and variance such a head removes.
        """
        if self.heads is not None:
            return self.heads[spec.head or ""]
        return rules.weighted(self.loss_weights).head(spec.units, spec.dropout, standardize)


def _chosen(hp: keras_tuner.HyperParameters, name: str, choices: Any, backbone: str | None) -> Any:
    """Declare a choice among addresses; of several backbones one for each, under its condition."""
    if not isinstance(choices, Mapping):
        return hp.Choice(name, list(choices), default=choices[0])
    found = None
    for one, addresses in choices.items():
        if not addresses:
            continue
        with hp.conditional_scope(BACKBONE, [one]):
            value = hp.Choice(choice_of(name, one), list(addresses), default=addresses[0])
        found = value if one == backbone else found
    return found
