"""The backbones that a search chooses from: loaded, cut, and with the data as each takes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from reusekit.backbones import Backbone
from reusekit.errors import BackboneError, ConfigError, ReusekitError
from reusekit.exports.formats import written_as
from reusekit.graph import CutPoint
from reusekit.progress import say
from reusekit.settings import (
    BackboneSettings,
    CandidateSettings,
    DataSettings,
    FineTuneSettings,
    SearchSettings,
)
from reusekit.stages.cuts import candidate_cuts, clean_cut
from reusekit.stages.inputs import Splits, load_backbone, load_data
from reusekit.tracking import log_table, log_tags
from reusekit.tracking.names import LEFT_OUT


@dataclass(frozen=True)
class Candidate:
    """A backbone that a search may choose.

    Attributes:
        backbone: The pretrained model.
        cuts: Its cuts to choose from, shallow to deep.
        settings: What it was asked for by.
        name: Its name in tables; None where it is the only one.
        splits: The data as it takes them; None until they are loaded.
    """

    backbone: Backbone
    cuts: Sequence[CutPoint]
    settings: BackboneSettings
    name: str | None = None
    splits: Splits | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Candidates:
    """The backbones that a search chooses from.

    Attributes:
        those: Each of them.
        left_out: Those that cannot be had and may be left out, by source, with the reason.
    """

    those: tuple[Candidate, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def splits(self) -> Splits:
        """The data as the first backbone takes them."""
        splits = self.those[0].splits
        assert splits is not None  # loaded before they are asked for
        return splits

    @property
    def recorded(self) -> dict[str, BackboneSettings | list[CandidateSettings]]:
        """The settings that tell of them, as `Job.record` takes them."""
        if self.those[0].name is None:
            return {"backbone": self.those[0].settings}
        several = [one.settings for one in self.those]
        return {"backbones": [one for one in several if isinstance(one, CandidateSettings)]}

    def log(self) -> None:
        """Say in the active run which backbones were left out, in a tag and a table."""
        if self.left_out:
            log_tags({LEFT_OUT: ", ".join(self.left_out)})
            rows = self.left_out.items()
            log_table(pd.DataFrame(rows, columns=["source", "reason"]), "left_out.json")


def load_candidates(
    backbone: BackboneSettings,
    backbones: Sequence[CandidateSettings],
    search: SearchSettings,
    finetune: FineTuneSettings,
) -> Candidates:
    """Load the backbones that a search chooses from, and look for their cuts.

    The format that models are shipped in is looked at before anything is loaded.

    Args:
        backbone: The one to search, where there are not several.
        backbones: Several of them; those that may be left out are, where they cannot be had.
        search: Which cuts are tried; several backbones have theirs beside them.
        finetune: The phase after the search, whose cut is looked at.

    Raises:
        BackboneError: One cannot be had, or none is left.
        ConfigError: An address is no clean cut, two have one name, or settings contradict.
        ExportError: What writes and runs the format of `search.ship` is not installed.
    """
    if search.ship is not None:
        written_as(search.ship)
    if not backbones:
        found = load_backbone(backbone)
        if finetune.frozen_up_to is not None:
            clean_cut(found, finetune.frozen_up_to)
        cuts = candidate_cuts(found, search.cuts, search.max_cuts)
        for at in search.begins:
            clean_cut(found, at)
        return Candidates((Candidate(found, cuts, backbone),))
    _check_several(backbone, search, finetune)
    candidates = _among(backbones, {}, lambda one: _loaded(one, search))
    names = [one.name for one in candidates.those]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"Expected backbones with names of their own. Received: {twice!r} twice. Give each a "
            "name beside its source."
        )
    return candidates


def load_data_of_all(candidates: Candidates, settings: DataSettings, seed: int) -> Candidates:
    """Load the data once, and bring them to what each backbone takes; see `load_data`.

    Args:
        candidates: The backbones.
        settings: The data.
        seed: Decides which examples are kept.

    Raises:
        ConfigError, DataError: They cannot be had, or are not what a backbone takes that may not be
            left out.
        BackboneError: No backbone is left.
    """
    first = candidates.those[0]
    if first.name is None:
        splits = load_data(settings, first.backbone, seed)
        return replace(candidates, those=(replace(first, splits=splits),))
    opened: list[Splits] = []

    def with_data(one: Candidate) -> Candidate:
        tokens = getattr(one.settings, "sequence_length", None)
        own = settings if tokens is None else settings.changed(sequence_length=tokens)
        splits = load_data(own, one.backbone, seed, opened[0] if opened else None)
        opened.append(splits)
        return replace(one, splits=splits)

    return _among(candidates.those, candidates.left_out, with_data)


def _check_several(
    backbone: BackboneSettings, search: SearchSettings, finetune: FineTuneSettings
) -> None:
    """Refuse settings that are of one backbone alone."""
    if backbone != BackboneSettings():
        raise ConfigError(
            f"Expected backbone, or backbones. Received: both, {backbone.source!r} as the former."
        )
    for name, value in (
        ("search.cuts", search.cuts),
        ("finetune.frozen_up_to", finetune.frozen_up_to),
    ):
        if value is not None:
            raise ConfigError(
                f"Expected {name} of null with several backbones, which have addresses of their "
                f"own; cuts stand beside each source. Received: {value!r}."
            )


def _loaded(settings: CandidateSettings, search: SearchSettings) -> Candidate:
    backbone = load_backbone(settings)
    cuts = candidate_cuts(backbone, settings.cuts, search.max_cuts)
    name = settings.name or backbone.name
    return Candidate(backbone, cuts, settings.changed(name=name), name)


def _among(
    given: Sequence[Any], left_out: dict[str, str], made: Callable[[Any], Candidate]
) -> Candidates:
    """Return what is made of each backbone, without those that cannot be had and may be left out.

    Args:
        given: Settings, or candidates.
        left_out: Those that were left out before.
        made: Makes a candidate of one.
    """
    those, left_out = [], dict(left_out)
    for one in given:
        settings: CandidateSettings = getattr(one, "settings", one)
        try:
            those.append(made(one))
        except ReusekitError as error:
            if not settings.skip_unavailable:
                if settings.source in str(error):
                    raise
                raise type(error)(f"{settings.source}: {error}") from error
            left_out[settings.source] = str(error)
            say(f"warning: {settings.source} is left out. {error}")
    if not those:
        raise BackboneError(
            "Expected a backbone that can be had. Received: "
            + " ".join(f"{source}: {why}" for source, why in left_out.items())
        )
    return Candidates(tuple(those), left_out)
