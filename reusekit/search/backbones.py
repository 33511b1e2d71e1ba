"""The backbones of a search: one or several, by name, with the examples and cuts of each."""

import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import keras
import numpy as np

from reusekit.backbones import Backbone
from reusekit.data import DataSplit
from reusekit.errors import ConfigError, ReusekitError, nearest
from reusekit.exports import Figures
from reusekit.features import FeatureStore
from reusekit.features.frontiers import Features
from reusekit.features.key import weights_read_once
from reusekit.features.source import FeatureSource
from reusekit.graph import Graph
from reusekit.planning import Plan
from reusekit.planning.planner import Asked
from reusekit.progress import tracked
from reusekit.search.config import SearchConfig
from reusekit.search.searched_backbone import SearchedBackbone, cells_of
from reusekit.search.shipping import Shipping
from reusekit.search.space import BACKBONE, NamedCut, SearchSpace, Shape, label, named_cut
from reusekit.search.trial_data import TrialData, collected
from reusekit.tasks import TaskRules
from reusekit.workers import HERE

Searchable: TypeAlias = keras.Model | Graph | Backbone
"""A backbone, or a model, read or not."""


class SearchedBackbones(dict[str | None, SearchedBackbone]):
    """The backbones of a search by their names; None is that of an only one.

    Args:
        backbones: One or several, as for `CutSearch`.
        train: The examples to train on, or those of each.
        validation: Those to compare on, likewise.
        config: The settings of the search.

    Raises:
        ConfigError: A name stands twice, examples are not the same for all, or training and
            validation examples are of different tasks.
        DataError: They are not what a backbone takes.
    """

    def __init__(
        self,
        backbones: Searchable | Sequence[Searchable] | Mapping[str, Searchable],
        train: DataSplit | Mapping[str, DataSplit],
        validation: DataSplit | Mapping[str, DataSplit],
        config: SearchConfig,
    ) -> None:
        super().__init__()
        for name, backbone in _by_name(backbones).items():
            own = _of(train, name, "train"), _of(validation, name, "validation")
            with naming(name):
                self[name] = SearchedBackbone(backbone, *own, config, name)
        _check_alike(self)
        task, other = self.first.train.task, self.first.validation.task
        if task != other:
            raise ConfigError(
                "Expected training and validation examples of one task, with the same names in the "
                f"same order. Received: {reprlib.repr(task)} and {reprlib.repr(other)}."
            )

    @property
    def first(self) -> SearchedBackbone:
        """The first of them, whose examples and task are those of all."""
        return next(iter(self.values()))

    def space(self, space: SearchSpace | None) -> SearchSpace:
        """Return the choices with those of each backbone by its name, where there are several.

        Args:
            space: The choices that were given; None for heads of the task on every clean cut.

        Raises:
            ConfigError: They are not by the names of the backbones, or not what these have.
        """
        alone = None in self
        if space is None:
            cuts: Any = {name: one.clean_cuts() for name, one in self.items()}
            cuts = cuts[None] if alone else cuts
            return SearchSpace(cuts=cuts, learning_rates=[1e-3, 1e-2, 1e-1])
        cuts = space.cuts
        by_name = isinstance(cuts, Mapping)
        if alone and (by_name or isinstance(space.frozen_up_to, Mapping)):
            raise ConfigError(
                "Expected cuts and frozen_up_to as lists of addresses for a single backbone. "
                f"Received: {space.cuts!r} and {space.frozen_up_to!r}."
            )
        if alone:
            return space
        names = list(map(str, self))
        if not by_name or set(space.cuts) != set(names):
            raise ConfigError(
                f"Expected cuts by the names of the backbones, {', '.join(names)}. Received: "
                f"{reprlib.repr(space.cuts)}."
            )
        frozen: Any = space.frozen_up_to
        if not isinstance(frozen, Mapping):
            frozen = self._shared_out(frozen)
        elif set(frozen) - set(names):
            raise ConfigError(
                f"Expected frozen_up_to by the names of the backbones, {', '.join(names)}. "
                f"Received: {reprlib.repr(frozen)}."
            )
        return space.changed(
            cuts={name: cuts[name] for name in names},
            frozen_up_to={name: frozen[name] for name in names if frozen.get(name)},
        )

    def _shared_out(self, addresses: Sequence[str]) -> dict[Any, list[str]]:
        """Return the addresses that each backbone has."""
        found = {
            name: [at for at in addresses if at in one.graph.names] for name, one in self.items()
        }
        for at in addresses:
            if not any(at in those for those in found.values()):
                known = [address for one in self.values() for address in one.graph.names]
                raise ConfigError(
                    f"Expected frozen_up_to to be addresses that a backbone has. Received: {at!r}. "
                    f"{nearest(at, known)}"
                )
        return found

    def bottoms(self, space: SearchSpace) -> dict[NamedCut, keras.Model]:
        """Return the model up to each cut."""
        return {
            named_cut(at, name): model
            for name, one in self.items()
            for at, model in one.bottoms(space.of(name)).items()
        }

    def depths(self, space: SearchSpace) -> dict[NamedCut, float]:
        """Return the share of its backbone's FLOPs before each cut."""
        return {
            named_cut(at, name): one.points[at].depth
            for name, one in self.items()
            for at in space.of(name).cuts
        }

    def files(
        self, space: SearchSpace, rules: TaskRules, shipping: Shipping
    ) -> dict[Shape, Figures | str]:
        """Return the figures of untrained whole models as files, or why one cannot be a file.

        Args:
            space: The choices of trials.
            rules: Those of the task, of which heads are.
            shipping: The files of the search.
        """
        found: dict[Shape, Figures | str] = {}
        for name, one in self.items():
            with naming(name):
                shapes = list(one.shapes(space, rules))
                told = f"Measuring {name or one.graph.model.name} as {shipping.name}"
                for shape, follows_from, exporter in tracked(shapes, told):
                    found[shape] = shipping.measured(follows_from, exporter)
        return found

    def over(
        self,
        space: SearchSpace,
        latencies: Mapping[NamedCut, float],
        files: Mapping[Shape, Figures | str],
    ) -> dict[NamedCut, tuple[float, str]]:
        """Return the cuts beyond the limits; see `SearchedBackbone.over`."""
        found = {}
        for one in self.values():
            found.update(one.over(space, latencies, files))
        return found

    def work(self, space: SearchSpace) -> dict[str, Asked]:
        """Return the work to plan for on each backbone that a space has, "" for an only one."""
        cells = {name: cells_of(space.of(name)) for name in space.backbones}
        found = {}
        for name, count in cells.items():
            with naming(name):
                share = count / sum(cells.values())
                found[name or ""] = self[name].asked(space.of(name), share)
        return found

    def data(
        self,
        plans: Mapping[str | None, Plan | None],
        store: FeatureStore | None,
        own_heads: bool,
    ) -> dict[str | None, TrialData]:
        """Return the features of each backbone where trials begin, as its plan says.

        Args:
            plans: The plan of each that is searched; None for the plain way.
            store: Where features are kept; None for the plain way.
            own_heads: Whether heads are not those of the task, so that labels may be anything.
        """

        def sources(one: tuple[str | None, bool]) -> Mapping[Features, FeatureSource]:
            name, training = one
            with naming(name):
                return self[name].sources(plans[name], store, training)

        asked = [(name, training) for name in plans for training in (True, False)]
        # Layers that vary the data are seeded for one at a time.
        ways = {
            how
            for plan in plans.values()
            for one in getattr(plan, "features", ())
            for how in (one.how, one.validation)
        }
        workers = store.workers if store is not None and ways <= {"stored", "tap"} else HERE
        with weights_read_once(*(self[name].graph.model for name in plans)):
            found = dict(zip(asked, workers.together(sources, asked), strict=True))
            data = {}
            for name in plans:
                with naming(name):
                    data[name] = self[name].data(found[name, True], found[name, False], own_heads)
        return data

    def rows_by_size(self, space: SearchSpace) -> list[dict[str, Any]]:
        """Return the cuts with the parameters before them as scores, as `in_order` takes them."""
        return [
            {
                **({} if name is None else {BACKBONE: name}),
                "cut": at,
                "score": float(self[name].points[at].params_before),
                "seconds": 0.0,
            }
            for name in space.backbones
            for at in space.of(name).cuts
        ]


def within_limits(
    space: SearchSpace, over: Mapping[NamedCut, tuple[float, str]], ship: str | None
) -> SearchSpace:
    """Return the choices without the cuts that exceed the limits, or cannot be shipped.

    Args:
        space: The choices.
        over: How many times a limit each of these cuts is, and that in words.
        ship: The format in which models are shipped.

    Raises:
        ConfigError: None is left.
    """
    kept = [one for one in space.named_cuts if one not in over]
    if kept:
        return space.narrowed(kept)
    nearest_one, (times, why) = min(over.items(), key=lambda one: one[1][0])
    if times == math.inf:
        raise ConfigError(f"Expected a cut that can be shipped as {ship!r}. Received: none. {why}")
    raise ConfigError(
        "Expected limits within which a cut keeps. Received: limits that each one exceeds, nearest "
        f"{label(nearest_one)!r} ({why}). Raise them, or search a smaller backbone."
    )


def ranked_features(
    found: Mapping[str | None, TrialData], space: SearchSpace, pooling: str
) -> tuple[dict[Any, Any], np.ndarray]:
    """Return the training features by which cuts are ranked, by backbone and cut, and the labels.

    Args:
        found: The features of each backbone.
        space: The choices of trials.
        pooling: The pooling of the features that rank.
    """
    features = {
        name: {at: collected(data.train[at, pooling]) for at in space.of(name).cuts}
        for name, data in found.items()
    }
    return features, next(iter(next(iter(found.values())).train.values())).labels


def _by_name(
    backbones: Searchable | Sequence[Searchable] | Mapping[str, Searchable],
) -> Mapping[str | None, Searchable]:
    """Return backbones by their names; None is that of an only one."""
    if isinstance(backbones, Backbone | Graph | keras.Model):
        return {None: backbones}
    found = backbones
    if not isinstance(found, Mapping):
        pairs = [(_name_of(one), one) for one in found]
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"Expected backbones with names of their own. Received: {twice!r} twice. Give a "
                "dictionary, with a name for each."
            )
        found = dict(pairs)
    if not found or "" in found:
        raise ConfigError(f"Expected one backbone or several, by names. Received: {found!r}.")
    by_name: Any = dict(found)
    return by_name


def _name_of(backbone: Searchable) -> str:
    return backbone.model.name if isinstance(backbone, Graph) else backbone.name


def _of(split: DataSplit | Mapping[str, DataSplit], name: str | None, what: str) -> DataSplit:
    """Return the split of a backbone."""
    if isinstance(split, DataSplit):
        return split
    if name is None or name not in split:
        raise ConfigError(
            f"Expected {what} to be a DataSplit, or of several backbones one for each by its name. "
            f"Received: {', '.join(split) or 'none'}."
        )
    return split[name]


def _check_alike(backbones: Mapping[str | None, SearchedBackbone]) -> None:
    """Refuse other examples for one backbone than for another."""
    (first_name, first), *others = backbones.items()
    for name, one in others:
        for what in ("train", "validation"):
            split, other = getattr(first, what), getattr(one, what)
            keyed = split.keys is not None and other.keys is not None
            if (
                split.task != other.task
                or split.size != other.size
                or (keyed and not np.array_equal(split.keys, other.keys))
            ):
                raise ConfigError(
                    f"Expected the same {what} examples in the same order, of one task, for every "
                    f"backbone. Received: others for {name!r} than for {first_name!r}."
                )


@contextmanager
def naming(name: str | None) -> Iterator[None]:
    """Say in an error of which backbone it is, where there are several."""
    try:
        yield
    except ReusekitError as error:
        if name is None:
            raise
        raise type(error)(f"Backbone {name!r}: {error}") from error
